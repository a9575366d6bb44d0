/* The grid of results: Enter moves on, and whatever row is left is saved by itself. The page works without this file. */

(() => {
  "use strict";
  const grid = document.querySelector("[data-lab-grid]");
  if (!grid) return;
  const field = (row) => row.querySelector(".lab-entry .input, .lab-entry .select");
  const part = (row, name) => row.querySelector(`input[name="${name}-${row.dataset.labRow}"]`);
  const rows = [...grid.querySelectorAll("[data-lab-row]")];
  const under = new Map();

  const say = (row, error) => {
    const place = row.querySelector("[data-lab-error]");
    place.querySelector("span").textContent = error;
    place.hidden = !error;
    if (error) {
      field(row).setAttribute("aria-invalid", "true");
      field(row).setAttribute("aria-describedby", place.id);
    } else {
      field(row).removeAttribute("aria-invalid");
    }
  };

  const save = async (row) => {
    const typed = field(row).value.trim();
    if (under.has(row)) { await under.get(row); return save(row); }
    if (typed === part(row, "was").value.trim()) return say(row, "");
    const work = send(row, typed);
    under.set(row, work);
    row.classList.add("is-saving");
    await work;
    under.delete(row);
    row.classList.remove("is-saving");
  };

  const send = async (row, typed) => {
    const body = new URLSearchParams({
      csrf_token: grid.elements.csrf_token.value, key: row.dataset.labRow, value: typed, seen: part(row, "seen").value,
    });
    try {
      const answer = await fetch(grid.dataset.labGrid, { method: "POST", body, credentials: "same-origin", redirect: "error" });
      const told = await answer.json();
      if (!answer.ok) return say(row, told.error ?? grid.dataset.sayFail);
      say(row, "");
      part(row, "was").value = told.value;
      part(row, "seen").value = told.version;
      if (field(row).value.trim() === typed) field(row).value = told.value;
      row.querySelector("[data-lab-range]").textContent = told.range;
      row.querySelector("[data-lab-state]").innerHTML = told.state;
    } catch {
      say(row, grid.dataset.sayFail);
    }
  };

  for (const row of rows) {
    const at = field(row);
    at.addEventListener("change", () => save(row));
    at.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.isComposing) return;
      event.preventDefault();
      const next = rows[rows.indexOf(row) + (event.shiftKey ? -1 : 1)];
      if (at.value.trim() !== part(row, "was").value.trim() && !next) save(row);
      if (next) {
        field(next).focus();
        field(next).select?.();
      }
    });
  }
  grid.addEventListener("submit", async (event) => {
    event.preventDefault();
    for (const row of rows) await save(row);
    grid.querySelector("[aria-invalid]")?.focus();
  });
})();
