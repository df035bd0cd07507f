// Owns the knowledge whether the service can be reached. Whoever fails to reach it says so here; from then on one
// question with growing pauses is asked, instead of one for each upload.

import { base } from "./api.js";

const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 15_000;
const PATIENCE = 5_000;

class Connection extends EventTarget {
  /** "up", "offline" (this device has no network), "away" (nobody answers) or "restarting" (it says so itself). */
  state = "up";
  #asking = false;
  #wake = () => {};

  constructor() {
    super();
    addEventListener("offline", () => this.lost());
    addEventListener("online", () => this.#wake());
    document.addEventListener("visibilitychange", () => this.#wake());
  }

  get isUp() {
    return this.state === "up";
  }

  /** Somebody could not reach the service. Resolves when it is known to answer. */
  async lost() {
    if (this.#asking) return;
    this.#asking = true;
    for (let pause = FIRST_PAUSE; !(await this.#answers()); pause = Math.min(2 * pause, LONGEST_PAUSE)) {
      await this.#rest(pause * (0.75 + Math.random() / 2));
    }
    this.#asking = false;
    this.#become("up");
  }

  async #answers() {
    try {
      const answer = await fetch(`${base}/health/live`, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
      if (answer.ok) return true;
      this.#become("restarting");
    } catch {
      this.#become(navigator.onLine ? "away" : "offline");
    }
    return false;
  }

  #rest(milliseconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  #become(state) {
    if (this.state === state) return;
    this.state = state;
    this.dispatchEvent(new Event("change"));
  }
}

export const connection = new Connection();
