// Owns the session's history as far as it is loaded: pages by cursor, filters, order, and what the events bring.

import { HISTORY, ask, state } from "./api.js";
import { language } from "./words.js";

const PAGE = 100;
const PRESENT = "uploading,processing,completed,failed,expired";

/** The filters by status, and the statuses that each stands for. */
export const STATUSES = {
  present: PRESENT,
  completed: "completed",
  underway: "uploading,processing",
  failed: "failed,expired",
  deleted: "deleted",
  all: "",
};

/** The filters by type, and the media types that each stands for. */
export const TYPES = {
  any: "",
  images: "image/*",
  video: "video/*",
  audio: "audio/*",
  documents: "application/pdf,text/*,application/msword,application/rtf,application/vnd.openxmlformats-officedocument.wordprocessingml.document,application/vnd.openxmlformats-officedocument.spreadsheetml.sheet,application/vnd.openxmlformats-officedocument.presentationml.presentation,application/vnd.oasis.opendocument.text,application/vnd.oasis.opendocument.spreadsheet,application/vnd.oasis.opendocument.presentation",
  archives: "application/zip,application/gzip,application/x-tar,application/x-7z-compressed,application/x-bzip2,application/x-xz,application/vnd.rar,application/x-rar-compressed",
};

/** The filters by time, and how many days back each goes; 0 is today. */
export const TIMES = { any: null, today: 0, week: 6, month: 29 };

export const ORDERS = ["newest", "oldest", "name", "-name", "-size", "size"];

const byTime = (a, b) => (a.created_at < b.created_at ? -1 : a.created_at > b.created_at ? 1 : a.id < b.id ? -1 : 1);
const byName = (a, b) => {
  const [left, right] = [a.filename.toLowerCase(), b.filename.toLowerCase()];
  return left < right ? -1 : left > right ? 1 : a.id < b.id ? -1 : 1;
};
const bySize = (a, b) => a.size - b.size || (a.id < b.id ? -1 : 1);
const COMPARE = {
  newest: (a, b) => byTime(b, a),
  oldest: byTime,
  name: byName,
  "-name": (a, b) => byName(b, a),
  size: bySize,
  "-size": (a, b) => bySize(b, a),
};

class Records extends EventTarget {
  query = { search: "", status: "present", type: "any", time: "any", order: "newest" };
  /** What is shown, in order. */
  items = [];
  isLoading = false;
  /** Why nothing could be loaded, as an error; null when it could. */
  error = null;
  #known = new Map();
  #cursor = null;
  /** The query that the loaded pages and the cursor are of. */
  #loaded = null;
  #isWhole = false;
  #asked = 0;
  /** What came while a page was asked for, and is newer than the answer. */
  #arrived = new Map();
  #timer = null;

  constructor() {
    super();
    for (const record of state.records ?? []) this.#known.set(record.id, record);
    this.#isWhole = !state.session;
    this.show();
  }

  get hasMore() {
    return !this.#isWhole;
  }

  get isFiltered() {
    const { search, status, type, time } = this.query;
    return Boolean(search) || status !== "present" || type !== "any" || time !== "any";
  }

  find(id) {
    return this.#known.get(id);
  }

  /** Change the filters or the order. What is loaded is filtered at once; the service's answer follows. */
  async ask(change) {
    Object.assign(this.query, change);
    this.show();
    await this.reload();
  }

  /** Read the first page again. Raises what `ask` raises. */
  reload() {
    return this.#load(null);
  }

  more() {
    if (this.isLoading || this.#isWhole || !this.#cursor) return null;
    return this.#load(this.#cursor);
  }

  async #load(cursor) {
    const asked = ++this.#asked;
    this.isLoading = true;
    try {
      const page = await ask("GET", `${HISTORY}?${this.parameters({ limit: PAGE, ...(cursor && { cursor }) })}`);
      if (asked !== this.#asked) return; // another question was asked meanwhile
      this.#take(page, cursor);
      this.error = null;
    } catch (error) {
      if (asked === this.#asked) this.error = error;
      throw error;
    } finally {
      if (asked === this.#asked) {
        this.isLoading = false;
        this.show();
      }
    }
  }

  /** Take a page in. The first one replaces what lies within its bounds; older pages of the same query stay loaded. */
  #take(page, cursor) {
    const query = JSON.stringify(this.query);
    const compare = COMPARE[this.query.order];
    const end = page.next_cursor === null ? null : page.items.at(-1);
    const isSame = !cursor && end && query === this.#loaded && this.#cursor !== null;
    if (!cursor) {
      const stays = (record) => this.#arrived.has(record.id) || (isSame && compare(record, end) > 0);
      this.#known = new Map([...this.#known].filter(([, record]) => stays(record)));
    }
    for (const record of page.items) if (!this.#arrived.has(record.id)) this.#known.set(record.id, record);
    if (isSame) return;
    this.#loaded = query;
    this.#cursor = page.next_cursor;
    this.#isWhole = page.next_cursor === null;
  }

  /** The query as the history's parameters; with none of the page's own it serves for export and archive too. */
  parameters(more = {}) {
    const { search, status, type, time, order } = this.query;
    const days = TIMES[time];
    const given = {
      filename: search.trim(),
      status: STATUSES[status],
      content_type: TYPES[type],
      from: days === null ? "" : since(days).toISOString(),
      order: order === "newest" ? "" : order,
      ...more,
    };
    return new URLSearchParams(Object.entries(given).filter(([, value]) => value !== "")).toString();
  }

  /** Take in a record that an upload's answer or an event brought; many at once are shown together. */
  merge(record) {
    this.#known.set(record.id, record);
    this.#arrived.set(record.id, record);
    this.showSoon();
  }

  /** How far an upload of another tab or device is. */
  progress({ id, offset, length }) {
    const record = this.#known.get(id);
    if (!record || record.status !== "uploading") return;
    Object.assign(record, { offset, length });
    this.showSoon();
  }

  showSoon() {
    this.#timer ??= setTimeout(() => {
      this.#timer = null;
      if (!this.isLoading) this.#arrived.clear();
      this.show();
    }, 250);
  }

  /** Show what is loaded, now. */
  show() {
    const matching = [...this.#known.values()].filter((record) => this.#matches(record));
    this.items = matching.sort(COMPARE[this.query.order]);
    this.dispatchEvent(new Event("change"));
  }

  /** Whether a record passes the filters, as the service judges it. */
  #matches(record) {
    const { search, status, type, time } = this.query;
    if (STATUSES[status] && !STATUSES[status].split(",").includes(record.status)) return false;
    if (TYPES[type] && !TYPES[type].split(",").some((wanted) => hasType(record.content_type, wanted))) return false;
    if (TIMES[time] !== null && new Date(record.created_at) < since(TIMES[time])) return false;
    return !search.trim() || hasName(record.filename, search.trim());
  }
}

const hasType = (type, wanted) =>
  wanted.endsWith("/*") ? type.startsWith(wanted.slice(0, -1)) : type.split(";")[0].trim().toLowerCase() === wanted;

function hasName(name, search) {
  const [folded, wanted] = [name.toLocaleLowerCase(language), search.toLocaleLowerCase(language)];
  if (!/[*?]/.test(wanted)) return folded.includes(wanted);
  const shape = wanted.replace(/[.+^${}()|[\]\\]/g, "\\$&").replaceAll("*", ".*").replaceAll("?", ".");
  return new RegExp(`^${shape}$`, "su").test(folded);
}

/** Midnight here, so many days ago. */
function since(days) {
  const now = new Date();
  return new Date(now.getFullYear(), now.getMonth(), now.getDate() - days);
}

export const records = new Records();
