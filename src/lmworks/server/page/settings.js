// The settings panel: sampling controls, kept in this browser. Knows the names of OpenAI's fields, no conversation.

const DEFAULTS = { system: "", temperature: "0.7", top_p: "0.95", max_tokens: "", seed: "" };
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

/** Hide what does not apply to a model without a chat template. */
export function showChatFields(visible) {
  for (const field of form.querySelectorAll("[data-chat]")) field.hidden = !visible;
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

function show(values) {
  for (const [name, value] of Object.entries({ ...DEFAULTS, ...values })) form[name].value = value;
  refresh();
}

function refresh() {
  document.getElementById("temperature-value").value = Number(form.temperature.value).toFixed(2);
  document.getElementById("top-p-value").value = Number(form.top_p.value).toFixed(2);
}

function save() {
  const values = Object.fromEntries(Object.keys(DEFAULTS).map((name) => [name, form[name].value]));
  localStorage.setItem("settings", JSON.stringify(values));
}

function saved() {
  try {
    return JSON.parse(localStorage.getItem("settings")) ?? {};
  } catch {
    return {};
  }
}

form.addEventListener("input", () => { refresh(); save(); });
form.addEventListener("submit", (event) => event.preventDefault());
document.getElementById("reset").addEventListener("click", () => { show(DEFAULTS); save(); });
toggle.addEventListener("click", () => open(panel.hidden));
show(saved());
