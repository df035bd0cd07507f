// Owns long lists: of ten thousand rows only those in sight are in the document. Rows are kept by key, so that what has
// the focus keeps it while rows come, go and change around it.

import { setAttribute } from "./dom.js";

/** Rows above and below the part in sight that are there already. */
const MARGIN = 8;

export class Rows {
  #list;
  #scroller;
  #make;
  #change;
  #items = [];
  #tops = [0];
  #nodes = new Map();
  #current = null;
  #frame = null;
  #heights = { row: 56, heading: 40 };

  /** `list` is the <ol>; `scroller` the element that scrolls it, or null for the window. Items have a `key` and may be a
   * `heading`. `make(item)` makes a row's element, `change(node, item)` brings it up to date. */
  constructor(list, { scroller = null, make, change }) {
    this.#list = list;
    this.#scroller = scroller;
    this.#make = make;
    this.#change = change;
    (scroller ?? window).addEventListener("scroll", () => this.#paintSoon(), { passive: true });
    addEventListener("resize", () => this.#measure());
    list.addEventListener("focusin", ({ target }) => (this.#current = keyOf(target)));
    list.addEventListener("keydown", (event) => this.#move(event));
    this.#measure();
  }

  get items() {
    return this.#items;
  }

  /** Show these items from now on. */
  show(items) {
    this.#items = items;
    this.#layOut();
    this.#paint();
  }

  /** Bring the rows in sight up to date. */
  refresh() {
    this.#paintSoon();
  }

  /** Whether the last row is in sight, or nearly. */
  get isAtEnd() {
    const { bottom } = this.#sight();
    return bottom >= this.#tops.at(-1) - 10 * this.#heights.row;
  }

  /** The item whose row holds this element. */
  itemOf(target) {
    const key = keyOf(target);
    return this.#items.find((item) => item.key === key);
  }

  /** Put the focus on the row of a key, or on the one at this place; false if there is none. */
  focus(key, place = 0) {
    let at = this.#items.findIndex((item) => item.key === key);
    if (at < 0) at = this.#near(Math.min(place, this.#items.length - 1), -1);
    if (at < 0) return false;
    this.#current = this.#items[at].key;
    this.#scrollTo(at);
    this.#paint();
    this.#nodes.get(this.#current).focus({ preventScroll: true });
    return true;
  }

  placeOf(key) {
    return this.#items.findIndex((item) => item.key === key);
  }

  #measure() {
    const style = getComputedStyle(this.#list);
    const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
    this.#heights = {
      row: parseFloat(style.getPropertyValue("--row")) * rem,
      heading: parseFloat(style.getPropertyValue("--heading")) * rem,
    };
    this.#layOut();
    this.#paintSoon();
  }

  #layOut() {
    this.#tops = [0];
    for (const item of this.#items) this.#tops.push(this.#tops.at(-1) + this.#heights[item.heading ? "heading" : "row"]);
    this.#list.style.blockSize = `${this.#tops.at(-1)}px`;
    if (!this.#items.some((item) => item.key === this.#current)) this.#current = null;
  }

  #paintSoon() {
    this.#frame ??= requestAnimationFrame(() => this.#paint());
  }

  #sight() {
    const { top } = this.#list.getBoundingClientRect();
    const frame = this.#scroller?.getBoundingClientRect();
    const start = frame ? frame.top : 0;
    const height = frame ? frame.height : innerHeight;
    return { top: start - top, bottom: start - top + height };
  }

  #paint() {
    cancelAnimationFrame(this.#frame);
    this.#frame = null;
    const { top, bottom } = this.#sight();
    const margin = MARGIN * this.#heights.row;
    const from = Math.max(0, search(this.#tops, top - margin));
    const to = Math.min(this.#items.length, search(this.#tops, bottom + margin) + 1);
    const focused = this.#list.contains(document.activeElement) ? document.activeElement : null;
    const shown = new Map();
    const held = focused ? this.placeOf(keyOf(focused)) : -1;
    if (held >= 0 && held < from) this.#place(held, shown);
    for (let at = from; at < to; at++) this.#place(at, shown);
    if (held >= to) this.#place(held, shown);
    for (const [key, node] of this.#nodes) if (!shown.has(key)) node.remove();
    this.#nodes = shown;
    let before = null;
    for (const node of shown.values()) {
      if (node.previousElementSibling !== before || node.parentNode !== this.#list) {
        this.#list.insertBefore(node, before ? before.nextSibling : this.#list.firstChild);
      }
      before = node;
    }
    if (focused?.isConnected && focused !== document.activeElement) focused.focus({ preventScroll: true });
    this.#markCurrent();
  }

  #place(at, shown) {
    const item = this.#items[at];
    const node = this.#nodes.get(item.key) ?? this.#begin(item);
    node.style.transform = `translateY(${this.#tops[at]}px)`;
    setAttribute(node, "aria-posinset", `${at + 1}`);
    setAttribute(node, "aria-setsize", `${this.#items.length}`);
    this.#change(node, item);
    shown.set(item.key, node);
  }

  #begin(item) {
    const node = this.#make(item);
    node.dataset.key = item.key;
    return node;
  }

  /** One row at a time is reached by Tab; the arrows lead to the others. */
  #markCurrent() {
    const current = this.#nodes.has(this.#current) ? this.#current : this.#items.find((item) => !item.heading && this.#nodes.has(item.key))?.key;
    for (const [key, node] of this.#nodes) {
      if (!node.classList.contains("day")) setAttribute(node, "tabindex", key === current ? "0" : "-1");
    }
  }

  #move(event) {
    const at = this.placeOf(keyOf(event.target));
    if (at < 0 || event.altKey || event.ctrlKey || event.metaKey || event.target.matches("input:not([type=checkbox]), select")) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const edge = { Home: 0, End: this.#items.length - 1 }[event.key];
    if (step === undefined && edge === undefined) return;
    event.preventDefault();
    const to = edge === undefined ? this.#near(at + step, step) : this.#near(edge, edge ? -1 : 1);
    if (to >= 0) this.focus(this.#items[to].key);
  }

  /** The nearest row from a place on that is no heading; -1 if there is none. */
  #near(place, step) {
    for (let at = place; at >= 0 && at < this.#items.length; at += step) if (!this.#items[at].heading) return at;
    return step < 0 ? this.#items.findIndex((item) => !item.heading) : -1;
  }

  #scrollTo(at) {
    const { top, bottom } = this.#sight();
    const [start, end] = [this.#tops[at], this.#tops[at + 1]];
    const by = start < top ? start - top - 8 : end > bottom ? end - bottom + 8 : 0;
    if (by) (this.#scroller ?? window).scrollBy({ top: by, behavior: "instant" });
  }
}

const keyOf = (target) => target.closest("[data-key]")?.dataset.key ?? null;

/** The place of the last number that is not above `value`, in a rising list. */
function search(numbers, value) {
  let [low, high] = [0, numbers.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (numbers[middle] <= value) low = middle;
    else high = middle - 1;
  }
  return low;
}
