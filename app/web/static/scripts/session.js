// Owns what the page knows of its session: whether there is one, its quota and its devices.

import { HISTORY, SESSION, ask, state } from "./api.js";

/** Pause between two questions for what is used, however many uploads finish. */
const PAUSE = 1_500;

class Session extends EventTarget {
  /** The session as GET /api/session has it, or null. */
  current = state.session;
  /** As the history's summary has it, or null as long as it is not known. */
  quota = null;
  #beginning = null;
  #timer = null;
  #channel = new BroadcastChannel(`waybill${state.base} session`);

  constructor() {
    super();
    this.#channel.onmessage = () => this.refresh();
  }

  /** Make sure that there is a session, once for all uploads that begin together. */
  async begin() {
    if (this.current) return;
    this.#beginning ??= ask("POST", SESSION).finally(() => (this.#beginning = null));
    this.#become(await this.#beginning);
    this.#channel.postMessage("begun");
  }

  /** Ask for the session and its quota again. */
  async refresh() {
    const [current, summary] = await Promise.all([ask("GET", SESSION), ask("GET", `${HISTORY}/summary`)]);
    this.quota = summary.quota;
    this.#become(current);
  }

  /** Ask again soon; several calls make one question. A question that fails is asked by the next change. */
  refreshSoon() {
    this.#timer ??= setTimeout(() => {
      this.#timer = null;
      if (this.current) this.refresh().catch(() => {});
    }, PAUSE);
  }

  async addDevice() {
    await this.begin();
    return ask("POST", `${SESSION}/link`, { json: { page: location.href.split(/[?#]/)[0] } });
  }

  async join(code) {
    this.#become(await ask("POST", `${SESSION}/join`, { json: { code } }));
    this.#channel.postMessage("joined");
  }

  async end() {
    await ask("DELETE", SESSION);
  }

  #become(current) {
    const isNew = this.current?.id !== current.id;
    this.current = current;
    this.dispatchEvent(new Event("change"));
    if (isNew) this.dispatchEvent(new Event("new"));
  }
}

export const session = new Session();
