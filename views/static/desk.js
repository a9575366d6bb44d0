/* The front desk in the browser: steps without leaving the page, minutes that count by themselves, and the board fetched
   anew when something changed elsewhere. Every page works without this file. */

(() => {
  "use strict";
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const board = $("[data-desk]");

  /** Put a new board in place of the old one; the focus stays where it was, or goes to the card it was on. */
  const put = (html) => {
    const at = document.activeElement;
    const inside = board.contains(at);
    const card = inside ? at.closest(".desk-card")?.id : null;
    const open = $$("details[open]", board).map((one) => one.id || $("summary", one)?.id).filter(Boolean);
    board.innerHTML = html;
    for (const id of open) {
      const found = document.getElementById(id);
      const details = found?.closest("details");
      if (details && details.classList.contains("fold")) details.open = true;
    }
    if (inside) (document.getElementById(at.id) ?? document.getElementById(card) ?? null)?.focus();
    const said = $("[data-desk-told]", board)?.textContent;
    const place = $("[data-desk-said]");
    if (said && place) place.textContent = said;
    $("[data-summary]", board)?.focus();
    minutes();
  };

  const asked = () => {
    const filter = $("[data-desk-filter]");
    if (!filter) return "";
    const said = new URLSearchParams(new FormData(filter));
    for (const [name, value] of [...said]) if (!value) said.delete(name);
    return said.toString();
  };

  let under, again = false;
  const busy = () => Boolean($(".desk-off[open]", board));
  const fetchBoard = async () => {
    if (under || busy()) { again = true; return; }
    under = new AbortController();
    again = false;
    try {
      const query = asked();
      const join = board.dataset.desk.includes("?") ? "&" : "?";
      const answer = await fetch(board.dataset.desk + (query ? join + query : ""), {
        credentials: "same-origin", redirect: "error", cache: "no-store", signal: under.signal,
      });
      if (answer.ok && !busy()) put(await answer.text());
    } catch { /* it is asked again with the next change */ } finally {
      under = undefined;
      if (again) later();
    }
  };
  let timer;
  const later = () => { clearTimeout(timer); timer = setTimeout(fetchBoard, 150); };

  /** How long everybody has waited, by this machine's clock. */
  const minutes = () => {
    for (const tag of $$("[data-since]", board)) {
      const waited = Math.max(Math.floor((Date.now() - Date.parse(tag.dataset.since)) / 60000), 0);
      const text = $("span", tag);
      const told = tag.dataset.say.replace("{n}", waited);
      if (text && text.textContent !== told) text.textContent = told;
      const long = waited > Number(tag.dataset.long);
      tag.classList.toggle("tag-warn", long);
      tag.closest(".desk-card")?.classList.toggle("is-long", long);
    }
  };

  if (board) {
    document.addEventListener("wardbook:pointer", (event) => {
      const told = event.detail ?? {};
      const here = String(told.branch_id ?? "") === board.dataset.deskBranch;
      if ((told.resource ?? "Appointment") === "Appointment" && (here || told.branch_id === undefined)) later();
    });
    document.addEventListener("wardbook:reset", later);
    setInterval(minutes, 15000);
    const every = Number(board.dataset.deskEvery ?? 0);
    if (every) setInterval(later, every * 1000);

    board.addEventListener("submit", async (event) => {
      const form = event.target.closest("form[data-desk-step]");
      if (!form) return;
      event.preventDefault();
      if (form.dataset.sent) return;
      form.dataset.sent = "1";
      const body = new FormData(form);
      under?.abort();
      try {
        const answer = await fetch(form.action, {
          method: "POST", body, credentials: "same-origin", redirect: "error", headers: { "X-Wardbook": "board" },
        });
        if (!(answer.headers.get("Content-Type") ?? "").startsWith("text/html") || ![200, 409, 422].includes(answer.status)) throw new Error();
        const html = await answer.text();
        if (/<html/i.test(html)) throw new Error();
        form.closest("details")?.removeAttribute("open");
        put(html);
      } catch {
        delete form.dataset.sent;
        HTMLFormElement.prototype.submit.call(form);  // the plain way says what is wrong
      }
    });
    board.addEventListener("toggle", (event) => {
      if (event.target.matches?.("[data-desk-off]") && !event.target.open && again) later();
    }, true);
    board.addEventListener("keydown", (event) => {
      const pop = event.target.closest?.("[data-desk-off][open]");
      if (event.key === "Escape" && pop) {
        pop.open = false;
        $("summary", pop).focus();
      }
    });
    document.addEventListener("click", (event) => {
      for (const pop of $$("[data-desk-off][open]", board)) if (!pop.contains(event.target)) pop.open = false;
    });
    const filter = $("[data-desk-filter]");
    filter?.addEventListener("input", later);
    filter?.addEventListener("submit", (event) => { event.preventDefault(); fetchBoard(); });
  }

  /* A week: the hours of Monday for the days until Friday. */
  const copy = $("[data-copy-monday]");
  if (copy) {
    copy.hidden = false;
    copy.addEventListener("click", () => {
      const from = $$("#day1 .week-pair");
      for (const day of [2, 3, 4, 5]) {
        const place = $(`#day${day} .week-pairs`);
        const pairs = $$(".week-pair", place);
        while (pairs.length < from.length) {
          const more = pairs[pairs.length - 1].cloneNode(true);
          place.append(more);
          pairs.push(more);
        }
        for (const [at, pair] of pairs.entries()) {
          const wanted = from[at] ? $$("input", from[at]).map((field) => field.value) : ["", ""];
          $$("input", pair).forEach((field, end) => { field.value = wanted[end]; });
        }
      }
    });
  }
})();
