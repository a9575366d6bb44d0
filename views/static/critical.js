/* Critical results come up on every open page of whoever has to know: the feed says that there is one, and the page asks
   which. Without this file they come up with the next page. */

(() => {
  "use strict";
  const place = document.querySelector("[data-critical]");
  if (!place) return;
  let asking = false, again = false;
  const ask = async () => {
    if (asking) { again = true; return; }
    asking = true;
    again = false;
    try {
      const answer = await fetch(place.dataset.critical, { credentials: "same-origin", redirect: "error", cache: "no-store" });
      if (answer.ok) {
        const html = await answer.text();
        const kept = place.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
        place.innerHTML = html;
        for (const link of place.querySelectorAll("a[href]")) {
          if (location.pathname.startsWith(link.getAttribute("href"))) link.closest(".alarm").remove();
          else if (kept && link.getAttribute("href") === kept) link.focus();
        }
      }
    } catch { /* asked again with the next one */ } finally {
      asking = false;
      if (again) ask();
    }
  };
  document.addEventListener("wardbook:pointer", (event) => {
    if (event.detail.resource === "CriticalResult") ask();
  });
  document.addEventListener("wardbook:reset", ask);
})();
