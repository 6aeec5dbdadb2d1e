// What a turn looks like: the reader's text, the model's growing answer, its figures, its trace. Knows no request.

import { fetchTrace } from "/page/api.js";
import { copyButton } from "/page/copy.js";
import { render } from "/page/markdown.js";

/** A turn of the reader's. */
export function userTurn(text) {
  const turn = node("li", "turn user");
  turn.append(hidden("You: "), node("div", "text", text));
  return turn;
}

/** A turn of the model's, filled while it streams. */
export class AnswerTurn {
  /** `plain` shows the text as it is, for models that continue text; `regenerate` is called when asked to. */
  constructor(model, { plain, regenerate }) {
    this.plain = plain;
    this.element = node("li", "turn assistant streaming");
    this.element.setAttribute("aria-busy", "true");
    this.body = node("div", plain ? "text plain" : "text");
    this.stats = node("span", "stats figures");
    this.actions = node("span", "actions");
    const meta = node("div", "meta");
    meta.append(this.stats, this.actions);
    this.element.append(node("div", "who", model), this.body, meta);
    this.regenerate = regenerate;
    this.text = "";
    this.frame = 0;
  }

  /** Grow the answer; drawn once a frame however fast tokens come. */
  add(text) {
    this.text += text;
    this.frame ||= requestAnimationFrame(() => this.draw());
  }

  /** The line of figures below the answer. */
  figures(text) {
    this.stats.textContent = text;
  }

  /** The answer is complete, stopped or broken: offer what can be done with it. */
  end({ id, error }) {
    this.draw();
    this.element.classList.remove("streaming");
    this.element.removeAttribute("aria-busy");
    if (error) this.fail(error);
    if (this.text) this.actions.append(copyButton(() => this.text));
    if (!error) this.actions.append(this.again("Regenerate", "regenerate"));
    if (id) this.actions.append(this.traceButton(id));
  }

  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    if (this.plain) this.body.textContent = this.text;
    else this.body.replaceChildren(render(this.text));
  }

  fail(message) {
    const box = node("div", "failure", message);
    box.setAttribute("role", "alert");
    box.append(this.again("Try again", "regenerate"));
    this.body.after(box);
  }

  again(label, className) {
    const button = node("button", className, label);
    button.type = "button";
    button.addEventListener("click", () => this.regenerate());
    return button;
  }

  traceButton(id) {
    const button = node("button", "", "Trace");
    button.type = "button";
    button.setAttribute("aria-expanded", "false");
    let panel = null;
    button.addEventListener("click", () => {
      if (panel) panel.hidden = !panel.hidden;
      else this.element.append((panel = tracePanel(id)));
      button.setAttribute("aria-expanded", String(!panel.hidden));
      panel.scrollIntoView({ block: "nearest" });
    });
    return button;
  }
}

/** The command that traces a response on the terminal, and the tree behind its model. */
function tracePanel(id) {
  const panel = node("div", "trace");
  const command = node("div", "command");
  command.append(node("code", "", `lmworks trace ${id}`), copyButton(() => `lmworks trace ${id}`));
  const tree = node("div", "tree", "…");
  panel.append(command, tree);
  fetchTrace(id).then(
    ({ made_from: model }) => {
      tree.replaceChildren(model ? branch(model) : "The model's weights came from memory.");
    },
    (error) => { tree.textContent = error.message; },
  );
  return panel;
}

function branch({ kind, role, path, content_hash: hash, state, parents }) {
  const out = document.createDocumentFragment();
  const note = state === "intact" ? "" : ` (${state})`;
  out.append(node("span", "kind", role || kind), ` ${path} `, node("code", "", hash.slice(0, 8)), note);
  if (parents.length) {
    const list = node("ul");
    for (const parent of parents) {
      const item = node("li");
      item.append(branch(parent));
      list.append(item);
    }
    out.append(list);
  }
  return out;
}

function node(name, className = "", text = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

function hidden(text) {
  return node("span", "hidden", text);
}
