// Owns how the page asks the service: addresses, JSON, and refusals as errors.

/** What the service wrote into the page: base, session, limits, records. */
export const state = JSON.parse(document.getElementById("state").textContent);

export const base = state.base;

export const UPLOADS = `${base}/api/ingestion/uploads`;
export const HISTORY = `${base}/api/ingestion/history`;
export const FILES = `${base}/api/ingestion/files`;
export const SESSION = `${base}/api/session`;

/** The service refused; `document` is its problem document. */
export class Refused extends Error {
  constructor(status, document, retryAfter = null) {
    super(document.detail ?? `${status}`);
    this.status = status;
    this.document = document;
    this.retryAfter = retryAfter;
  }
}

/** The service could not be asked: no network, or nobody answers. */
export class Unreachable extends Error {}

/** A refusal out of an answer's parts; a proxy's answer may be no problem document. */
export function refusal(status, text, header) {
  let document = { code: status >= 500 ? "unavailable" : "unknown", detail: `HTTP ${status}` };
  try {
    const parsed = JSON.parse(text);
    if (typeof parsed?.code === "string") document = parsed;
  } catch {
    // Not ours: what stands above is all that is known.
  }
  document.request_id ??= header("X-Request-Id") ?? undefined;
  return new Refused(status, document, seconds(header("Retry-After")));
}

/** Retry-After in seconds, which comes as a number or as a date. */
function seconds(text) {
  if (!text) return null;
  const number = Number(text);
  const found = Number.isNaN(number) ? (Date.parse(text) - Date.now()) / 1000 : number;
  return Number.isFinite(found) ? Math.max(0, found) : null;
}

/** Ask for JSON, or send some; the answer's value, or null of an empty one. Raises Refused and Unreachable. */
export async function ask(method, url, { json, signal, keepalive = false } = {}) {
  let answer;
  let text;
  try {
    answer = await fetch(url, {
      method,
      signal,
      keepalive,
      headers: json === undefined ? {} : { "Content-Type": "application/json" },
      body: json === undefined ? undefined : JSON.stringify(json),
    });
    text = await answer.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Unreachable(error.message);
  }
  if (!answer.ok) throw refusal(answer.status, text, (name) => answer.headers.get(name));
  return text ? JSON.parse(text) : null;
}
