"use strict";
/* The calendar. Every page works without this file: days are a list, booking and moving are forms. With it there are
   columns to drag in, forms open in a dialog, and what other desks book appears by itself. Uses wardbook.js's small
   functions ($, $$, make, icon, token, Find). */

(() => {
  const page = $("[data-cal]");
  const dialog = $("[data-cal-dialog]");
  const inside = dialog && $("[data-cal-inside]", dialog);
  const wide = matchMedia("(min-width: 48rem)");
  let settings = page ? JSON.parse(page.dataset.settings) : null;
  let cards = new Map();
  let grid = null;
  let dragging = false;
  let late = false;  // whether something changed while a card was dragged

  /* Clocks: cards carry the branch's offset, columns show the branch's clock whatever this computer's says. ------------ */

  const wall = (iso) => iso.slice(0, 19);
  const two = (n) => String(n).padStart(2, "0");
  const wallOf = (date) => `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}T${two(date.getHours())}:${two(date.getMinutes())}:00`;
  const clocks = new Map();
  function clockAt(zone) {
    if (!clocks.has(zone)) {
      clocks.set(zone, new Intl.DateTimeFormat("en-GB", {
        timeZone: zone, hourCycle: "h23", year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit",
      }));
    }
    return clocks.get(zone);
  }
  /** How many minutes a zone's clocks are ahead of UTC at an instant. */
  function ahead(zone, instant) {
    const part = Object.fromEntries(clockAt(zone).formatToParts(instant).map(({ type, value }) => [type, Number(value)]));
    return Math.round((Date.UTC(part.year, part.month - 1, part.day, part.hour, part.minute, part.second) - Math.floor(instant / 1000) * 1000) / 60000);
  }
  const offsetText = (minutes) => `${minutes < 0 ? "-" : "+"}${two(Math.floor(Math.abs(minutes) / 60))}:${two(Math.abs(minutes) % 60)}`;
  /** An hour of the branch's clock as ISO 8601 with its offset; null for one that clocks leave out. */
  function instantOf(text) {
    const naive = Date.parse(`${text}Z`);
    let minutes = ahead(settings.zone, naive);
    minutes = ahead(settings.zone, naive - minutes * 60000);
    return ahead(settings.zone, naive - minutes * 60000) === minutes ? `${text}${offsetText(minutes)}` : null;
  }

  /* Asking the server ------------------------------------------------------------------------------------------------- */

  const told = page && $("[data-cal-told]", page);
  const say = (text) => { if (told && told.textContent !== text) told.textContent = text; };

  async function ask(address, options = {}) {
    const answer = await fetch(address, {
      credentials: "same-origin", cache: "no-store", ...options,
      headers: { Accept: "application/json", "X-CSRFToken": token(), ...options.headers },
    });
    const body = answer.headers.get("Content-Type")?.includes("json") ? await answer.json() : {};
    return { ok: answer.ok, status: answer.status, body };
  }

  let asking = 0;
  async function load() {
    const mine = ++asking;
    const query = new URLSearchParams({ from: settings.from, to: settings.to, branch_id: settings.branch });
    for (const [name, values] of [["practitioner_id", settings.doctors], ["room_id", settings.rooms], ["visit_type_id", settings.kinds], ["status", settings.statuses]]) {
      for (const value of values) query.append(name, value);
    }
    try {
      const { ok, body } = await ask(`${settings.api}between?${query}`);
      if (mine !== asking) return;
      if (!ok) throw new Error("refused");
      cards = new Map(body.result.map((card) => [card.id, card]));
      say("");
      draw();
    } catch {
      if (mine === asking) say(page.dataset.sayFail);
    }
  }

  const fits = (card) =>
    card.branch_id === settings.branch && settings.statuses.includes(card.status) &&
    Date.parse(card.start) < Date.parse(settings.to) && Date.parse(card.end) > Date.parse(settings.from) &&
    (!settings.doctors.length || settings.doctors.includes(card.practitioner_id)) &&
    (!settings.rooms.length || settings.rooms.includes(card.room_id)) &&
    (!settings.kinds.length || settings.kinds.includes(card.visit_type_id));

  /** Fetch one visit anew, and show it, or not any more. */
  async function renew(id) {
    try {
      const { ok, status, body } = await ask(`${settings.api}${id}`);
      if (ok && fits(body.result)) cards.set(id, body.result);
      else if (ok || status === 404 || status === 403) cards.delete(id);
    } catch { say(page.dataset.sayFail); }
  }

  /* What other desks do: pointers come in bursts, and no card is pulled from under somebody's hand ------------------------ */

  const pointed = new Map();
  let soon;
  function later() {
    clearTimeout(soon);
    soon = setTimeout(async () => {
      const wanted = [...pointed.keys()];
      pointed.clear();
      if (wanted.length > 12) await load();
      else if (wanted.length) { await Promise.all(wanted.map(renew)); draw(); }
    }, 120);
  }
  if (page) {
    document.addEventListener("wardbook:pointer", ({ detail }) => {
      if (settings.view === "month" || detail.resource !== "Appointment") return;
      const known = cards.get(detail.id);
      if (known && detail.version !== undefined && known.version >= detail.version) return;
      if (!known && detail.branch_id && detail.branch_id !== settings.branch) return;
      pointed.set(detail.id, detail.version);
      later();
    });
    document.addEventListener("wardbook:reset", () => { if (settings.view !== "month") load(); });
  }

  /* Drawing ------------------------------------------------------------------------------------------------------------ */

  const stateOf = (card) => settings.states[card.status] ?? [card.status, "dot", "plain"];
  const hrefOf = (id) => settings.visit.replace("/0/", `/${id}/`);
  const nameOf = (card) => card.patient ?? page.dataset.sayNotShown;

  function draw() {
    if (dragging) { late = true; return; }
    list();
    columns();
  }

  function marks(card) {
    return [
      card.walk_in ? make("span", { class: "tag" }, page.dataset.sayWalkIn) : null,
      card.queue_number && ["arrived", "checked-in"].includes(card.status) ? make("span", { class: "tag" }, page.dataset.sayNumber.replace("{n}", card.queue_number)) : null,
    ].filter(Boolean);
  }

  /** The list, as calendar/_list.html writes it. */
  function list() {
    const place = $("[data-cal-list]", page);
    if (!place) return;
    const focused = place.contains(document.activeElement) ? document.activeElement.dataset.visit : null;
    const groups = new Map();
    for (const card of [...cards.values()].sort((a, b) => Date.parse(a.start) - Date.parse(b.start) || a.id - b.id)) {
      const byDoctor = settings.by === "doctor";
      const name = byDoctor ? card.practitioner : card.room ?? page.dataset.sayNoRoom;
      const at = settings.columns.findIndex(({ id }) => id === (byDoctor ? card.practitioner_id : card.room_id));
      const key = `${card.start.slice(0, 10)} ${String(at < 0 ? 9999 : at).padStart(4, "0")} ${name} ${byDoctor ? card.practitioner_id : card.room_id}`;
      if (!groups.has(key)) groups.set(key, { day: card.start.slice(0, 10), name, cards: [] });
      groups.get(key).cards.push(card);
    }
    const heads = page.dataset.sayColumns.split(", ");
    const found = [];
    let day = null;
    for (const [, group] of [...groups].sort(([a], [b]) => (a < b ? -1 : 1))) {
      const spoken = new Intl.DateTimeFormat(document.documentElement.lang || "en", { weekday: "long", day: "numeric", month: "long", timeZone: "UTC" }).format(Date.parse(`${group.day}T00:00Z`));
      if (settings.days > 1 && group.day !== day) found.push(make("h2", { class: "cal-day" }, spoken));
      day = group.day;
      const rows = group.cards.map((card) => {
        const [word, drawing, tone] = stateOf(card);
        return make("tr", { class: `is-${card.status}` },
          make("td", { class: "cal-time" }, make("time", {}, card.start.slice(11, 16)), make("span", {}, `–${card.end.slice(11, 16)}`)),
          make("th", { scope: "row", class: "cal-who" }, make("a", { href: hrefOf(card.id), "data-visit": card.id }, nameOf(card)), " ", card.patient_mrn ? make("span", { class: "mrn quiet" }, card.patient_mrn) : null),
          make("td", { class: "cal-kind" }, card.visit_type),
          make("td", { class: "cal-where" }, (settings.by === "doctor" ? card.room : card.practitioner) ?? ""),
          make("td", { class: "cal-tags" }, make("span", { class: `tag tag-${tone} cal-state` }, icon(drawing), word), ...marks(card).flatMap((mark) => [" ", mark])));
      });
      found.push(make("section", { class: "cal-group" },
        make("h3", {}, `${group.name} `, make("span", { class: "count" }, String(rows.length))),
        make("div", { class: "table-wrap" }, make("table", { class: "table cal-table" },
          make("caption", { class: "sr-only" }, `${group.name}, ${spoken}`),
          make("thead", { class: "sr-only" }, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
          make("tbody", {}, ...rows)))));
    }
    place.replaceChildren(...found);
    $("[data-cal-empty]", page).hidden = groups.size > 0;
    if (focused) $(`[data-visit="${focused}"]`, place)?.focus();
  }

  /** The face of a card in the columns: when, who, how it stands, what for. */
  function face(card) {
    const [word, drawing] = stateOf(card);
    const short = card.minutes < 25;
    const top = make("span", { class: "cal-card-top" },
      make("span", { class: "cal-card-time" }, card.start.slice(11, 16)),
      make("span", { class: "cal-card-name" }, nameOf(card)),
      make("span", { class: "cal-card-state", title: word }, icon(drawing), make("span", { class: "sr-only" }, word)));
    const line = [card.visit_type, settings.by === "doctor" ? card.room : card.practitioner, ...marks(card).map((mark) => mark.textContent)].filter(Boolean).join(" · ");
    return make("span", { class: "cal-card", title: `${card.start.slice(11, 16)}–${card.end.slice(11, 16)} ${nameOf(card)}, ${word}, ${line}` },
      top, short ? make("span", { class: "sr-only" }, line) : make("span", { class: "cal-card-line" }, card.status === "booked" ? "" : make("b", { class: "cal-card-word" }, `${word} · `), line));
  }

  const columnOf = (card) => String(settings.by === "doctor" ? card.practitioner_id : card.room_id ?? 0);

  function shadows(resources) {
    if (settings.by !== "doctor") return [];
    const found = [];
    for (let n = 0; n < settings.days; n += 1) {
      const day = new Date(Date.parse(`${settings.date}T00:00Z`) + n * 86400000).toISOString().slice(0, 10);
      const next = new Date(Date.parse(`${day}T00:00Z`) + 86400000).toISOString().slice(0, 10);
      for (const { id } of resources) {
        let from = `${day}T00:00`;
        const work = settings.hours.filter((hours) => String(hours.id) === id && hours.end > from && hours.start < `${next}T00:00`);
        for (const { start, end } of work.sort((a, b) => (a.start < b.start ? -1 : 1))) {
          if (start > from) found.push({ id: `off-${id}-${from}`, start: from, end: start, resourceIds: [id], display: "background" });
          if (end > from) from = end;
        }
        if (from < `${next}T00:00`) found.push({ id: `off-${id}-${from}`, start: from, end: `${next}T00:00`, resourceIds: [id], display: "background" });
      }
    }
    return found;
  }

  function columns() {
    const place = $("[data-cal-grid]", page);
    if (!place || !window.EventCalendar || !wide.matches || settings.view === "list") return;
    const resources = settings.columns.map(({ id, title }) => ({ id: String(id), title }));
    for (const card of cards.values()) {
      const id = columnOf(card);
      if (!resources.some((column) => column.id === id)) {
        resources.push({ id, title: (settings.by === "doctor" ? card.practitioner : card.room) ?? page.dataset.sayNoRoom });
      }
    }
    place.hidden = resources.length === 0;
    $("[data-cal-nobody]", page).hidden = resources.length > 0;
    if (!resources.length) return;
    const events = [...cards.values()].map((card) => ({
      id: String(card.id), start: wall(card.start), end: wall(card.end), resourceIds: [columnOf(card)], title: nameOf(card),
      classNames: [`is-${card.status}`, card.minutes < 20 ? "is-short" : ""].filter(Boolean),
      editable: settings.update && ["booked", "pending"].includes(card.status),
      startEditable: settings.update && ["booked", "pending"].includes(card.status),
      durationEditable: settings.update && ["booked", "pending"].includes(card.status),
    })).concat(shadows(resources));
    const shape = {
      view: settings.view === "week" ? "resourceTimeGridWeek" : "resourceTimeGridDay",
      date: settings.date, resources, events,
      slotMinTime: `${two(settings.earliest)}:00`, slotMaxTime: `${two(settings.latest)}:00`,
      columnWidth: resources.length * (settings.view === "week" ? settings.days : 1) > 4 ? "minmax(9rem, 1fr)" : "minmax(0, 1fr)",
      timeZone: offsetText(ahead(settings.zone, Date.now())),
    };
    if (grid) {
      const top = $(".ec-main", place)?.scrollTop;
      for (const [name, value] of Object.entries(shape)) grid.setOption(name, value);
      if (top !== undefined) requestAnimationFrame(() => { const main = $(".ec-main", place); if (main) main.scrollTop = top; });
      return;
    }
    grid = window.EventCalendar.create(place, {
      ...shape,
      headerToolbar: { start: "", center: "", end: "" },
      locale: document.documentElement.lang || "en", firstDay: 1, allDaySlot: false, nowIndicator: true, datesAboveResources: true,
      slotDuration: "00:15", slotHeight: 26, slotLabelInterval: "01:00", slotEventOverlap: false, snapDuration: "00:05",
      flexibleSlotTimeLimits: true, scrollTime: `${two(Math.max(settings.earliest, 7))}:00`,
      slotLabelFormat: { hour: "2-digit", minute: "2-digit", hourCycle: "h23" }, dayHeaderFormat: { weekday: "short", day: "numeric", month: "short" },
      editable: settings.update, eventStartEditable: settings.update, eventDurationEditable: settings.update, selectable: settings.create, unselectAuto: true,
      longPressDelay: 400,
      eventContent: ({ event }) => (cards.has(Number(event.id)) ? { domNodes: [face(cards.get(Number(event.id)))] } : undefined),
      eventClick: ({ event }) => { if (cards.has(Number(event.id))) open(hrefOf(event.id)); },
      eventDragStart: () => { dragging = true; },
      eventDragStop: () => { dragging = false; },
      eventResizeStart: () => { dragging = true; },
      eventResizeStop: () => { dragging = false; },
      eventDrop: (info) => shift(info),
      eventResize: (info) => shift(info),
      select: (info) => {
        const start = instantOf(info.startStr.slice(0, 19));
        const minutes = Math.round((info.end - info.start) / 60000);
        grid.unselect();
        if (!start) return say(page.dataset.sayGap);
        const column = info.resource?.id;
        const query = new URLSearchParams({ start, branch_id: settings.branch });
        if (minutes > 15) query.set("minutes", minutes);
        if (column && column !== "0") query.set(settings.by === "doctor" ? "practitioner_id" : "room_id", column);
        if (settings.by === "room" && settings.doctors.length === 1) query.set("practitioner_id", settings.doctors[0]);
        if (settings.kinds.length === 1) query.set("visit_type_id", settings.kinds[0]);
        return open(`${settings.new}?${query}`);
      },
    });
  }

  wide.addEventListener("change", () => { if (page && wide.matches) draw(); });

  /* Moving by hand: a refused move puts the card back and says what else is free ------------------------------------------ */

  async function shift({ event, newResource, revert }) {
    const card = cards.get(Number(event.id));
    const start = card && instantOf(wallOf(event.start));
    if (!start) {
      revert();
      say(page.dataset.sayGap);
      return;
    }
    const minutes = Math.round((event.end - event.start) / 60000);
    const body = { start, minutes, version: card.version };
    if (newResource && newResource.id !== "0") body[settings.by === "doctor" ? "practitioner_id" : "room_id"] = Number(newResource.id);
    let answer;
    try {
      answer = await ask(`${settings.api}${card.id}/reschedule`, {
        method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" },
      });
    } catch {
      revert();
      say(page.dataset.sayFail);
      return;
    }
    if (answer.ok) {
      cards.delete(card.id);
      if (fits(answer.body.result)) cards.set(answer.body.result.id, answer.body.result);
      say("");
      draw();
      return;
    }
    revert();
    if (late) { late = false; draw(); }
    if (answer.status !== 409 && answer.status !== 422) return say(answer.body.message ?? page.dataset.sayFail);
    const form = new FormData();
    const at = wallOf(event.start);
    for (const [name, value] of Object.entries({
      csrf_token: token(), version: card.version, day: at.slice(0, 10), time: at.slice(11, 16), minutes,
      practitioner: body.practitioner_id ?? card.practitioner_id, room: body.room_id ?? card.room_id ?? "",
    })) form.append(name, value);
    send(`${hrefOf(card.id)}move`, form, { then: "close", of: card.id });
  }

  /* Dialogs: the pages' own forms, shown here and sent from here ------------------------------------------------------------ */

  let opener = null;

  /** Put what a page has to say into the dialog. */
  function put(html, address) {
    const other = new DOMParser().parseFromString(html, "text/html");
    const part = $("[data-cal-part]", other);
    if (!part) { location.assign(address); return false; }
    const said = $$(".flashes .flash", other);
    for (const without of $$("noscript", part)) without.remove();
    for (const heading of $$("h1", part)) {
      const lower = make("h2", { id: "cal-dialog-title" });
      lower.append(...heading.childNodes);
      heading.replaceWith(lower);
    }
    inside.replaceChildren(...said, document.importNode(part, true));
    for (const box of $$("[data-dismiss]", inside)) box.remove();
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    dress(inside);
    const empty = $$("[data-who] input[type=search], select[name=visit_type]", inside).find((field) => !field.value);
    const first = $("[data-summary]", inside) ?? $("[data-cal-found] button", inside) ?? empty ?? $("[name=save]", $("[data-cal-part=book]", inside) ?? make("p")) ?? $("h2", inside);
    if (first.matches("h2")) first.tabIndex = -1;
    first.focus();
    return true;
  }

  async function open(address) {
    if (!dialog) { location.assign(address); return; }
    opener = document.activeElement;
    try {
      const answer = await fetch(address, { credentials: "same-origin", cache: "no-store", headers: { Accept: "text/html" } });
      if (answer.redirected && !answer.url.includes("/appointments/")) { location.assign(address); return; }
      put(await answer.text(), address);
    } catch { say(page.dataset.sayFail); }
  }

  /** Send a form of the dialog. What is refused comes back into it; what is done is shown in the calendar. */
  async function send(address, body, { then = "", of = null } = {}) {
    dialog.setAttribute("aria-busy", "true");
    try {
      const answer = await fetch(address, { method: "POST", body, credentials: "same-origin", headers: { Accept: "text/html" } });
      const html = await answer.text();
      const done = answer.redirected && /\/appointments\/(\d+)\/$/.exec(new URL(answer.url).pathname);
      if (answer.redirected && !done) { location.assign(answer.url); return; }
      if (!done) { put(html, address); return; }
      await Promise.all([...new Set([Number(done[1]), of].filter(Boolean))].map(renew));
      draw();
      if (then === "close") {
        const other = new DOMParser().parseFromString(html, "text/html");
        const said = $$(".flashes .flash", other);
        $(".flashes")?.replaceChildren(...said);
        setTimeout(() => { for (const box of said) box.remove(); }, 8000);
        dialog.close();
      } else put(html, answer.url);
    } catch {
      const box = make("div", { class: "note-box is-danger", role: "alert" }, icon("warn"), make("div", {}, page.dataset.sayFail));
      inside.prepend(box);
      if (!dialog.open) dialog.showModal();
    } finally { dialog.removeAttribute("aria-busy"); }
  }

  if (dialog) {
    $("[data-cal-close]", dialog).addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => {
      inside.replaceChildren();
      for (const form of [...dirty]) if (!form.isConnected) dirty.delete(form);
      if (opener?.isConnected) opener.focus();
    });
    dialog.addEventListener("submit", (event) => {
      const form = event.target;
      if (!form.matches("[data-cal-form]") || event.defaultPrevented || (form.dataset.confirm && form.dataset.sure !== "yes")) return;
      event.preventDefault();
      if (dialog.hasAttribute("aria-busy")) return;
      const pressed = event.submitter;
      const body = new FormData(form);
      if (pressed?.name) body.append(pressed.name, pressed.value);
      const books = form.closest("[data-cal-part='book']");
      send(form.action, body, {
        then: books ? "close" : form.dataset.calThen ?? "", of: Number($("[data-visit-id]", inside)?.dataset.visitId) || null,
      });
    });
    dialog.addEventListener("click", (event) => {
      const link = event.target.closest("a");
      if (link?.matches("[data-cal-leave]")) { event.preventDefault(); dialog.close(); }
      if (link?.matches("[data-cal-visit]")) { event.preventDefault(); open(link.href); }
    });
  }

  /* Whose visit: the same search as everywhere, choosing instead of opening ------------------------------------------------ */

  class Who {
    constructor(field) {
      this.field = field;
      this.say = field.dataset;
      this.input = $("input[type=search]", field);
      this.live = make("div", { class: "sr-only", role: "status", "aria-live": "polite" });
      this.list = make("ul", { class: "find-list", role: "listbox", id: "who-list", "aria-label": this.input.labels[0].firstChild.textContent.trim() });
      this.pop = make("div", { class: "find-pop", hidden: true }, this.list);
      const box = make("div", { class: "cal-search" });
      this.input.replaceWith(box);
      box.append(this.input, this.pop, this.live);
      for (const [name, value] of Object.entries({ role: "combobox", "aria-autocomplete": "list", "aria-controls": "who-list", "aria-expanded": "false" })) this.input.setAttribute(name, value);
      this.at = -1;
      this.asked = "";
      this.input.addEventListener("input", () => { clearTimeout(this.timer); this.timer = setTimeout(() => this.look(), 120); });
      this.input.addEventListener("keydown", (event) => this.key(event));
      field.addEventListener("focusout", (event) => { if (!field.contains(event.relatedTarget)) this.open(false); });
      this.list.addEventListener("mousedown", (event) => event.preventDefault());
      this.list.addEventListener("click", (event) => {
        const option = event.target.closest("[role=option]");
        if (!option) return;
        event.preventDefault();
        this.take(option.patient);
      });
    }

    options() { return $$("[role=option]", this.list); }

    open(yes) {
      this.pop.hidden = !yes;
      this.input.setAttribute("aria-expanded", String(yes));
      if (!yes) this.go(-1);
    }

    go(at) {
      const options = this.options();
      options[this.at]?.setAttribute("aria-selected", "false");
      this.at = at;
      if (!options[at]) { this.input.removeAttribute("aria-activedescendant"); return; }
      options[at].setAttribute("aria-selected", "true");
      options[at].scrollIntoView({ block: "nearest" });
      this.input.setAttribute("aria-activedescendant", options[at].id);
    }

    key(event) {
      const last = this.options().length - 1;
      if (event.key === "Escape" && !this.pop.hidden) { event.preventDefault(); event.stopPropagation(); this.open(false); return; }
      if (event.key === "Enter" && !this.pop.hidden && last >= 0) {
        event.preventDefault();
        if (this.at >= 0 || last === 0) this.take(this.options()[Math.max(this.at, 0)].patient);
        return;
      }
      const to = { ArrowDown: this.at >= last ? 0 : this.at + 1, ArrowUp: this.at <= 0 ? last : this.at - 1 }[event.key];
      if (to === undefined || last < 0) return;
      event.preventDefault();
      this.open(true);
      this.go(to);
    }

    async look() {
      const q = this.input.value.trim();
      this.stale?.abort();
      if (q === this.asked) { if (q) this.open(true); return; }
      if (!q) { this.asked = ""; this.list.replaceChildren(); this.open(false); return; }
      const asking = (this.stale = new AbortController());
      try {
        const answer = await fetch(`${this.say.findUrl}?${new URLSearchParams({ q })}`, { signal: asking.signal, headers: { Accept: "application/json" }, credentials: "same-origin" });
        if (!answer.ok) throw new Error(String(answer.status));
        const { results, more } = await answer.json();
        if (asking.signal.aborted) return;
        this.asked = q;
        $("[data-who-candidates]", this.field)?.remove();
        this.list.replaceChildren(...results.slice(0, 12).map((patient, at) => {
          const line = Find.prototype.line.call({ say: this.say }, patient);
          const option = make("div", { class: "hit", role: "option", id: `who-${at}`, "aria-selected": "false" }, ...line.childNodes);
          option.patient = patient;
          return make("li", { role: "none" }, option);
        }));
        if (!results.length) this.list.append(make("li", { class: "find-note", role: "none" }, this.say.sayNone));
        this.at = -1;
        const n = results.length;
        this.live.textContent = n === 0 ? this.say.sayNone : n === 1 ? this.say.sayOne : (more ? this.say.sayMore : this.say.sayMany).replaceAll("{n}", n);
        this.open(true);
      } catch (error) {
        if (error.name === "AbortError") return;
        this.asked = null;
        this.live.textContent = this.say.sayFail;
      }
    }

    take(patient) {
      this.open(false);
      const again = make("button", { class: "btn btn-quiet", type: "button" }, this.say.sayOther);
      const chosen = make("div", { class: "chosen" },
        make("span", {}, make("b", {}, patient.name), " ", make("span", { class: "quiet num" }, patient.birth), " ", make("span", { class: "quiet mrn" }, patient.mrn)), again);
      const key = make("input", { type: "hidden", name: "patient_id", value: patient.id });
      $("[data-who-candidates]", this.field)?.remove();
      $(".error", this.field)?.remove();
      const box = this.input.parentElement;
      box.hidden = true;
      box.after(chosen, key);
      again.addEventListener("click", () => { chosen.remove(); key.remove(); box.hidden = false; this.input.select(); this.input.focus(); });
      const next = $("select[name=visit_type]", this.field.closest("form"));
      (next && !next.value ? next : again).focus();
    }
  }

  /** What forms of a dialog or a page want besides themselves. */
  function dress(root) {
    for (const field of $$("[data-who]", root)) if ($("input[type=search]", field)) new Who(field);
    for (const form of $$("[data-cal-form]", root)) {
      const kind = $("select[data-minutes]", form);
      const minutes = kind && form.elements.minutes;
      if (!minutes) continue;
      const usual = JSON.parse(kind.dataset.minutes);
      const show = () => { minutes.placeholder = usual[kind.value]?.minutes ?? minutes.placeholder; };
      kind.addEventListener("change", show);
      show();
      // Another branch has other doctors and rooms: the server fills the choices in, and nothing else changes.
      form.elements.branch?.addEventListener("change", () => {
        form.elements.practitioner.value = "";
        form.elements.room.value = "";
        const button = make("button", { name: "again", value: "1", hidden: true });
        form.append(button);
        form.requestSubmit(button);
      });
    }
  }

  /* Going on: another day, another view, other filters; the address says which -------------------------------------------- */

  let going = 0;
  async function go(address, { remember = true } = {}) {
    const mine = ++going;
    $("[data-cal-grid]", page)?.setAttribute("aria-busy", "true");
    try {
      const answer = await fetch(address, { credentials: "same-origin", cache: "no-store", headers: { Accept: "text/html" } });
      const other = new DOMParser().parseFromString(await answer.text(), "text/html");
      const next = $("[data-cal]", other);
      if (mine !== going) return;
      if (!answer.ok || !next) { location.assign(address); return; }
      if (remember) history.pushState(null, "", address);
      const focused = document.activeElement?.closest?.("[data-cal]") ? document.activeElement : null;
      const again = focused?.id ? `#${focused.id}` : focused?.rel ? `[rel="${focused.rel}"]` : null;
      const branch = settings.branch;
      const live = $("[data-live-state]", page);
      const opened = $("[data-cal-more]", page)?.open;
      settings = JSON.parse(next.dataset.settings);
      asking += 1;
      if (grid) { window.EventCalendar.destroy(grid); grid = null; }
      page.replaceChildren(...document.importNode(next, true).childNodes);
      const empty = $("[data-live-state]", page);
      if (live && empty) empty.replaceWith(live);
      if (opened) $("[data-cal-more]", page).open = true;
      if (settings.branch !== branch) document.dispatchEvent(new CustomEvent("wardbook:follow", { detail: { branches: [settings.branch] } }));
      cards = new Map();
      start();
      if (again) $(again, page)?.focus();
    } catch { location.assign(address); }
  }

  function start() {
    const bar = $("[data-cal-bar]", page);
    $("[data-cal-show]", bar).hidden = true;
    page.classList.toggle("cal-on", settings.view === "day" || settings.view === "week");
    for (const button of $$("[data-print]", page)) {
      button.hidden = false;
      button.addEventListener("click", () => print());
    }
    const send = () => {
      const query = new URLSearchParams([...new FormData(bar)].filter(([, value]) => value !== ""));
      go(`${bar.getAttribute("action")}?${query}`);
    };
    bar.addEventListener("change", (event) => {
      if (event.target.name === "branch") for (const name of ["doctor", "room"]) bar.elements[name].value = "";
      if (event.target.type !== "date" || event.target.value) send();
    });
    bar.addEventListener("submit", (event) => { event.preventDefault(); send(); });
    if (settings.view !== "month") load();
  }

  if (page) {
    page.addEventListener("click", (event) => {
      const link = event.target.closest("a");
      if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
      if (link.matches("[data-cal-go]")) { event.preventDefault(); go(link.href); }
      else if (link.matches("[data-visit], [data-new]")) { event.preventDefault(); open(link.href); }
    });
    page.addEventListener("keydown", (event) => {
      const links = $$("[data-visit]", page);
      const at = links.indexOf(event.target);
      const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: links.length - 1 }[event.key];
      if (at < 0 || to === undefined || !links[to]) return;
      event.preventDefault();
      links[to].focus();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key !== "n" || event.ctrlKey || event.metaKey || event.altKey || stored.get("wardbook-keys") === "off") return;
      if ($("dialog[open]") || event.target.closest?.("input, textarea, select, [contenteditable]")) return;
      const link = $("[data-new]", page);
      if (!link) return;
      event.preventDefault();
      open(link.href);
    });
    addEventListener("popstate", () => go(location.href, { remember: false }));
    start();
  } else dress(document);
})();
