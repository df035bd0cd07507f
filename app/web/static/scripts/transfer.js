// Owns the sending of one file. A small one goes in one request, which may be repeated by its Idempotency-Key. A large
// one goes by tus 1.0.0, in parts; after any break HEAD says where to go on.

import { UPLOADS, Unreachable, ask } from "./api.js";
import { Rate } from "./rate.js";
import { hashInBackground } from "./recognition.js";
import { send } from "./request.js";

/** Up to here a file is sent in one request: sending it again costs less than asking what arrived. */
export const WHOLE_BYTES = 1024 * 1024;

/** Bytes of one PATCH: what a proxy may hold back, and what a lost answer may cost in time. */
const PART_BYTES = 64 * 1024 * 1024;

const TUS = { "Tus-Resumable": "1.0.0" };

/** The file cannot be read any more on this device, because it was changed, moved or deleted. */
export class Unreadable extends Error {}

/** One file on its way. `uploads.js` decides when it runs; this knows how. */
export class Transfer {
  /** "waiting", "sending", "finishing" (all bytes are sent), "resting" (until `restUntil`), "paused", "missing" (its file
   * must be chosen again), "asking" (for the permission to read its file), "failed" or "done". */
  state = "waiting";
  /** Why it failed or rests: a problem document, or one of our own codes. */
  problem = null;
  restUntil = 0;
  failures = 0;
  /** Bytes that were sent, or that the service has. */
  sent = 0;
  /** The resumable upload's URL, and the hash of the file's ends, once it was begun. */
  url = null;
  ends = null;
  rate = new Rate();
  /** The AbortController of the request under way. */
  stop = null;

  constructor({ id = newId(), name, path = null, size, type = "", modified = 0, root = null, batch = null, bundle = null }, file = null) {
    Object.assign(this, { id, name, path, size, type, modified, root, batch, bundle, file });
  }

  get isLarge() {
    return this.size > WHOLE_BYTES;
  }

  /** What is kept over a reload. */
  get kept() {
    const { id, name, path, size, type, modified, root, batch, bundle, url, ends } = this;
    return { id, name, path, size, type, modified, root, batch, bundle, url, ends };
  }

  /** Send the file; its record. `changed` is called with the bytes `moved`, and `isNew` when the URL is to be kept. Raises Refused, Unreachable, Unreadable, and AbortError when the signal says so. */
  async send(signal, changed) {
    try {
      return this.isLarge ? await this.#sendInParts(signal, changed) : await this.#sendWhole(signal, changed);
    } catch (error) {
      if (error instanceof Unreachable && !(await canBeRead(this.file))) throw new Unreadable();
      throw error;
    }
  }

  /** Tell the service that the rest will not come. */
  async cancel() {
    if (this.url) await send("DELETE", this.url, TUS, null, new AbortController().signal);
  }

  async #sendWhole(signal, changed) {
    const path = (this.path ?? this.name).split("/").map(encodeURIComponent).join("/");
    const headers = { "Idempotency-Key": `"${this.id}"`, "Content-Type": this.type || "application/octet-stream" };
    this.#move("sending", 0, changed);
    const answer = await this.#request("PUT", `${UPLOADS}/${path}`, headers, this.file, 0, signal, changed);
    return JSON.parse(answer.text);
  }

  async #sendInParts(signal, changed) {
    this.#move("sending", this.sent, changed);
    let link = null;
    let offset = this.sent;
    if (this.url) {
      [offset, link] = await this.#askOffset(signal);
    } else {
      this.ends = await hashInBackground(this.file).catch((error) => {
        throw new Unreadable(error.message);
      });
      this.url = await this.#create(signal);
      offset = 0;
      changed({ moved: 0, isNew: true });
    }
    while (!link) {
      this.#move("sending", offset, changed);
      const part = this.file.slice(offset, offset + PART_BYTES);
      const headers = { ...TUS, "Content-Type": "application/offset+octet-stream", "Upload-Offset": `${offset}` };
      const answer = await this.#request("PATCH", this.url, headers, part, offset, signal, changed);
      offset = Number(answer.header("Upload-Offset"));
      link = linked(answer);
    }
    this.#move("finishing", this.size, changed);
    return ask("GET", link, { signal });
  }

  async #create(signal) {
    const pairs = { filename: this.name, filetype: this.type, relativePath: this.path };
    const metadata = Object.entries(pairs).filter(([, text]) => text).map(([name, text]) => `${name} ${base64(text)}`);
    const headers = { ...TUS, "Upload-Length": `${this.size}`, "Upload-Metadata": metadata.join(",") };
    const answer = await this.#request("POST", UPLOADS, headers, null, 0, signal, () => {});
    return new URL(answer.header("Location"), location.href).pathname;
  }

  async #askOffset(signal) {
    const answer = await this.#request("HEAD", this.url, TUS, null, this.sent, signal, () => {});
    return [Number(answer.header("Upload-Offset")), linked(answer)];
  }

  /** One request with a body that begins at an offset of the file. */
  #request(method, url, headers, body, offset, signal, changed) {
    return send(method, url, headers, body, signal, (loaded) => {
      const state = body && offset + loaded >= this.size ? "finishing" : "sending";
      this.#move(state, offset + loaded, changed, Math.max(0, offset + loaded - this.sent));
    });
  }

  /** Note how far it is; `moved` bytes of that went over the network just now. */
  #move(state, sent, changed, moved = 0) {
    this.state = state;
    this.sent = Math.min(sent, this.size);
    if (moved) this.rate.add(moved);
    changed({ moved, isNew: false });
  }
}

/** The record's address in the answer that finished an upload; null of every other answer. */
function linked(answer) {
  return /<([^>]+)>;\s*rel="describedby"/.exec(answer.header("Link") ?? "")?.[1] ?? null;
}

/** Whether the browser can still read the file; one that was changed or moved looks like a broken network. */
export async function canBeRead(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}

function base64(text) {
  return btoa(String.fromCharCode(...new TextEncoder().encode(text)));
}

// crypto.randomUUID is missing on plain http.
const chance = [...crypto.getRandomValues(new Uint32Array(4))].map((word) => word.toString(36)).join("");
let count = 0;

/** A new id; later ones come later in order, over reloads too. */
export function newId() {
  count += 1;
  return `${Date.now().toString(16).padStart(12, "0")}-${count.toString(16).padStart(8, "0")}-${chance}`;
}

