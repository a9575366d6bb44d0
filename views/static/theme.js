"use strict";
// Runs before the first paint: the colours this person chose on this device, if any.
try {
  const theme = localStorage.getItem("wardbook-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch { /* storage may be switched off: the device decides */ }
document.documentElement.classList.add("js");
