// Draws answers while they come: a row with a Stop button, and below it a column for each answer.
// The HTML is made, and made safe, in the kernel; here it is only put in place. A message says how
// much of the HTML so far to keep and what to add; what lies before "final" never changes again. One
// that keeps nothing is all of it, and asked for where a message is missing.

const canInterrupt = (model) => model.get("interrupts") && model.widget_manager?.kernel?.interrupt;

function text(tag, words, parent) {
  const element = document.createElement(tag);
  element.textContent = words;
  parent.append(element);
  return element;
}

function nodes(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  // As in an ordinary output.
  template.content.querySelectorAll("table").forEach((table) => { table.style.marginLeft = 0; });
  return template.content;
}

function put(view, column) {
  const { html, final, thoughts } = column;
  view.reasoning.hidden = !thoughts;
  if (view.thoughts.textContent.length !== thoughts.length) view.thoughts.textContent = thoughts;
  // What has not changed keeps its selection.
  const state = [column.version, final, html].join();
  if (view.state === state) return;
  view.state = state;
  if (view.version !== column.version) {
    view.answer.replaceChildren();
    // In the saved form the status stands there, and its margin is one with the answer's.
    text("p", "", view.answer);
    view.answer.append(view.reasoning);
    view.nodes = 2;
    view.final = 0;
    view.version = column.version;
  }
  while (view.answer.childNodes.length > view.nodes) view.answer.lastChild.remove();
  const closed = nodes(html.slice(view.final, final));
  const fresh = [...closed.children];
  view.answer.append(closed);
  view.nodes = view.answer.childNodes.length;
  // Only what is final is typeset: formulas that change ten times a second would flicker.
  fresh.filter((node) => node.textContent.includes("$")).forEach(view.typeset);
  view.answer.append(nodes(html.slice(final)));
  view.final = final;
}

export default () => {
  const began = Date.now();
  let columns, notice = "", said = "", asked = 0, tokens = 0, stopping = false, heard = false;
  const views = new Set();
  const draw = () => views.forEach((view) => view.draw());

  function take(message, model) {
    if (message.heard) { heard = true; return; }
    const column = columns[message.column ?? 0];
    const known = message.known ?? column.thoughts.length;
    const whole = message.keep === 0 && message.known === 0;
    if (!whole && message.turn !== column.turn + 1) {
      // Once a second: a kernel that hears nothing while its cell runs would find all of them later.
      if (Date.now() - asked > 1000) { asked = Date.now(); model.send({ missed: true }); }
      return;
    }
    column.turn = message.turn;
    const html = column.html.slice(0, message.keep) + message.add;
    if (message.keep < column.final && !html.startsWith(column.html.slice(0, column.final))) {
      column.version += 1;
    }
    column.html = html;
    column.thoughts = column.thoughts.slice(0, known) + (message.thoughts ?? "");
    column.final = message.final;
    column.status = message.status ?? "";
    column.tokens = message.tokens;
    tokens = columns.reduce((sum, each) => sum + each.tokens, 0);
    notice = message.notice ?? "";
    said = message.line ?? "";
    draw();
  }

  async function stop(model) {
    if (stopping) return;
    stopping = true;
    draw();
    model.send({ stop: true });
    // A kernel whose cell runs hears it only where it has a second shell for such messages. One
    // that has ever heard this page is not interrupted: over a slow line the answer may have
    // ended already, and it would be the next cell that is hit.
    await new Promise((done) => setTimeout(done, 300));
    if (!heard && views.size && canInterrupt(model)) model.widget_manager.kernel.interrupt();
  }

  function initialize({ model }) {
    columns = model.get("labels").map(() => (
      { html: "", thoughts: "", final: 0, version: 0, tokens: 0, status: "", turn: 0 }));
    model.on("msg:custom", (message) => take(message, model));
  }

  // What is sent before the page has opened the kernel's second shell, about 0.1 s after the
  // widget, is heard only when the cell has ended. And a message that meets the end of that shell,
  // as with a short answer, makes the kernel complain in the cell: so not at once.
  async function tell(model) {
    for (const pause of [1000, 1000, 1500]) {
      await new Promise((done) => setTimeout(done, pause));
      if (heard || !views.size) return;
      model.send({ seen: true });
    }
  }

  function render({ model, el }) {
    el.classList.add("llm-magic");
    const row = text("div", "", el);
    // As high as the status line that takes its place.
    row.style.cssText = "display: flex; align-items: center; gap: 0.8em;"
      + "font-size: var(--jp-content-font-size1); height: 1.6em; color: var(--jp-ui-font-color1)";
    const button = text("button", "Stop", row);
    button.type = "button";
    button.className = "jupyter-button widget-button lm-Widget jupyter-widgets";
    button.style.cssText = "width: auto; height: 22px; line-height: 20px; margin: 0; flex: none";
    button.title = "Stop; what has come is kept";
    button.onclick = () => stop(model);
    const line = text("small", "", row);
    line.style.cssText = "opacity: 0.65; white-space: nowrap; overflow: hidden;"
      + "text-overflow: ellipsis; font-variant-numeric: tabular-nums";
    let words = null;
    const area = text("div", "", el);
    const labels = model.get("labels");
    if (labels.length > 1) area.style.cssText = "display: flex; flex-wrap: wrap; gap: 0 1.5em";
    const manager = model.widget_manager;
    const latex = (manager?.rendermime ?? manager?._rendermime)?.latexTypesetter;
    const parts = labels.map((label) => {
      const box = text("div", "", area);
      box.className = "jp-RenderedHTMLCommon jp-RenderedHTML";
      box.style.cssText = "flex: 1 1 16em; min-width: 0";
      const head = labels.length > 1 ? text("p", "", box) : null;
      const reasoning = document.createElement("details");
      text("small", "Reasoning", text("summary", "", reasoning));
      const thoughts = text("pre", "", reasoning);
      thoughts.style.whiteSpace = "pre-wrap";
      const answer = text("div", "", box);
      answer.className = box.className;
      answer.style.cssText = "padding: 0; display: flow-root";
      const typeset = (node) => latex?.typeset(node);
      return { label, head, reasoning, thoughts, answer, typeset, version: -1 };
    });

    function tick() {
      const seconds = ((Date.now() - began) / 1000).toFixed(1);
      const stops = model.get("interrupts") ? canInterrupt(model) || heard : true;
      button.hidden = !stops;
      button.disabled = stopping;
      const what = stopping ? "stopping …" : notice || (stops ? "" : "interrupt the kernel to stop");
      const count = tokens ? `≈ ${tokens.toLocaleString("en")} tokens` : "";
      const name = labels.length > 1 ? `${labels.length} models` : labels[0];
      if (!said) {
        line.textContent = [name, count, `${seconds} s`, what].filter(Boolean).join(" · ");
      } else if (words !== said + what) {
        line.replaceChildren(what && `${what} · `, nodes(said));
        line.title = line.textContent;
        words = said + what;
      }
    }
    const view = {
      draw() {
        parts.forEach((part, place) => {
          const column = columns[place];
          if (part.head) part.head.textContent = column.status || part.label;
          put(part, column);
        });
        tick();
      },
    };
    views.add(view);
    view.draw();
    tell(model);
    const timer = setInterval(tick, 100);
    return () => { clearInterval(timer); views.delete(view); };
  }

  return { initialize, render };
};
