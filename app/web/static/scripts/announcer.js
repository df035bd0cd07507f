// Owns the one live region: how many are uploaded, at most every ten seconds, and each failure once.

import { byId } from "./dom.js";

const PAUSE = 10_000;

let timer = null;
let latest = null;

/** Say something now. */
export function announce(text) {
  byId("live").textContent = text;
}

/** Say how far it is, but not more often than every ten seconds; the newest of several is said. */
export function announceProgress(tell) {
  latest = tell;
  timer ??= setTimeout(() => {
    timer = null;
    announce(latest());
  }, PAUSE);
}
