// Owns the uploads of this tab that are not finished: which run, which wait and for what, and what comes after an error.

import { FILES, Refused, Unreachable, ask, state } from "./api.js";
import { Bundle, fits } from "./bundle.js";
import { connection } from "./connection.js";
import { forget, keep, keepRoot } from "./kept.js";
import { Rate } from "./rate.js";
import { session } from "./session.js";
import { Transfer, Unreadable, canBeRead, newId } from "./transfer.js";

/** Browsers have six connections to an origin; the events need one. Large files leave one more free for all else. */
const AT_ONCE = 5;
const LARGE_AT_ONCE = 4;

/** Failures in a row, without a byte between, after which an upload waits for the person. */
const MOST_FAILURES = 6;
const LONGEST_REST = 60;

/** Milliseconds after which new rows are painted. */
const PAINTED = 50;

/** Refusals that time heals. */
const PASSING = new Set([408, 409, 423, 425, 429, 500, 502, 503, 504]);
/** Refusals that no second try changes; for all others the page offers one. */
const FINAL = new Set(["too_large", "request_too_large", "bad_filename", "bad_metadata", "unsupported_media_type"]);

/** A dropped folder: one row, however many files it has. */
class Folder {
  isOpen = false;
  files = 0;
  done = 0;
  size = 0;
  doneSize = 0;
  transfers = new Set();

  constructor(name) {
    this.id = newId();
    this.name = name;
  }
}

class Uploads extends EventTarget {
  transfers = new Map();
  folders = new Map();
  /** Small files that go together, by the id that their transfers name. */
  #bundles = new Map();
  rate = new Rate();
  /** What the row of all together tells: everything since the list was last empty. */
  total = { files: 0, done: 0, size: 0, doneSize: 0 };
  #running = new Set();
  #roots = new Map();
  #finished = [];

  constructor() {
    super();
    connection.addEventListener("change", () => {
      if (!connection.isUp) this.rate.reset();
      this.#changed();
      this.#pump();
    });
    setInterval(() => this.#forgetFinished(), 500);
    addEventListener("pagehide", () => this.#forgetFinished());
  }

  /** Upload new files, `{file, path, root}` each, that came together as `batch`. */
  add(found, batch) {
    const added = found.map(({ file, path, root }) => {
      const { name, size, type, lastModified: modified } = file;
      return this.put(new Transfer({ name, path, size, type, modified, batch, root: root && this.#rootId(root) }, file));
    });
    const most = state.limits?.file_bytes;
    for (const transfer of added) {
      if (most && transfer.size > most) this.#fail(transfer, { code: "too_large", limit: most, received: transfer.size });
    }
    const waiting = added.filter((transfer) => transfer.state !== "failed");
    this.#bundle(waiting.filter(fits));
    this.#pumpLater(() => this.#keep(waiting.filter((one) => this.transfers.has(one.id))));
  }

  /** Begin when the rows are painted: ten thousand are shown first, and sent then. A tab in the background paints nothing. */
  #pumpLater(first = () => {}) {
    this.#changed();
    setTimeout(() => {
      first();
      this.#pump();
    }, PAINTED);
  }

  #bundle(small) {
    if (small.length < 2) return;
    let bundle = null;
    for (const transfer of small) {
      if (bundle?.take(transfer)) continue;
      bundle = new Bundle();
      bundle.take(transfer);
      this.#bundles.set(bundle.id, bundle);
    }
  }

  /** Bundles that a reload left are sent as they were, for they may have landed. Those that are not complete are not. */
  rebundle() {
    const groups = new Map();
    for (const transfer of this.transfers.values()) {
      if (transfer.bundle && !this.#bundles.has(transfer.bundle)) groups.set(transfer.bundle, [...(groups.get(transfer.bundle) ?? []), transfer]);
    }
    for (const [id, members] of groups) {
      const bundle = new Bundle(id);
      const isWhole = members.every((one) => one.state === "waiting" && bundle.take(one));
      if (isWhole) this.#bundles.set(id, bundle);
      else members.forEach((one) => one.file && (one.bundle = null));
    }
    this.#pumpLater();
  }

  /** Take a transfer into the list, new or left by a reload; the transfer. */
  put(transfer) {
    this.transfers.set(transfer.id, transfer);
    this.total.files += 1;
    this.total.size += transfer.size;
    const folder = this.#folderOf(transfer);
    if (folder) {
      folder.files += 1;
      folder.size += transfer.size;
      folder.transfers.add(transfer);
      transfer.folder = folder;
    }
    return transfer;
  }

  #folderOf({ path, batch }) {
    if (!path?.includes("/")) return null;
    const key = `${batch} ${path.slice(0, path.indexOf("/"))}`;
    if (!this.folders.has(key)) this.folders.set(key, new Folder(path.slice(0, path.indexOf("/"))));
    return this.folders.get(key);
  }

  /** The id of a handle: it is kept once, for all files below it. */
  #rootId(handle) {
    if (!this.#roots.has(handle)) {
      const id = newId();
      this.#roots.set(handle, id);
      keepRoot(id, handle);
    }
    return this.#roots.get(handle);
  }

  /** Give a transfer that waited for its file what it needs to go on. */
  give(transfer, file) {
    Object.assign(transfer, { file, modified: file.lastModified, state: "waiting" });
    this.#keep([transfer]);
    this.#changed();
    this.#pump();
  }

  /** The kept handle leads to no such file any more: the person must choose it again. */
  lose(transfer) {
    transfer.state = "missing";
    this.#changed();
  }

  /** Pause one. What is on its way with others goes on: it may have landed by now. */
  pause(transfer) {
    const isTogether = this.#bundles.get(transfer.bundle)?.isSent;
    if (isTogether || !["waiting", "sending", "finishing", "resting"].includes(transfer.state)) return;
    transfer.state = "paused";
    transfer.rate.reset();
    transfer.stop?.abort();
    this.#changed();
  }

  /** Go on with what was paused, or try again what failed. */
  resume(transfer) {
    if (!["paused", "failed", "resting"].includes(transfer.state)) return;
    Object.assign(transfer, { state: transfer.file ? "waiting" : "missing", problem: null, failures: 0 });
    this.#changed();
    this.#pump();
  }

  pauseAll() {
    for (const transfer of this.transfers.values()) this.pause(transfer);
  }

  resumeAll() {
    for (const transfer of [...this.transfers.values()]) if (transfer.state === "paused") this.resume(transfer);
  }

  /** Give an upload up; what the service has of it goes. */
  async cancel(transfer) {
    transfer.state = "cancelled";
    transfer.stop?.abort();
    const bundle = this.#bundles.get(transfer.bundle);
    if (bundle && !bundle.isSent) this.#release(bundle, transfer);
    this.#remove(transfer);
    this.total.files -= 1;
    this.total.size -= transfer.size;
    if (transfer.folder) {
      transfer.folder.files -= 1;
      transfer.folder.size -= transfer.size;
    }
    this.#pump();
    await this.#forgetFinished(); // a reload does not bring back what was given up
    await this.#tell(() => transfer.cancel());
  }

  #discard(record) {
    return this.#tell(() => ask("DELETE", `${FILES}/${record.id}`));
  }

  /** Tell the service what is not wanted any more. What it does not hear expires by itself, or stands in the history. */
  async #tell(work) {
    try {
      await work();
    } catch (error) {
      if (error instanceof Unreachable) connection.lost();
      else if (!(error instanceof Refused)) throw error;
    }
  }

  cancelAll() {
    for (const transfer of [...this.transfers.values()]) this.cancel(transfer);
  }

  canRetry = (transfer) => transfer.state === "failed" && !FINAL.has(transfer.problem.code);

  /** Whether a record of the history is one of these, so that it is shown once. */
  has(record) {
    for (const { isLarge, url, size, name, path } of this.transfers.values()) {
      if (isLarge && url && size === record.size && (path ?? name) === (record.path ?? record.filename)) return true;
    }
    return false;
  }

  #pump() {
    if (!connection.isUp) return;
    let large = [...this.#running].filter((job) => job.isLarge).length;
    for (const transfer of this.transfers.values()) {
      if (this.#running.size >= AT_ONCE) return;
      if (transfer.state !== "waiting" || (transfer.isLarge && large >= LARGE_AT_ONCE)) continue;
      const job = transfer.bundle ? this.#ready(this.#bundles.get(transfer.bundle)) : transfer;
      if (!job || this.#running.has(job)) continue;
      large += transfer.isLarge;
      this.#run(job);
    }
  }

  /** A bundle that may go now, without its members that are paused; null if it must wait. */
  #ready(bundle) {
    if (!bundle || bundle.members.some((one) => one.state === "resting")) return null;
    const paused = bundle.isSent ? [] : bundle.members.filter((one) => one.state === "paused");
    paused.forEach((one) => this.#release(bundle, one));
    return bundle;
  }

  /** Let a transfer go its own way; the bundle has another id then. */
  #release(bundle, transfer) {
    this.#bundles.delete(bundle.id);
    bundle.release(transfer);
    if (bundle.members.length) this.#bundles.set(bundle.id, bundle);
    this.#keep([transfer, ...bundle.members]);
  }

  /** Send a transfer or a bundle of them. */
  async #run(job) {
    const members = job.members ?? [job];
    this.#running.add(job);
    for (const one of members) one.state = "sending";
    job.stop = new AbortController();
    try {
      await session.begin();
      job.stop.signal.throwIfAborted();
      const sent = await job.send(job.stop.signal, (news) => this.#note(members, news));
      [sent].flat().forEach((record, at) => this.#finish(members[at], record));
      if (job.members) this.#bundles.delete(job.id);
    } catch (error) {
      await this.#judgeAll(job, members, error);
    } finally {
      job.stop = null;
      this.#running.delete(job);
      this.#changed();
      this.#pump();
    }
  }

  /** What an error means for all that were sent together. A refusal is about one of them: each is tried alone. */
  async #judgeAll(job, members, error) {
    if (!job.members) return this.#judge(job, error);
    if (error instanceof Refused && !PASSING.has(error.status)) {
      this.#bundles.delete(job.id);
      for (const one of members) Object.assign(one, { bundle: null, state: one.state === "cancelled" ? "cancelled" : "waiting", sent: 0 });
      return;
    }
    for (const one of members) {
      if (one.state === "cancelled") continue;
      const isGone = error instanceof Unreachable && !(await canBeRead(one.file));
      if (isGone) this.#release(job, one);
      this.#judge(one, isGone ? new Unreadable() : error);
    }
  }

  #note(members, { moved, isNew }) {
    if (moved) {
      this.rate.add(moved);
      for (const one of members) one.failures = 0;
    }
    if (isNew) this.#keep(members);
    this.#changed();
  }

  /** What an error means: it is waited for, tried again, or told. */
  #judge(transfer, error) {
    transfer.rate.reset();
    if (error.name === "AbortError") return; // paused or cancelled
    transfer.failures += 1;
    if (error instanceof Unreachable) {
      connection.lost();
      if (transfer.failures > MOST_FAILURES) this.#fail(transfer, { code: "broken" });
      else this.#rest(transfer, null, transfer.failures > 1 ? null : 0);
    } else if (error instanceof Unreadable) {
      this.#fail(transfer, { code: "unreadable", detail: error.message });
    } else if (!(error instanceof Refused)) {
      this.#fail(transfer, { code: "unknown", detail: String(error) });
      throw error;
    } else if (transfer.url && [404, 410].includes(error.status) && transfer.failures === 1) {
      Object.assign(transfer, { url: null, sent: 0, state: "waiting" }); // it ran out of time: it begins anew
    } else if (PASSING.has(error.status) && transfer.failures <= MOST_FAILURES) {
      this.#rest(transfer, error.document, error.retryAfter);
    } else {
      this.#fail(transfer, error.document);
    }
  }

  /** Wait before the next try: as long as the service asked, else ever longer; never all at the same moment. */
  #rest(transfer, problem, seconds) {
    const wait = (seconds ?? Math.min(2 ** (transfer.failures - 1), LONGEST_REST)) * (1 + Math.random() / 4);
    Object.assign(transfer, { state: "resting", problem, restUntil: Date.now() + wait * 1000 });
    setTimeout(() => {
      if (transfer.state !== "resting") return;
      transfer.state = "waiting";
      this.#changed();
      this.#pump();
    }, wait * 1000);
  }

  #fail(transfer, problem) {
    Object.assign(transfer, { state: "failed", problem });
    if (!this.canRetry(transfer)) this.#finished.push(transfer.id);
    this.dispatchEvent(new CustomEvent("failed", { detail: transfer }));
    this.#changed();
  }

  #finish(transfer, record) {
    if (transfer.state === "cancelled") return this.#discard(record); // it was on its way with others
    transfer.state = "done";
    for (const sum of [this.total, transfer.folder]) {
      if (!sum) continue;
      sum.done += 1;
      sum.doneSize += transfer.size;
    }
    this.#remove(transfer);
    this.dispatchEvent(new CustomEvent("done", { detail: { transfer, record } }));
  }

  #remove(transfer) {
    this.transfers.delete(transfer.id);
    this.#finished.push(transfer.id);
    const { folder } = transfer;
    folder?.transfers.delete(transfer);
    if (folder && !folder.transfers.size) {
      for (const [key, one] of this.folders) if (one === folder) this.folders.delete(key);
    }
    if (!this.transfers.size) {
      this.total = { files: 0, done: 0, size: 0, doneSize: 0 };
      this.rate.reset();
    }
    this.#changed();
  }

  /** Keep them for a reload; an upload whose keeping fails goes on all the same, and says so. */
  #keep(transfers) {
    if (transfers.length) keep(transfers).catch(() => this.dispatchEvent(new Event("unkept")));
  }

  async #forgetFinished() {
    if (!this.#finished.length) return;
    try {
      await forget(this.#finished.splice(0));
    } catch {
      this.dispatchEvent(new Event("unkept"));
    }
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

export const uploads = new Uploads();
