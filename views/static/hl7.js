// A file of messages is taken in part by part, so that one sees how far it is. Without this it is taken in at once.
(() => {
  const form = document.querySelector("[data-hl7-upload]");
  if (!form) return;
  const progress = form.querySelector("[data-hl7-progress]");
  const bar = progress.querySelector("progress");
  const said = progress.querySelector("[role=status]");
  const section = document.querySelector("[data-hl7-told]");
  const body = section.querySelector("tbody");

  const row = (line) => {
    const tr = body.insertRow();
    const nth = tr.insertCell();
    nth.className = "num";
    nth.textContent = line.nth;
    const cell = tr.insertCell();
    const word = document.createElement(line.href ? "a" : "span");
    if (line.href) word.href = line.href;
    word.textContent = line.state;
    const tag = document.createElement("span");
    tag.className = `tag tag-${line.tone}`;
    tag.textContent = line.answer;
    cell.append(word, " ", tag);
    if (line.said) {
      const more = document.createElement("span");
      more.className = "hl7-line";
      more.textContent = line.said;
      cell.append(more);
    }
  };

  form.addEventListener("submit", async (event) => {
    if (!form.files.files.length) return;
    event.preventDefault();
    const button = form.querySelector("button");
    button.disabled = true;
    body.replaceChildren();
    progress.hidden = false;
    let begin = 0;
    let total = 1;
    try {
      while (begin < total) {
        const sent = new FormData(form);
        sent.set("begin", begin);
        const answer = await fetch(form.action, { method: "POST", body: sent, headers: { Accept: "application/json" } });
        const told = await answer.json();
        if (told.sentence) {
          said.textContent = told.sentence;
          return;
        }
        total = told.total;
        section.hidden = false;
        told.lines.forEach(row);
        if (!told.lines.length) break;
        begin += told.lines.length;
        bar.max = total;
        bar.value = begin;
        said.textContent = form.dataset.sayProgress.replace("{n}", begin).replace("{total}", total);
      }
      said.textContent = form.dataset.sayDone;
    } catch {
      said.textContent = form.dataset.sayFail;
    } finally {
      button.disabled = false;
    }
  });
})();
