// Prescribing as one types: medicines are offered, and each line's sentence and warnings are kept up to date. Everything
// here is done by the server; without this script the same form is sent by its buttons.
(() => {
  "use strict";
  const form = document.querySelector("[data-rx]");
  if (!form) return;

  // ---- the search
  const box = form.querySelector("#q");
  const list = form.querySelector("[data-rx-found]");
  const told = form.querySelector("[data-rx-told]");
  let asked = 0;
  let waiting;

  const offer = (medicines) => {
    list.replaceChildren(
      ...medicines.map((each) => {
        const item = document.createElement("li");
        const button = document.createElement("button");
        button.className = "rx-hit";
        button.name = "do";
        button.value = `add-${each.id}`;
        const name = document.createElement("b");
        name.textContent = each.display;
        const small = document.createElement("small");
        small.textContent = each.ingredients + (each.known ? "" : ` (${form.dataset.sayUnmapped})`);
        button.append(name, small);
        item.append(button);
        return item;
      }),
    );
    told.textContent = medicines.length ? form.dataset.sayFound.replace("{n}", medicines.length) : form.dataset.sayNone;
  };

  const search = async () => {
    const q = box.value.trim();
    const mine = ++asked;
    if (q.length < 2) {
      list.replaceChildren();
      told.textContent = "";
      return;
    }
    const answer = await fetch(`${form.dataset.medicines}?q=${encodeURIComponent(q)}`, { headers: { Accept: "application/json" } });
    if (!answer.ok || mine !== asked) return;
    offer((await answer.json()).medicines);
  };

  if (!box) return;
  box.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => search().catch(() => {}), 180);
  });
  box.addEventListener("keydown", (event) => {
    const hits = list.querySelectorAll("button");
    if (event.key === "ArrowDown" && hits.length) {
      event.preventDefault();
      hits[0].focus();
    } else if (event.key === "Enter" && hits.length) {
      event.preventDefault();
      hits[0].click();
    }
  });
  list.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    event.preventDefault();
    const hits = [...list.querySelectorAll("button")];
    const next = hits.indexOf(document.activeElement) + (event.key === "ArrowDown" ? 1 : -1);
    (hits[next] || box).focus();
  });

  // ---- the lines
  let looked = 0;
  let soon;
  const replace = (place, html) => {
    if (place && !place.contains(document.activeElement)) place.innerHTML = html;
  };
  const look = async () => {
    const mine = ++looked;
    const said = new FormData(form);
    said.delete("do");
    const answer = await fetch(form.dataset.look, { method: "POST", body: said, headers: { Accept: "application/json" } });
    if (!answer.ok || mine !== looked) return;
    const found = await answer.json();
    replace(form.querySelector("[data-rx-patient]"), found.patient);
    found.lines.forEach((line, number) => {
      const place = form.querySelector(`[data-line="${number}"]`);
      if (!place) return;
      place.querySelector("[data-rx-text]").textContent = line.text;
      place.querySelector("[data-rx-mine]").textContent = line.mine;
      place.querySelector("[data-rx-quantity]").textContent = line.quantity;
      place.querySelector("[data-rx-until]").textContent = "";
      const quantity = place.querySelector("[name$='-quantity']");
      if (!quantity.value) quantity.placeholder = line.quantity;
      const wrong = place.querySelector(".rx-wrong");
      if (line.text) wrong.hidden = true;
      replace(place.querySelector("[data-rx-warnings]"), line.warnings);
    });
  };
  const later = (event) => {
    const name = event.target.name || "";
    if (name === "q" || name.startsWith("why-") || name.startsWith("because-")) return;
    clearTimeout(soon);
    soon = setTimeout(() => look().catch(() => {}), 350);
  };
  if (form.querySelector("[data-line]")) {
    form.addEventListener("input", later);
    form.addEventListener("change", later);
    form.querySelector("[data-rx-look]")?.remove();
    const last = [...form.querySelectorAll("[data-line]")].pop();
    if (last && !document.querySelector("[data-summary]")) last.querySelector("[name$='-timing']").focus({ preventScroll: false });
  }
})();
