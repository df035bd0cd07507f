// Owns a request with a body whose progress is told: an XMLHttpRequest, because fetch does not tell how far a body has
// gone. One that moves nothing for a while is broken off.

import { Unreachable, refusal } from "./api.js";

const STALLED = 45_000;

/** Send; the answer as `{status, text, header}`. Raises Refused, Unreachable, and AbortError when the signal says so. */
export function send(method, url, headers, body, signal, moved = () => {}) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const stall = () => request.abort();
    let timer = setTimeout(stall, STALLED);
    request.open(method, url);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded, total }) => {
      clearTimeout(timer);
      timer = setTimeout(stall, STALLED);
      moved(loaded, total);
    };
    request.onload = () => {
      const header = (name) => request.getResponseHeader(name);
      if (request.status < 300) resolve({ status: request.status, text: request.responseText, header });
      else reject(refusal(request.status, request.responseText, header));
    };
    request.onerror = () => reject(new Unreachable(`${method} ${url}`));
    request.onabort = () => reject(signal.aborted ? new DOMException("", "AbortError") : new Unreachable("stalled"));
    request.onloadend = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", stall);
    };
    signal.addEventListener("abort", stall);
    request.send(body);
  });
}
