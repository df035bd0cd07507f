// Owns what is shown of the session's history: rows under the headings of their days, search, filters, order, export.

import { HISTORY } from "./api.js";
import { copy } from "./clipboard.js";
import { isGoing, remove } from "./deletion.js";
import { showDetails } from "./details.js";
import { byId, changeIcon, element, icon, iconButton, nameElement, setAttribute, setName, setText } from "./dom.js";
import { ORDERS, STATUSES, TIMES, TYPES, records } from "./records.js";
import { Rows } from "./rows.js";
import { deleteAll, selection } from "./selection.js";
import { showLinks } from "./share.js";
import { drawThumbnail } from "./thumbnails.js";
import { uploads } from "./uploads.js";
import { date, dateAndTime, day, dayKey, exactSize, percent, say, sayProblem, size, timeOfDay } from "./words.js";

/** Pause after the last letter before the service is asked; what is loaded is filtered at once. */
const PAUSE = 200;

const ICONS = { uploading: "wait", processing: "wait", completed: "check", failed: "warn", expired: "warn", deleted: "remove", cancelled: "cancel" };

const parts = new WeakMap();
const seen = new Set();
let rows;
let tried = null;

/** Show the history. `attempt` runs what asks the service, and tells the person when it fails. */
export function showHistory(attempt) {
  tried = attempt;
  const list = byId("records");
  list.replaceChildren();
  rows = new Rows(list, { make: makeRow, change: changeRow });
  for (const id of records.items.map((record) => record.id)) seen.add(id);
  records.addEventListener("change", paint);
  uploads.addEventListener("change", () => rows.refresh());
  selection.addEventListener("change", () => {
    rows.refresh();
    paintSelectAll();
  });
  list.addEventListener("keydown", act);
  addEventListener("scroll", loadMore, { passive: true });
  byId("more").addEventListener("click", loadMore);
  showFilters();
  paint();
}

/** Put the focus on a record's row; false if it has none. */
export const focusRecord = (id) => rows.focus(id);

function showFilters() {
  const search = byId("search");
  let timer = null;
  search.addEventListener("input", () => {
    clearTimeout(timer);
    records.query.search = search.value;
    records.showSoon();
    timer = setTimeout(() => tried(() => records.ask({ search: search.value })), PAUSE);
  });
  const choices = { status: Object.keys(STATUSES), type: Object.keys(TYPES), time: Object.keys(TIMES), order: ORDERS };
  for (const [name, values] of Object.entries(choices)) {
    const select = byId(`filter-${name}`);
    select.append(...values.map((value) => element("option", { value, text: say(`${name}.${value}`) })));
    select.value = records.query[name]; // a browser may have kept an older choice
    select.addEventListener("change", () => tried(() => records.ask({ [name]: select.value })));
  }
  search.value = "";
  byId("select-all").addEventListener("change", ({ target }) => {
    selection.setAll(target.checked ? selectable() : []);
  });
  byId("clear-filters").addEventListener("click", () => {
    search.value = "";
    for (const [name, [first]] of Object.entries(choices)) byId(`filter-${name}`).value = first;
    tried(() => records.ask({ search: "", status: "present", type: "any", time: "any", order: "newest" }));
    search.focus();
  });
}

function loadMore() {
  if (rows.isAtEnd && records.hasMore) tried(() => records.more());
}

function paint() {
  const items = [];
  const hasDays = ["newest", "oldest"].includes(records.query.order);
  let last = null;
  const whole = new Set(records.items.filter(({ status }) => status === "completed").map(nameOf));
  for (const record of records.items) {
    if (isGoing(record.id) || (record.status === "uploading" && uploads.has(record))) continue;
    // What broke off and was sent again is no failure any more; those who look for failures find it.
    if (record.error?.code === "incomplete_body" && records.query.status === "present" && whole.has(nameOf(record))) continue;
    const key = dayKey(record.created_at);
    if (hasDays && key !== last) items.push({ key: `day ${key}`, heading: day(record.created_at) });
    last = key;
    items.push({ key: record.id, record, hasDay: hasDays });
  }
  const isEmpty = !items.length && !records.hasMore;
  byId("history").hidden = isEmpty && !records.isFiltered && !records.error;
  byId("history-empty").hidden = !isEmpty;
  setText(byId("history-empty-words"), say(records.error ? "history.unread" : "history.nothing"));
  byId("clear-filters").hidden = !records.isFiltered;
  byId("more").hidden = !records.hasMore;
  document.body.classList.toggle("has-history", !isEmpty || records.isFiltered);
  byId("export").href = `${HISTORY}?${records.parameters({ format: "csv", bom: "true" })}`;
  rows.show(items);
  paintSelectAll();
  loadMore();
}

const selectable = () => rows.items.filter((item) => item.record?.links.content).map(({ key }) => key);

/** Ticked when all are selected, half ticked when some are. */
function paintSelectAll() {
  const all = selectable();
  const count = all.filter(selection.has).length;
  const box = byId("select-all");
  box.checked = count && count === all.length;
  box.indeterminate = count && !box.checked;
}

const nameOf = ({ path, filename }) => path ?? filename;

function makeRow(item) {
  if (item.heading) return element("li", { class: "day" }, element("h3", { text: item.heading }));
  const { record } = item;
  const check = element("input", { type: "checkbox", change: ({ target }) => selection.set(record.id, target.checked) });
  const name = nameElement();
  const note = element("bdi");
  const lead = element("span", { class: "lead" }, icon("file"));
  const bytes = element("span", { class: "size" });
  const time = element("time", { datetime: record.created_at, title: record.created_at });
  const word = element("span");
  const status = element("span", { class: "status" }, icon("wait"), word);
  const current = () => records.find(record.id);
  const download = element("a", { class: "quiet", download: "", "aria-label": say("download"), title: say("download") }, icon("download"));
  const copyDigest = iconButton("copy", say("copy.digest"), () => copy(current().sha256));
  const share = iconButton("link", say("share"), () => showLinks(current()));
  const gone = iconButton("remove", say("delete.word"), () => removeRow(current()));
  const more = iconButton("more", say("details"), () => details(current()));
  more.classList.add("more");
  const row = element(
    "li",
    { class: `row record${seen.has(record.id) ? "" : " new"}` },
    element("label", { class: "check" }, check),
    lead,
    element("div", { class: "title" }, element("button", { type: "button", class: "plain", title: say("details"), click: () => details(current()) }, name), element("span", { class: "note" }, note)),
    bytes,
    time,
    status,
    element("div", { class: "actions" }, download, share, copyDigest, gone, more),
  );
  seen.add(record.id);
  parts.set(row, { check, name, note, lead, bytes, time, word, status, download, share, copyDigest, gone });
  return row;
}

function changeRow(row, item) {
  if (item.heading) return;
  const part = parts.get(row);
  const { record } = item;
  const isHere = Boolean(record.links.content) && record.status === "completed";
  const status = stateOf(record);
  setAttribute(row, "data-status", status);
  part.check.checked = selection.has(record.id);
  part.check.disabled = !isHere;
  setAttribute(part.check, "aria-label", say("select", { name: record.filename }));
  setName(part.name, record.filename);
  setText(part.note, status === "failed" && record.error ? sayProblem(record.error) : folderOf(record));
  setText(part.bytes, size(record.size));
  setAttribute(part.bytes, "title", exactSize(record.size));
  setText(part.time, item.hasDay ? timeOfDay(record.created_at) : date(record.created_at));
  setAttribute(part.time, "title", `${dateAndTime(record.created_at)} (${record.created_at})`);
  setText(part.word, statusWords(record));
  changeIcon(part.status.firstChild, ICONS[status] ?? "info");
  for (const button of [part.download, part.share, part.copyDigest, part.gone]) button.hidden = !isHere;
  if (isHere) setAttribute(part.download, "href", record.links.content);
  if (isHere) drawThumbnail(part.lead, record);
}

export function statusWords(record) {
  if (record.status === "uploading" && record.length) return percent(record.offset / record.length);
  const status = stateOf(record);
  return say(status === "cancelled" ? "state.cancelled" : `status.${status}`);
}

/** A record's status; what somebody cancelled did not fail. */
const stateOf = ({ status, error }) => (status === "failed" && error?.code === "gone" ? "cancelled" : status);

const folderOf = ({ path }) => (path ? path.slice(0, path.lastIndexOf("/") + 1) : "");

function act(event) {
  const item = rows.itemOf(event.target);
  if (!item?.record || event.target.closest("button, a, input") && event.key !== "Delete") return;
  if (event.key === "Delete" && !selection.isEmpty) deleteAll();
  else if (event.key === "Delete") removeRow(item.record);
  else if (event.key === "Enter") details(item.record);
  else if (event.key === " ") selection.set(item.key, item.record.links.content && !selection.has(item.key));
  else return;
  event.preventDefault();
}

function details(record) {
  showDetails(record, { removed: () => removeRow(record), status: statusWords(record) });
}

/** Delete one, and put the focus on the row that takes its place. */
function removeRow(record) {
  if (record.status !== "completed") return;
  const place = rows.placeOf(record.id);
  remove([record]);
  paint();
  if (!rows.focus(null, place)) byId("undo").focus();
}
