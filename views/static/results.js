/* How many results wait, kept current in the navigation of an open page. Without this file it is so with the next page. */

(() => {
  "use strict";
  const place = document.querySelector("[data-results]");
  if (!place) return;
  const ask = async () => {
    try {
      const answer = await fetch(place.dataset.results, { credentials: "same-origin", redirect: "error", cache: "no-store" });
      if (!answer.ok) return;
      const { count } = await answer.json();
      for (const link of document.querySelectorAll(`a[href="${place.dataset.inbox}"]`)) {
        let number = link.querySelector(".count");
        if (!number && count) {
          number = document.createElement("span");
          number.className = "count";
          link.append(" ", number);
        }
        if (number) {
          number.textContent = count || "";
          number.hidden = !count;
        }
      }
    } catch { /* asked again with the next one */ }
  };
  document.addEventListener("wardbook:pointer", (event) => {
    if (event.detail.resource === "ServiceRequest") ask();
  });
  document.addEventListener("wardbook:reset", ask);
})();
