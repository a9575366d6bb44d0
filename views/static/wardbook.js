"use strict";
/* Wardbook in the browser.  Every page works without this file; with it, searching answers while one types, long lists
   of choices can be narrowed, questions are asked before deeds, and a form warns of a likely duplicate.
   No library, no inline handler: elements say with data- attributes what they want. */

const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

/** An element with attributes and children; text is always text, never markup. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

function icon(name, extra = "") {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("class", `icon ${extra}`.trim());
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

const stored = {
  get(key) { try { return localStorage.getItem(key); } catch { return null; } },
  set(key, value) { try { value === null ? localStorage.removeItem(key) : localStorage.setItem(key, value); } catch { /* not kept */ } },
};

const token = () => $('meta[name="csrf-token"]')?.content ?? "";

/* Colours: as on the device, light, dark ------------------------------------------------------------------------ */

function colours() {
  const order = ["auto", "light", "dark"];
  const icons = { auto: "screen", light: "sun", dark: "moon" };
  const now = () => document.documentElement.dataset.theme ?? "auto";
  for (const button of $$("[data-theme-toggle]")) {
    const show = () => {
      const theme = now();
      const words = { auto: button.dataset.sayAuto, light: button.dataset.sayLight, dark: button.dataset.sayDark }[theme];
      button.title = words;
      $(".sr-only", button).textContent = words;
      $("use", button).setAttribute("href", `#i-${icons[theme]}`);
    };
    button.hidden = false;
    button.addEventListener("click", () => {
      const next = order[(order.indexOf(now()) + 1) % order.length];
      if (next === "auto") delete document.documentElement.dataset.theme;
      else document.documentElement.dataset.theme = next;
      stored.set("wardbook-theme", next === "auto" ? null : next);
      show();
    });
    show();
  }
}

/* Menus: close on Escape, on a click elsewhere, and when the focus leaves ------------------------------------------- */

function menus() {
  const all = $$("[data-pop]");
  document.addEventListener("click", (event) => {
    for (const menu of all) {
      if (!menu.open) continue;
      const inside = menu.contains(event.target);
      const backdrop = menu.classList.contains("sheet-menu") && inside && !$(".sheet-body", menu).contains(event.target);
      if (!inside) menu.open = false;
      else if (backdrop && !event.target.closest("summary")) menu.open = false;
    }
  });
  for (const menu of all) {
    menu.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && menu.open) {
        menu.open = false;
        $("summary", menu).focus();
        event.stopPropagation();
      }
      if (event.key === "ArrowDown" && event.target.closest("summary")) {
        menu.open = true;
        $("a, button", $(".pop-body, .sheet-body", menu))?.focus();
        event.preventDefault();
      }
    });
    menu.addEventListener("focusout", (event) => {
      if (menu.open && event.relatedTarget && !menu.contains(event.relatedTarget)) menu.open = false;
    });
  }
}

/* Finding a patient: a combobox whose options are links -------------------------------------------------------------- */

class Find {
  constructor(form) {
    this.form = form;
    this.say = form.dataset;
    this.input = $("input[type=search]", form);
    this.page = this.say.findPage ? document.getElementById(this.say.findPage) : null;
    this.list = this.page ? $("[data-find-list]", this.page) : null;
    this.active = -1;
    this.asked = this.page ? this.input.value.trim() : null;
    this.live = make("div", { class: "sr-only", role: "status", "aria-live": "polite" });
    form.append(this.live);
    if (!this.page) {
      this.pop = make("div", { class: "find-pop", hidden: true });
      this.list = make("ul", { class: "find-list" });
      this.below = make("div", {});
      this.pop.append(this.list, this.below);
      form.append(this.pop);
    }
    this.list.id ||= `${this.input.id}-list`;
    this.list.setAttribute("role", "listbox");
    this.list.setAttribute("aria-label", this.form.getAttribute("aria-label"));
    for (const [name, value] of Object.entries({
      role: "combobox", "aria-autocomplete": "list", "aria-controls": this.list.id, "aria-expanded": "false",
    })) this.input.setAttribute(name, value);
    this.dress();
    this.input.addEventListener("input", () => this.later());
    this.input.addEventListener("keydown", (event) => this.key(event));
    this.input.addEventListener("focus", () => { if (this.pop && this.options().length && this.input.value.trim()) this.open(true); });
    form.addEventListener("focusout", (event) => { if (this.pop && !form.contains(event.relatedTarget)) this.open(false); });
    form.addEventListener("submit", (event) => {
      const only = this.options();
      if (this.active >= 0) { event.preventDefault(); only[this.active].click(); }
      else if (!this.input.value.trim()) event.preventDefault();
      else if (this.asked === this.input.value.trim() && only.length === 1) { event.preventDefault(); only[0].click(); }
    });
  }

  options() { return $$("a.hit", this.list); }

  /** Make the links options of the listbox. */
  dress() {
    for (const [at, link] of this.options().entries()) {
      link.id = `${this.list.id}-${at}`;
      link.setAttribute("role", "option");
      link.setAttribute("aria-selected", "false");
      link.tabIndex = -1;
      link.parentElement.setAttribute("role", "none");
    }
    this.active = -1;
    this.input.removeAttribute("aria-activedescendant");
    if (this.page) {
      this.input.setAttribute("aria-expanded", String(this.options().length > 0));
      this.list.toggleAttribute("hidden", this.options().length === 0);
    }
  }

  open(yes) {
    if (!this.pop) return;
    this.pop.hidden = !yes;
    this.input.setAttribute("aria-expanded", String(yes));
    if (!yes) this.choose(-1);
  }

  choose(at) {
    const options = this.options();
    options[this.active]?.setAttribute("aria-selected", "false");
    this.active = at;
    const option = options[at];
    if (!option) return this.input.removeAttribute("aria-activedescendant");
    option.setAttribute("aria-selected", "true");
    option.scrollIntoView({ block: "nearest" });
    this.input.setAttribute("aria-activedescendant", option.id);
  }

  key(event) {
    const last = this.options().length - 1;
    const moves = {
      ArrowDown: () => (this.active >= last ? 0 : this.active + 1),
      ArrowUp: () => (this.active <= 0 ? last : this.active - 1),
      Home: () => (this.active >= 0 ? 0 : null),
      End: () => (this.active >= 0 ? last : null),
    };
    if (event.key === "Escape") {
      if (this.active >= 0) this.choose(-1);
      else if (this.pop && !this.pop.hidden) this.open(false);
      else if (this.input.value) { this.input.value = ""; this.later(); }
      else return;
      event.preventDefault();
    } else if (moves[event.key] && last >= 0 && !event.altKey && !event.ctrlKey && !event.metaKey) {
      const at = moves[event.key]();
      if (at === null) return;
      event.preventDefault();
      this.open(true);
      this.choose(at);
    }
  }

  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.ask(), 120);
  }

  async ask() {
    const q = this.input.value.trim();
    this.stale?.abort();
    if (q === this.asked) { if (this.pop && q) this.open(true); return; }
    if (!q) {
      this.asked = "";
      this.show({ results: [], more: false, meant: [] }, "");
      this.open(false);
      return;
    }
    const asking = (this.stale = new AbortController());
    this.form.setAttribute("aria-busy", "true");
    try {
      const answer = await fetch(`${this.say.findUrl}?${new URLSearchParams({ q })}`, {
        signal: asking.signal, headers: { Accept: "application/json" }, credentials: "same-origin",
      });
      if (!answer.ok) throw new Error(String(answer.status));
      const found = await answer.json();
      if (asking.signal.aborted) return;
      this.asked = q;
      this.show(found, q);
    } catch (error) {
      if (error.name === "AbortError") return;
      this.asked = null;
      this.live.textContent = this.say.sayFail;
      if (this.pop) { this.list.replaceChildren(); this.below.replaceChildren(make("p", { class: "find-note" }, this.say.sayFail)); this.open(true); }
    } finally {
      if (asking === this.stale) this.form.removeAttribute("aria-busy");
    }
  }

  show({ results, more, meant = [], outside = [] }, q) {
    this.list.replaceChildren(...results.map((patient) => make("li", {}, this.line(patient))));
    this.dress();
    const n = results.length;
    const elsewhere = outside.map((href) => make("a", { class: this.page ? null : "find-more", href }, this.say.sayOutside));
    const words = !q ? "" : n === 0 ? (outside.length ? this.say.sayOutside : this.say.sayNone) : n === 1 ? this.say.sayOne : (more ? this.say.sayMore : this.say.sayMany).replaceAll("{n}", n);
    this.live.textContent = words;
    if (this.page) {
      for (const part of $$("[data-find-when]", this.page)) {
        part.hidden = part.dataset.findWhen !== (!q ? "idle" : n || outside.length ? "some" : "none");
      }
      const apart = $("[data-find-outside]", this.page);
      if (apart) {
        apart.replaceChildren(...elsewhere.map((link) => make("li", {}, link)));
        apart.hidden = !outside.length;
      }
      const told = $("[data-find-told]", this.page);
      if (told) told.textContent = [n || !outside.length ? words : "", meant.length && n ? `${this.say.sayMeant}: ${meant.join(", ")}` : ""].filter(Boolean).join(" ");
      for (const link of $$("[data-find-register]", this.page)) link.href = `${link.dataset.findRegister}?${Find.typed(q)}`;
      history.replaceState(null, "", q ? `?${new URLSearchParams({ q })}` : location.pathname);
    } else {
      const below = [];
      if (q && n === 0 && !outside.length) below.push(make("p", { class: "find-note" }, this.say.sayNone));
      below.push(...elsewhere);
      if (n && meant.length) below.push(make("p", { class: "find-note" }, `${this.say.sayMeant}: ${meant.join(", ")}`));
      if (more) below.push(make("a", { class: "find-more", href: `${this.form.action}?${new URLSearchParams({ q })}` }, this.say.sayAll));
      this.below.replaceChildren(...below);
      this.open(Boolean(q));
    }
  }

  /** What was typed, as the registration form asks for it: digits are a phone or a date, the rest a name. */
  static typed(q) {
    if (!q) return "";
    if (/^\+?[\d\s()-]{6,}$/.test(q) && !/^\d{4}-\d{2}-\d{2}$/.test(q)) return new URLSearchParams({ phone: q });
    if (/^[\d\s./-]+$/.test(q)) return new URLSearchParams({ birth_date: q });
    const comma = q.split(",");
    if (comma.length > 1) return new URLSearchParams({ family: comma[0].trim(), given: comma.slice(1).join(" ").trim() });
    return new URLSearchParams({ family: q });
  }

  line(patient) {
    const words = patient.name.replace(",", " ").split(/\s+/).filter(Boolean);
    const initials = ((words[0] ?? "?")[0] + (words[1]?.[0] ?? "")).toUpperCase();
    const name = make("span", { class: "hit-name" });
    let at = 0;
    for (const [start, length] of [...(patient.marks ?? [])].sort((a, b) => a[0] - b[0])) {
      if (start < at) continue;
      name.append(patient.name.slice(at, start), make("mark", {}, patient.name.slice(start, start + length)));
      at = start + length;
    }
    name.append(patient.name.slice(at));
    if (patient.name_in_use) name.append(" ", make("span", { class: "quiet" }, `“${patient.name_in_use}”`));
    const birth = patient.birth ? `${patient.birth}${patient.age !== null && patient.age !== undefined && patient.age !== "" ? ` (${patient.age})` : ""}` : "";
    const text = make("span", {}, name,
      patient.deceased ? make("span", { class: "tag" }, this.say.sayDied) : null,
      patient.temporary ? make("span", { class: "tag tag-warn" }, this.say.sayTemporary) : null,
      make("span", { class: "hit-line" },
        ...[[birth, ""], [patient.gender_word, ""], [patient.mrn, "mrn"], [patient.phone, "num"]]
          .filter(([value]) => value).map(([value, kind]) => make("span", { class: kind || null }, value))));
    const end = make("span", { class: "hit-end" });
    if (patient.last_visit) end.append(patient.last_visit, ...(patient.branch ? [make("br"), patient.branch] : []));
    else end.append(this.say.sayNever);
    return make("a", { class: "hit", href: patient.href }, make("span", { class: "avatar", "aria-hidden": "true" }, initials), text, end);
  }
}

/* Keys: "/" and Ctrl+K go to the search box.  "/" can be switched off on the account page (WCAG 2.1.4). ---------------- */

function keys() {
  const box = () => $("[data-find-page] input[type=search]") ?? $(".find-big input[type=search]") ?? $("[data-find] input[type=search]");
  const single = () => stored.get("wardbook-keys") !== "off";
  for (const hint of $$(".find-box kbd")) if (!single()) hint.remove();
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
    const wanted = ((event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey && event.key.toLowerCase() === "k") ||
      (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey && single());
    const field = wanted && !$("dialog[open]") && box();
    if (!field) return;
    event.preventDefault();
    field.focus();
    field.select();
  });
  const choice = $("[data-keys-choice]");
  if (choice) {
    choice.closest("section[hidden]")?.removeAttribute("hidden");
    choice.checked = single();
    choice.addEventListener("change", () => stored.set("wardbook-keys", choice.checked ? null : "off"));
  }
}

/* A question before a deed ----------------------------------------------------------------------------------------- */

function questions() {
  const dialog = $("#confirm");
  const yes = dialog && $("[data-yes]", dialog);
  const usual = yes?.textContent;
  document.addEventListener("submit", (event) => {
    const form = event.target;
    const button = event.submitter;
    if (button?.matches("[data-needs-ticks]") && !$(`[form="${button.getAttribute("form")}"]:checked`)) {
      event.preventDefault();
      tell(button.dataset.sayNeeds);
      return;
    }
    const question = button?.dataset.confirm ?? form.dataset.confirm;
    if (!question || !dialog || form.dataset.sure === "yes") return;
    event.preventDefault();
    $("[data-confirm-text]", dialog).textContent = question;
    yes.textContent = button?.dataset.confirmYes ?? form.dataset.confirmYes ?? usual;
    dialog.returnValue = "";
    dialog.showModal();
    dialog.addEventListener("close", () => {
      if (dialog.returnValue !== "yes") return;
      form.dataset.sure = "yes";
      form.requestSubmit(button);
      delete form.dataset.sure;
    }, { once: true });
  });
}

/** A passing message at the place of the flashes. */
function tell(text) {
  const place = $(".flashes");
  if (!place) return;
  const box = make("div", { class: "flash is-warn" }, icon("warn"), make("div", {}, text));
  place.replaceChildren(box);
  box.scrollIntoView({ block: "nearest" });
  setTimeout(() => box.remove(), 6000);
}

/* Forms ------------------------------------------------------------------------------------------------------------ */

function forms() {
  $("[data-summary]")?.focus();
  for (const link of $$("[data-summary] a[href^='#']")) {
    link.addEventListener("click", (event) => {
      const field = document.getElementById(link.hash.slice(1));
      if (!field) return;
      event.preventDefault();
      const fold = field.closest("details");
      if (fold) fold.open = true;
      ($(`[data-picker-for="${field.id}"] input`) ?? field).focus();
    });
  }
  for (const broken of $$("details [aria-invalid=true]")) broken.closest("details").open = true;
  for (const button of $$("[data-dismiss]")) {
    button.hidden = false;
    button.addEventListener("click", () => button.closest(".flash").remove());
  }
  for (const form of $$("form[data-drop-blank]")) {
    form.addEventListener("formdata", (event) => {
      for (const [name, value] of [...event.formData]) if (value === "") event.formData.delete(name);
    });
  }
  for (const form of $$("form[data-once]")) {
    form.addEventListener("submit", (event) => {
      if (event.defaultPrevented) return;
      if (form.dataset.sent) return event.preventDefault();
      form.dataset.sent = "yes";
      for (const button of $$("button:not([type=button])", form)) button.setAttribute("aria-disabled", "true");
      dirty.delete(form);
    });
    form.addEventListener("input", () => dirty.add(form));
  }
  addEventListener("pageshow", () => {
    for (const form of $$("form[data-sent]")) {
      delete form.dataset.sent;
      for (const button of $$("[aria-disabled]", form)) button.removeAttribute("aria-disabled");
    }
  });
  addEventListener("beforeunload", (event) => { if (dirty.size) event.preventDefault(); });
  for (const all of $$("[data-tick-all]")) {
    const ticks = () => $$("input.action_check");
    all.addEventListener("change", () => { for (const tick of ticks()) tick.checked = all.checked; });
  }
  for (const button of $$("[data-fill-username]")) {
    button.addEventListener("click", () => {
      $("#username").value = button.dataset.fillUsername;
      $("#password").value = button.dataset.fillPassword;
      $("#password").closest("form").querySelector("button").focus();
    });
  }
  for (const button of $$("[data-print]")) {
    button.hidden = false;
    button.addEventListener("click", () => print());
  }
  const tab = $(".tabs [aria-current]");
  if (tab) tab.parentElement.scrollLeft = tab.offsetLeft - tab.parentElement.offsetWidth / 2 + tab.offsetWidth / 2;
}

const dirty = new Set();

/* A long list of choices: the <select multiple> stays the truth, tick boxes with a filter stand in for it --------------- */

function pickers() {
  for (const select of $$("select[multiple][data-picker]")) {
    const say = select.dataset;
    const label = $(`label[for="${select.id}"]`);
    const filter = make("input", { type: "text", placeholder: say.sayFilter, "aria-label": `${label?.textContent.trim() ?? ""}: ${say.sayFilter}`, autocomplete: "off", spellcheck: "false" });
    const count = make("output", {});
    const none = make("p", { class: "picker-none", hidden: select.options.length > 0 }, say.sayNone);
    const list = make("div", { class: "picker-list", role: "group", "aria-label": label?.textContent.trim() });
    const told = () => { count.textContent = say.sayCount.replaceAll("{n}", select.selectedOptions.length); };
    const lines = [...select.options].map((option) => {
      const tick = make("input", { type: "checkbox" });
      tick.checked = option.selected;
      tick.addEventListener("change", () => {
        option.selected = tick.checked;
        told();
        select.dispatchEvent(new Event("input", { bubbles: true }));
      });
      return { line: make("label", {}, tick, make("span", {}, option.textContent)), text: option.textContent.toLowerCase(), option };
    });
    lines.sort((a, b) => b.option.selected - a.option.selected || a.text.localeCompare(b.text));
    list.append(...lines.map(({ line }) => line));
    filter.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const { line, text } of lines) {
        line.hidden = !words.every((word) => text.includes(word));
        shown += !line.hidden;
      }
      none.hidden = shown > 0;
    });
    filter.addEventListener("keydown", (event) => {
      if (event.key === "Enter") event.preventDefault();
      if (event.key === "ArrowDown") { event.preventDefault(); $("label:not([hidden]) input", list)?.focus(); }
    });
    list.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const open = $$("label:not([hidden]) input", list);
      const to = open.indexOf(document.activeElement) + step;
      (to < 0 ? filter : open[to])?.focus();
    });
    const long = lines.length > 8;
    const picker = make("div", { class: "picker", "data-picker-for": select.id }, long ? make("div", { class: "picker-top" }, filter, count) : null, list, none);
    told();
    select.hidden = true;
    select.after(picker);
    label?.addEventListener("click", (event) => { event.preventDefault(); (long ? filter : $("input", list))?.focus(); });
  }
}

/* Registering: is this somebody we know already? ---------------------------------------------------------------------- */

function alike() {
  const form = $("form[data-alike]");
  const panel = form && $("[data-alike-panel]", form);
  if (!panel) return;
  const watched = form.dataset.alikeFields.split(" ");
  let before = "";
  let asking;
  const ask = async () => {
    const body = new FormData(form);
    body.delete("photo");
    body.delete("csrf_token");
    const now = watched.map((name) => body.get(name)).join("\n");
    if (now === before || !(body.get("family") || body.get("given") || body.get("identifier_value"))) return;
    before = now;
    asking?.abort();
    asking = new AbortController();
    try {
      const answer = await fetch(form.dataset.alike, {
        method: "POST", body, signal: asking.signal, credentials: "same-origin",
        headers: { "X-CSRFToken": token(), Accept: "application/json" },
      });
      if (answer.ok) show((await answer.json()).duplicates);
    } catch { /* saving asks once more */ }
  };
  const show = (found) => {
    const was = $$("li", panel).length;
    panel.hidden = found.length === 0;
    $("ul", panel).replaceChildren(...found.map((one) =>
      make("li", {},
        make("div", {}, make("b", {}, one.name),
          make("div", { class: "hit-line" }, ...[one.birth, one.mrn, one.phone, one.branch].filter(Boolean).map((text) => make("span", {}, text)))
        , make("div", { class: "hit-line" }, make("span", {}, [`${one.score} %`, ...(one.reasons ?? [])].join(" · ")))),
        make("a", { class: "btn", href: one.href, target: "_blank", rel: "noopener" }, form.dataset.saySame))));
    if (found.length !== was) $("[data-alike-told]", form).textContent = found.length ? $("h2", panel).textContent : "";
  };
  form.addEventListener("focusout", (event) => { if (watched.includes(event.target.name)) ask(); });
  form.addEventListener("change", (event) => { if (watched.includes(event.target.name)) ask(); });
  if (watched.some((name) => form.elements[name]?.value) && panel.hidden) ask();
}

colours();
menus();
for (const form of $$("form[data-find]")) new Find(form);
keys();
questions();
forms();
pickers();
alike();

/* What roles may do: arrow keys in the grid, what is not saved yet, a filter over the roles ----------------------------- */

function rights() {
  for (const filter of $$("[data-narrow]")) {
    const list = filter.parentElement;
    filter.hidden = $$("li", list).length < 8;
    filter.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const line of $$("li", list)) {
        line.hidden = !words.every((word) => $(".role-name", line).textContent.toLowerCase().includes(word));
        shown += !line.hidden;
      }
      $("[data-narrow-none]", list).hidden = shown > 0;
    });
    filter.addEventListener("keydown", (event) => {
      if (event.key === "Enter") $("li:not([hidden]) a", list)?.click();
      if (event.key === "ArrowDown") { event.preventDefault(); $("li:not([hidden]) a", list)?.focus(); }
    });
    $("[aria-current]", list)?.scrollIntoView({ block: "nearest" });
  }
  for (const form of $$("form[data-go]")) {
    const go = $("button", form);
    go.hidden = true;
    form.addEventListener("change", () => form.requestSubmit());
  }
  for (const form of $$("form[data-unsent]")) dirty.add(form);
  const form = $("form[data-rights]");
  if (!form) return;

  const told = $("[data-unsaved]", form);
  const count = () => {
    let changed = 0;
    for (const field of $$("[data-was]", form)) {
      const row = field.closest("tr");
      const idle = row && field.name !== "may" && !$("input[name=may]:checked", row);
      const now = field.type === "checkbox" ? (field.checked ? "yes" : "") : field.value;
      const differs = !idle && now !== field.dataset.was;
      field.closest("td, .check")?.classList.toggle("is-changed", $$("[data-was]", field.closest("td, .check")).some((other) =>
        (other.type === "checkbox" ? (other.checked ? "yes" : "") : other.value) !== other.dataset.was) && !idle);
      changed += differs;
    }
    if (told) told.textContent = (changed === 0 ? form.dataset.sayNone : changed === 1 ? form.dataset.sayOne : form.dataset.sayMany).replaceAll("{n}", changed);
    if (changed) dirty.add(form);
    else dirty.delete(form);
  };
  const tally = (part) => {
    const line = $("[data-tally]", part);
    const boxes = $$(".boxes input", part);
    const ticked = boxes.filter((box) => box.checked).length;
    const say = line.dataset;
    line.textContent = (ticked === 0 && say.sayNone ? say.sayNone : ticked === boxes.length && say.sayAll ? say.sayAll : say.saySome)
      .replaceAll("{n}", ticked).replaceAll("{all}", boxes.length);
  };
  form.addEventListener("input", (event) => {
    const part = event.target.closest("details");
    if (part) tally(part);
    count();
  });
  count();
  $("[data-start-over]", form)?.addEventListener("click", () => dirty.delete(form));

  // One stop for the Tab key in the whole grid; arrows go on from there, and Left and Right lead out of a drop-down.
  const lines = $$("tbody tr", form)
    .map((row) => [...row.cells].flatMap((cell, column) => $$(".tick input, select, summary", cell).map((stop) => ({ stop, column }))))
    .filter((line) => line.length && !line[0].stop.matches(":disabled"));
  const stops = lines.flat().map(({ stop }) => stop);
  const settle = (to) => { for (const stop of stops) stop.tabIndex = stop === to ? 0 : -1; };
  const nearest = (line, column) => line && line.reduce((best, one) => (Math.abs(one.column - column) < Math.abs(best.column - column) ? one : best)).stop;
  settle(stops[0]);
  $("table", form).addEventListener("focusin", (event) => { if (stops.includes(event.target)) settle(event.target); });
  $("table", form).addEventListener("keydown", (event) => {
    const from = event.target;
    if (!stops.includes(from) || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (from.tagName === "SELECT" && !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    const y = lines.findIndex((line) => line.some(({ stop }) => stop === from));
    const x = lines[y].findIndex(({ stop }) => stop === from);
    const moves = {
      ArrowRight: () => lines[y][x + 1]?.stop,
      ArrowLeft: () => lines[y][x - 1]?.stop,
      ArrowDown: () => nearest(lines[y + 1], lines[y][x].column),
      ArrowUp: () => nearest(lines[y - 1], lines[y][x].column),
      Home: () => lines[y][0].stop,
      End: () => lines[y].at(-1).stop,
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    moves[event.key]()?.focus();
  });
}

rights();

/* An unattended page: asks a minute before the session ends, and goes when the time is over ---------------------------- */

/** Every tab of a browser shares one clock, for they share one session. */
function idle() {
  const seconds = Number(document.body.dataset.idle);
  const dialog = document.getElementById("idle");
  if (!seconds || !dialog) return;
  const warning = Math.min(60, seconds / 3);
  const key = "wardbook-used";
  const left = $("[data-idle-left]", dialog);
  const told = $("[data-idle-told]", dialog);
  let used = Date.now();
  let before = null;
  const touch = () => { used = Date.now(); stored.set(key, String(used)); };
  const rest = () => seconds - (Date.now() - Math.max(used, Math.min(Number(stored.get(key)) || 0, Date.now()))) / 1000;
  let gone = false;
  const go = () => {
    if (gone) return;
    gone = true;  // going once more would begin anew, and a slow network would never get there
    document.body.classList.add("is-gone");
    const { idleOut, idleBack } = document.body.dataset;  // what a form led to cannot be opened once more
    location.replace(idleBack === undefined ? idleOut : `${idleOut}&next=${encodeURIComponent(location.pathname + location.search)}`);
  };
  const look = () => {
    const now = rest();
    if (now <= 0) return go();
    if (now > warning) {
      if (dialog.open) dialog.close();
      before = null;
      return undefined;
    }
    if (!dialog.open) {
      for (const other of $$("dialog[open]")) other.close();
      dialog.showModal();
    }
    const shown = Math.ceil(now);
    left.textContent = String(shown);
    if (before === null || (shown % 15 === 0 && shown !== before)) told.textContent = told.dataset.say.replace("{n}", shown);
    before = shown;
    return undefined;
  };
  const stay = async () => {
    try {
      const answer = await fetch(document.body.dataset.idleStay, { credentials: "same-origin", redirect: "manual", cache: "no-store" });
      if (answer.status === 204) touch();
      else go();
    } catch { /* no network: the clock goes on */ }
    look();
  };
  // Whatever the page asks of the server keeps the session too.
  if (window.PerformanceObserver) {
    new PerformanceObserver((list) => {
      if (list.getEntries().some((entry) => entry.initiatorType === "fetch" && entry.name.startsWith(location.origin) && !entry.name.includes("/static/") && !entry.name.endsWith("/now.json"))) touch();
    }).observe({ type: "resource" });
  }
  dialog.addEventListener("close", () => { if (rest() <= warning && rest() > 0) stay(); });
  window.addEventListener("pageshow", look);
  document.addEventListener("visibilitychange", look);
  window.addEventListener("storage", (event) => { if (event.key === key) look(); });
  touch();
  setInterval(look, 1000);
}

idle();

/* A page that says how something stands, and asks now and then while somebody can see it ---------------------------------- */

/** Asking keeps no session open: the server and the clock of an unattended page leave it out. */
function standing() {
  const page = $("[data-now]");
  if (!page) return;
  const bar = $("[data-now-check]");
  let shown = bar && !bar.hidden;
  const tell = (place, text) => { if (place && place.textContent !== text) place.textContent = text; };
  const ask = async () => {
    if (document.visibilityState !== "visible") return;
    let now;
    try {
      const answer = await fetch(page.dataset.now, { credentials: "same-origin", redirect: "error", cache: "no-store", headers: { Accept: "application/json" } });
      if (!answer.ok) return;
      now = await answer.json();
    } catch { return; }
    for (const [name, text] of Object.entries(now.told)) tell($(`[data-now-of="${name}"]`), text);
    const alarm = $("[data-now-alarm]");
    alarm.hidden = !now.alarm;
    tell($("[data-now-alarm-text]"), now.alarm);
    const well = $("[data-now-well]");
    if (well) well.hidden = Boolean(now.alarm);
    if (!bar) return;
    if (now.check) {
      tell($("[data-now-what]", bar), now.check.what);
      tell($("[data-now-text]", bar), now.check.text);
      const meter = $("progress", bar);
      if (now.check.total) { meter.max = now.check.total; meter.value = now.check.done; } else meter.removeAttribute("value");
      bar.hidden = false;
      shown = true;
    } else if (shown) {
      location.replace(`${location.pathname}#checks`);  // it is over: what it came to is on the page itself
      location.reload();
    }
  };
  setInterval(ask, 5000);
  document.addEventListener("visibilitychange", ask);
}

standing();
