// Owns small files that go together in one form: one request and one transaction for many, so that a folder of a
// thousand pictures takes seconds. They land together or not at all.

import { UPLOADS, state } from "./api.js";
import { send } from "./request.js";
import { newId } from "./transfer.js";

const MOST_BYTES_EACH = 128 * 1024;
const MOST_BYTES = 1024 * 1024;
const MOST_FILES = 50;

export class Bundle {
  members = [];
  #bytes = 0;
  /** Whether it was ever sent: from then on its members stay together, for they may have landed. */
  isSent = false;

  constructor(id = newId()) {
    this.id = id;
  }

  /** Take a transfer in; false if it does not fit. */
  take(transfer) {
    const most = Math.min(MOST_FILES, state.limits.files);
    if (this.members.length >= most || this.#bytes + transfer.size > MOST_BYTES) return false;
    this.#bytes += transfer.size;
    this.members.push(transfer);
    transfer.bundle = this.id;
    return true;
  }

  /** Let a transfer go; the others are another request from now on. */
  release(transfer) {
    this.members = this.members.filter((one) => one !== transfer);
    transfer.bundle = null;
    this.id = newId();
    for (const one of this.members) one.bundle = this.id;
  }

  /** Send the files; their records, in order. The same form is sent again under the same key, and lands once. */
  async send(signal, changed) {
    this.isSent = true;
    const form = new FormData();
    for (const { file, path, name } of this.members) form.append("file", file, path ?? name);
    const move = (stage, share, moved) => {
      for (const one of this.members) Object.assign(one, { state: stage, sent: one.size * share });
      changed({ moved, isNew: false });
    };
    move("sending", 0, 0);
    let before = 0;
    const answer = await send("POST", UPLOADS, { "Idempotency-Key": `"${this.id}"` }, form, signal, (loaded, total) => {
      move(loaded < total ? "sending" : "finishing", total ? loaded / total : 1, loaded - before);
      before = loaded;
    });
    return JSON.parse(answer.text).items;
  }
}

/** Whether a file may go in a bundle. Browsers and servers do not agree on how a form writes some characters of names. */
export const fits = ({ size, path, name }) => size <= MOST_BYTES_EACH && !/["%\\\r\n]/.test(path ?? name);
