"use strict";
/* Writing a note: what is typed is kept a few seconds later, and the page says so.  Without this file the buttons do. */

function drafting() {
  const form = $("form[data-note]");
  if (!form) return;
  const say = form.dataset;
  const state = $("[data-note-state]", form);
  const conflict = $("[data-note-conflict]", form);
  const sign = $("[data-note-sign]", form);
  const WAIT = 2000;
  const AGAIN = 8000;
  let timer = 0;
  let typed = 0;
  let kept = 0;
  let saving = null;
  let over = false;  // the draft was changed elsewhere: nothing of ours is sent any more

  const tell = (text, bad = false) => {
    if (state.textContent !== text) state.textContent = text;
    state.classList.toggle("is-bad", bad);
  };
  const later = (wait) => { clearTimeout(timer); timer = setTimeout(save, wait); };

  async function save() {
    clearTimeout(timer);
    if (saving || over || kept === typed) return;
    const now = typed;
    tell(say.saySaving);
    saving = fetch(say.autosave, {
      method: "POST", body: new FormData(form), credentials: "same-origin", redirect: "manual",
      headers: { "X-CSRFToken": token(), Accept: "application/json" },
    });
    try {
      const answer = await saving;
      if (answer.type === "opaqueredirect" || answer.status === 401) { tell(say.sayOut, true); return; }
      const said = await answer.json();
      if (answer.ok) {
        form.elements.version.value = said.version;
        kept = now;
        tell(typed === kept ? said.said : say.sayTyping);
        if (typed === kept) dirty.delete(form);
        else later(WAIT);
      } else if (answer.status === 409) {
        over = true;
        $("h2", conflict).textContent = said.message;
        conflict.hidden = false;
        conflict.scrollIntoView({ block: "nearest" });
        tell(say.sayTyping, true);
      } else {
        tell(said.message, true);
      }
    } catch {
      tell(say.sayOffline, true);
      later(AGAIN);
    } finally {
      saving = null;
    }
  }

  form.addEventListener("input", () => {
    typed += 1;
    if (over) return;
    if (!saving) tell(say.sayTyping);
    later(WAIT);
  });
  // What is on its way has the number of the draft: a form sent meanwhile would come too late.
  form.addEventListener("submit", (event) => {
    clearTimeout(timer);
    if (!saving) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    const button = event.submitter;
    saving.catch(() => {}).then(() => setTimeout(() => form.requestSubmit(button), 50));
  }, { capture: true });
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    form.requestSubmit(sign);
  });
  document.addEventListener("visibilitychange", () => { if (document.visibilityState === "hidden") save(); });
  $("[data-note-keys]", form).hidden = false;
}

drafting();
