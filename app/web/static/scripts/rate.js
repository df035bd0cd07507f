// Owns a speed: bytes of the last ten seconds, so that it is calm and the time left does not jump.

const WINDOW = 10_000;
const STEP = 250;

export class Rate {
  #marks = [];
  #total = 0;

  add(bytes, now = performance.now()) {
    this.#total += bytes;
    const last = this.#marks.at(-1);
    if (!last || now - last.at >= STEP) this.#marks.push({ at: now, total: this.#total - bytes });
    while (this.#marks.length > 1 && now - this.#marks[1].at > WINDOW) this.#marks.shift();
  }

  /** Bytes a second, or null until there is something to tell. */
  perSecond(now = performance.now()) {
    const first = this.#marks[0];
    if (!first || now - first.at < 2 * STEP) return null;
    return ((this.#total - first.total) * 1000) / (now - first.at);
  }

  reset() {
    this.#marks = [];
  }
}
