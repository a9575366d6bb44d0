// The search for a diagnosis as one types. The server finds; without this script the form is sent by its search button.
(() => {
  "use strict";
  const part = document.querySelector("[data-icd]");
  if (!part) return;
  const box = part.querySelector("#q");
  const list = part.querySelector("[data-icd-found]");
  const told = part.querySelector("[data-icd-told]");
  const save = document.querySelector("[data-save]");
  let asked = 0;
  let waiting;

  const offer = (found) => {
    list.replaceChildren(
      ...found.map((each) => {
        const item = document.createElement("li");
        const label = document.createElement("label");
        const radio = document.createElement("input");
        radio.type = "radio";
        radio.name = "code";
        radio.value = each.code;
        const code = document.createElement("code");
        code.textContent = each.code;
        const text = document.createElement("span");
        text.textContent = each.display;
        label.append(radio, code, text);
        item.append(label);
        return item;
      }),
    );
    told.textContent = found.length ? part.dataset.sayFound.replace("{n}", found.length) : part.dataset.sayNone;
  };

  const search = async () => {
    const q = box.value.trim();
    const mine = ++asked;
    if (q.length < 2) {
      list.replaceChildren();
      told.textContent = "";
      return;
    }
    told.textContent = part.dataset.sayWait;
    const answer = await fetch(`${part.dataset.icd}?q=${encodeURIComponent(q)}`, { headers: { Accept: "application/json" } });
    if (answer.ok && mine === asked) offer((await answer.json()).found);
  };

  box.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => search().catch(() => {}), 180);
  });
  const radios = () => [...list.querySelectorAll("input")];
  box.addEventListener("keydown", (event) => {
    const first = radios()[0];
    if (!first) return;
    if (event.key === "ArrowDown") {
      event.preventDefault();
      first.focus();
      first.checked = true;
    } else if (event.key === "Enter") {
      event.preventDefault();
      if (!radios().some((radio) => radio.checked)) first.checked = true;
      save.focus();
    }
  });
  list.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    event.target.checked = true;
    save.focus();
  });
})();
