// The conversation: what was said, what is sent, what the keys and buttons do. Knows the page's elements.

import { listModels, setKey, stream } from "/page/api.js";
import * as settings from "/page/settings.js";
import { AnswerTurn, userTurn } from "/page/turns.js";

const CONTINUATION_TOKENS = 200; // asked for where a model only continues text: that route's own default is 16
const SUGGESTIONS = {
  chat: ["What is the capital of France?", "Explain why the sky is blue.", "Write a short poem about the sea."],
  completion: ["The history of astronomy begins", "Once upon a time", "Water is"],
};

const at = (id) => document.getElementById(id);
const [picker, log, scroll, input, send, composer, clear] = ["model", "log", "scroll", "input", "send", "composer", "clear"].map(at);

let models = new Map();
let turns = []; // {role, content, element}
let running = null; // the AbortController of the answer that streams

const model = () => models.get(picker.value);
const chats = () => model()?.capabilities.includes("chat") ?? false;

async function loadModels() {
  try {
    models = new Map((await listModels()).map((card) => [card.id, card]));
  } catch (error) {
    at("greeting").textContent = error.status === 401 ? "This server asks for a key." : "No connection.";
    at("about").textContent = error.message;
    if (error.status !== 401) return;
    settings.askForKey((key) => {
      setKey(key);
      settings.open(false);
      loadModels();
    });
    return;
  }
  picker.replaceChildren(...[...models.keys()].map((name) => new Option(name, name)));
  const last = localStorage.getItem("model");
  if (models.has(last)) picker.value = last;
  input.disabled = false;
  modelChosen();
  input.focus();
}

function modelChosen() {
  localStorage.setItem("model", picker.value);
  settings.fit(chats());
  input.placeholder = chats() ? `Message ${picker.value}` : `A text for ${picker.value} to continue`;
  at("greeting").textContent = chats() ? "Ask something." : "Begin a text.";
  at("about").textContent =
    `${picker.value} ${chats() ? "answers" : "has no chat template: it continues what you write"}` +
    `${chats() ? " in conversations" : ""} of up to ${model().max_model_len.toLocaleString("en")} tokens.`;
  at("suggestions").replaceChildren(...SUGGESTIONS[chats() ? "chat" : "completion"].map(suggestion));
  at("context").textContent = "";
  refresh();
}

function suggestion(text) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.addEventListener("click", () => say(text));
  item.append(button);
  return item;
}

function refresh() {
  at("welcome").hidden = turns.length > 0;
  log.hidden = turns.length === 0;
  clear.disabled = turns.length === 0;
  picker.disabled = Boolean(running);
  send.classList.toggle("stopping", Boolean(running));
  send.setAttribute("aria-label", running ? "Stop" : "Send");
  send.disabled = !running && (!input.value.trim() || models.size === 0);
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
}

function say(text) {
  if (running || !model()) return;
  if (turns.at(-1)?.role === "user") turns.pop(); // it got no answer, and many templates want roles to alternate
  const element = userTurn(text);
  log.append(element);
  turns.push({ role: "user", content: text, element });
  answer();
}

/** What is sent: the conversation, or, for a model without a template, all texts run together. */
function requestOf() {
  const common = { model: picker.value, ...settings.sampling() };
  if (!chats()) {
    const prompt = turns.map((turn) => turn.content).join("");
    const max_tokens = Math.min(CONTINUATION_TOKENS, Math.ceil(model().max_model_len / 2));
    return ["/v1/completions", { max_tokens, ...common, prompt }];
  }
  const messages = turns.map(({ role, content }) => ({ role, content }));
  if (settings.systemPrompt()) messages.unshift({ role: "system", content: settings.systemPrompt() });
  return ["/v1/chat/completions", { ...common, messages }];
}

async function answer() {
  const [path, body] = requestOf();
  const view = new AnswerTurn(picker.value, { plain: !chats(), regenerate });
  const turn = { role: "assistant", content: "", element: view.element };
  log.append(view.element);
  const [conversation, controller] = [turns, new AbortController()];
  running = controller;
  refresh();
  scroll.scrollTop = scroll.scrollHeight;

  const meter = new Meter();
  let [id, error, stopped] = [null, "", false];
  try {
    for await (const chunk of stream(path, body, controller.signal)) {
      id = chunk.id;
      if (chunk.usage) meter.count(chunk.usage);
      const choice = chunk.choices[0];
      const text = choice?.delta?.content ?? choice?.text ?? "";
      if (text) {
        const follows = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 80;
        view.add(text);
        meter.tick();
        view.figures(meter.text());
        if (follows) requestAnimationFrame(() => { scroll.scrollTop = scroll.scrollHeight; });
      }
    }
  } catch (problem) {
    stopped = problem.name === "AbortError";
    if (!stopped) error = problem.message;
  }
  if (turns !== conversation) return; // a new chat was begun meanwhile
  running = null;
  turn.content = view.text;
  if (turn.content) turns.push(turn);
  view.figures(meter.text() + (stopped ? " · stopped" : ""));
  view.end({ id, error });
  at("context").textContent = meter.context(model().max_model_len);
  at("status").textContent = error || (stopped ? "Stopped." : "The answer is complete.");
  refresh();
  scroll.scrollTop = scroll.scrollHeight;
  input.focus({ preventScroll: true });
}

/** Tokens, their rate and the wait for the first one. */
class Meter {
  constructor() {
    this.asked = performance.now();
    this.first = this.last = null;
    this.tokens = 0;
    this.usage = null;
  }

  /** A piece of text arrived; until usage is known, each counts as a token. */
  tick() {
    this.last = performance.now();
    this.first ??= this.last;
    this.tokens += 1;
  }

  count(usage) {
    this.usage = usage;
    this.tokens = usage.completion_tokens;
  }

  text() {
    if (!this.first) return "";
    const parts = [`${this.tokens} token${this.tokens === 1 ? "" : "s"}`];
    const seconds = (this.last - this.first) / 1000;
    if (this.tokens > 1 && seconds > 0) parts.push(`${((this.tokens - 1) / seconds).toFixed(1)} tokens/s`);
    parts.push(`first after ${((this.first - this.asked) / 1000).toFixed(2)} s`);
    return parts.join(" · ");
  }

  context(size) {
    return this.usage ? `${this.usage.total_tokens.toLocaleString("en")} of ${size.toLocaleString("en")} tokens` : "";
  }
}

/** Drop the last answer (or failure) and ask again. */
function regenerate() {
  if (running) return;
  if (turns.at(-1)?.role === "assistant") turns.pop();
  log.lastElementChild.remove();
  answer();
}

function reset() {
  running?.abort();
  running = null;
  turns = [];
  log.replaceChildren();
  at("context").textContent = "";
  refresh();
  input.focus();
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) {
    running.abort();
    return;
  }
  const text = chats() ? input.value.trim() : input.value;
  if (!text.trim()) return;
  input.value = "";
  say(text);
});

input.addEventListener("input", refresh);
input.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!running) composer.requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    if (running) running.abort();
    else settings.open(false);
  }
});
clear.addEventListener("click", reset);
picker.addEventListener("change", modelChosen);
loadModels();
