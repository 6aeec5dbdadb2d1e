// The server's routes as functions: models, streamed answers, traces. Knows no page element.

let key = sessionStorage.getItem("key") ?? "";

/** Remember the API key for this tab. */
export function setKey(value) {
  key = value;
  sessionStorage.setItem("key", value);
}

/** A refusal of the server's, or a connection that failed; `status` is 0 for the latter. */
export class ApiError extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new ApiError(body?.error?.message ?? `The server answered ${response.status}.`, response.status, body?.error?.code);
}

/** The served models: `[{id, max_model_len, capabilities}]`. */
export async function listModels() {
  return (await (await request("/v1/models")).json()).data;
}

/** Which model gave a response, and what that was made from. */
export async function fetchTrace(id) {
  return (await request(`/v1/traces/${encodeURIComponent(id)}`)).json();
}

/** Post `body` with `stream: true` and yield each event's object until `[DONE]`. */
export async function* stream(path, body, signal) {
  const response = await request(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const value = JSON.parse(data);
    if (value.error) throw new ApiError(value.error.message, 0, value.error.code);
    yield value;
  }
  throw new ApiError("The connection ended before the answer was complete.");
}

/** The data of each server-sent event of a byte stream. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (pending + value).split("\n\n");
    pending = blocks.pop();
    for (const block of blocks) if (block.startsWith("data: ")) yield block.slice(6);
  }
}
