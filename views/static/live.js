/* What changes elsewhere, told to this page: document events "wardbook:pointer" (detail: {event, resource, id, branch_id,
   version}) and "wardbook:reset" (fetch everything anew). A page names the branches it shows in data-live-branches on
   <body> or on [data-live-state], or later by dispatching "wardbook:follow" with {branches: [numbers] or null}. */

(() => {
  "use strict";
  const KEY = "wardbook-live-last";
  const PATIENCE = 2000;  // milliseconds a break may last before anybody is told of it
  const place = document.querySelector("[data-live-state]");
  const say = { live: "Live", connecting: "Connecting…", offline: "Offline – showing what was known at {time}" };
  for (const [name, text] of Object.entries(place?.dataset ?? {})) {
    if (name.startsWith("say")) say[name.slice(3).toLowerCase()] = text;
  }

  let state = "";
  let known = Date.now();  // when this page last knew that it knows everything
  let breaking;

  const clock = () => {
    const zone = place?.dataset.liveZone;
    const how = { hour: "2-digit", minute: "2-digit", hourCycle: "h23", ...(zone ? { timeZone: zone } : {}) };
    return new Intl.DateTimeFormat(document.documentElement.lang || "en", how).format(known);
  };
  const tell = (next) => {
    clearTimeout(breaking);
    breaking = undefined;
    state = next;
    if (!place) return;
    const text = say[next].replace("{time}", clock());
    place.hidden = false;
    place.dataset.liveState = next;
    place.setAttribute("aria-live", "polite");
    if (place.textContent !== text) place.textContent = text;
  };
  const broken = () => {
    if (state !== "offline" && !breaking) breaking = setTimeout(() => tell("offline"), PATIENCE);
  };

  if (!window.io) {
    tell("offline");
    return;
  }

  const stored = {
    get: () => { try { return sessionStorage.getItem(KEY); } catch { return null; } },
    set: (value) => { try { sessionStorage.setItem(KEY, value); } catch { /* no storage: the page itself remembers */ } },
  };
  const order = (event) => event.split("-").map(BigInt);
  const after = (one, other) => {
    const [a, b] = [order(one), order(other)];
    return a[0] === b[0] ? a[1] > b[1] : a[0] > b[0];
  };
  // The page itself is the truth: one that comes back from the history knows less than the tab.
  let last = stored.get();
  if (!/^\d+-\d+$/.test(last ?? "")) last = null;
  const remember = (event) => {
    last = event;
    stored.set(event);
    known = Date.now();
  };

  const named = (document.querySelector("[data-live-branches]")?.dataset.liveBranches ?? "").split(/[\s,]+/).filter(Boolean).map(Number);
  let branches = named.length ? named : null;

  const socket = window.io({ transports: ["websocket"], reconnectionDelay: 500, reconnectionDelayMax: 15000, timeout: 10000 });
  const follow = () => socket.emit("follow", { since: last, branches });
  const pass = (pointer) => {
    if (last !== null && !after(pointer.event, last)) return;
    remember(pointer.event);
    document.dispatchEvent(new CustomEvent("wardbook:pointer", { detail: pointer }));
  };

  socket.on("connect", follow);
  socket.on("caught-up", (answer) => {
    for (const pointer of answer.missed) pass(pointer);
    if (answer.reset || last === null || after(answer.last, last)) remember(answer.last);
    if (answer.visits) known = Date.now();
    tell(answer.visits ? "live" : "offline");
    if (answer.reset) document.dispatchEvent(new CustomEvent("wardbook:reset"));
  });
  socket.on("pointer", pass);
  socket.io.on("ping", () => { known = Date.now(); });
  socket.on("disconnect", (reason) => {
    if (reason !== "ping timeout" && state === "live") known = Date.now();
    broken();
  });
  socket.on("connect_error", broken);
  document.addEventListener("wardbook:follow", (event) => {
    branches = event.detail?.branches ?? null;
    if (socket.connected) follow();
  });

  // A page that goes into the browser's history keeps no connection, and catches up when it comes back.
  window.addEventListener("pagehide", () => socket.disconnect());
  window.addEventListener("pageshow", (event) => { if (event.persisted) socket.connect(); });

  tell("connecting");
})();
