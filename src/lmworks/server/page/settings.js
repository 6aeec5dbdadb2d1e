// The settings panel: sampling controls, kept in this browser. Knows the names of OpenAI's fields, no conversation.

const DEFAULTS = { system: "", temperature: "0.2", top_p: "0.9", max_tokens: "", seed: "" };
const CONTINUING = { ...DEFAULTS, temperature: "0.8", top_p: "0.95" }; // small models that continue text else repeat it
let defaults = DEFAULTS;
let changed = saved(); // what the reader has set, over either kind's defaults

const form = document.getElementById("controls");
const panel = document.getElementById("settings");
const toggle = document.getElementById("toggle-settings");

/** The sampling fields of a request; what is left empty is left out. */
export function sampling() {
  const fields = { temperature: Number(form.temperature.value), top_p: Number(form.top_p.value) };
  for (const name of ["max_tokens", "seed"]) {
    const value = parseInt(form[name].value, 10);
    if (Number.isSafeInteger(value)) fields[name] = value;
  }
  return fields;
}

/** The system prompt, or "". */
export function systemPrompt() {
  return form.system.value.trim();
}

/** Fit the panel to a model that chats, or to one that continues text. */
export function fit(chats) {
  defaults = chats ? DEFAULTS : CONTINUING;
  for (const field of form.querySelectorAll("[data-chat]")) field.hidden = !chats;
  show();
}

/** Open or close the panel. */
export function open(visible) {
  panel.hidden = !visible;
  toggle.setAttribute("aria-expanded", String(visible));
}

/** Show the key field and call `entered` with each key given. */
export function askForKey(entered) {
  open(true);
  document.getElementById("key-field").hidden = false;
  form.key.onchange = () => entered(form.key.value.trim());
  form.key.focus();
}

function show() {
  for (const [name, value] of Object.entries({ ...defaults, ...changed })) form[name].value = value;
  refresh();
}

function refresh() {
  document.getElementById("temperature-value").value = Number(form.temperature.value).toFixed(2);
  document.getElementById("top-p-value").value = Number(form.top_p.value).toFixed(2);
}

function saved() {
  try {
    return JSON.parse(localStorage.getItem("settings")) ?? {};
  } catch {
    return {};
  }
}

function keep(values) {
  changed = values;
  localStorage.setItem("settings", JSON.stringify(changed));
}

form.addEventListener("input", ({ target }) => {
  refresh();
  if (target.name in DEFAULTS) keep({ ...changed, [target.name]: target.value });
});
form.addEventListener("submit", (event) => event.preventDefault());
document.getElementById("reset").addEventListener("click", () => { keep({}); show(); });
toggle.addEventListener("click", () => open(panel.hidden));
