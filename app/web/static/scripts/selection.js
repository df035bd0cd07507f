// Owns which records of the history are selected, and what is done with all of them.

import { FILES } from "./api.js";
import { byId, element, setText } from "./dom.js";
import { remove } from "./deletion.js";
import { records } from "./records.js";
import { confirm } from "./sheets.js";
import { say, size } from "./words.js";

/** So many ids fit in a URL; more go by a form. */
const MOST_IN_URL = 50;

class Selection extends EventTarget {
  #ids = new Set();

  get records() {
    return [...this.#ids].map((id) => records.find(id)).filter((record) => record?.links.content);
  }

  has = (id) => this.#ids.has(id);

  get isEmpty() {
    return !this.#ids.size;
  }

  set(id, isSelected) {
    if (isSelected) this.#ids.add(id);
    else this.#ids.delete(id);
    this.#changed();
  }

  setAll(ids) {
    this.#ids = new Set(ids);
    this.#changed();
  }

  #changed() {
    const chosen = this.records;
    byId("selection").hidden = !chosen.length;
    const bytes = chosen.reduce((sum, one) => sum + one.size, 0);
    setText(byId("selection-words"), say("selected", { count: chosen.length, size: size(bytes) }));
    this.dispatchEvent(new Event("change"));
  }
}

export const selection = new Selection();

export function showSelection() {
  byId("selection-zip").addEventListener("click", downloadAll);
  byId("selection-delete").addEventListener("click", deleteAll);
  byId("selection-clear").addEventListener("click", () => selection.setAll([]));
  records.addEventListener("change", () => selection.isEmpty || selection.setAll(selection.records.map(({ id }) => id)));
}

function downloadAll() {
  const ids = selection.records.map(({ id }) => id);
  if (ids.length <= MOST_IN_URL) {
    const link = element("a", { href: `${FILES}.zip?id=${ids.join(",")}`, download: "" });
    link.click();
    return;
  }
  const form = element("form", { method: "post", action: `${FILES}.zip`, target: "_blank", hidden: true });
  form.append(...ids.map((id) => element("input", { type: "hidden", name: "id", value: id })));
  document.body.append(form);
  form.submit();
  form.remove();
}

/** Several are deleted after one question with their number and size. */
export async function deleteAll() {
  const chosen = selection.records;
  const bytes = chosen.reduce((sum, one) => sum + one.size, 0);
  const words = { count: chosen.length, size: size(bytes) };
  if (chosen.length > 1 && !(await confirm(say("delete.title", words), say("delete.text", words), say("delete.word"), "danger"))) return;
  selection.setAll([]);
  remove(chosen);
  byId("undo").focus();
}

