// Owns what is shown of the uploads under way: the line of all together, and a row for each file and folder.

import { announce, announceProgress } from "./announcer.js";
import { copyButton } from "./clipboard.js";
import { connection } from "./connection.js";
import { byId, changeIcon, element, icon, iconButton, nameElement, setAttribute, setName, setText } from "./dom.js";
import { Rows } from "./rows.js";
import { confirm, facts, openSheet } from "./sheets.js";
import { uploads } from "./uploads.js";
import { duration, exactSize, language, percent, rate, say, sayProblem, size } from "./words.js";

/** Pause between two paintings, so that numbers can be read and ten thousand files cost nothing. */
const PAUSE = 200;

const ACTIVE = new Set(["waiting", "sending", "finishing", "resting"]);
const FILELESS = new Set(["missing", "asking"]);
const NAMED = 3;
const ICONS = { sending: "file", finishing: "file", paused: "pause", failed: "warn", missing: "info", asking: "info", done: "check", cancelled: "cancel" };

const parts = new WeakMap();
let rows;
let timer = null;
let painted = -PAUSE;
let isPointedAt = false;
let moveFocus = () => {};

/** Show the uploads. `choose` asks for files that are waited for; `onward(transfer)` takes the focus of a finished row. */
export function showTray({ choose, onward }) {
  moveFocus = onward;
  const list = byId("transfers");
  rows = new Rows(list, { scroller: list.parentNode, make: makeRow, change: changeRow });
  list.addEventListener("keydown", (event) => {
    if (event.key !== "Delete") return;
    const item = rows.itemOf(event.target);
    if (item) cancel(item);
  });
  list.addEventListener("pointerenter", ({ pointerType }) => (isPointedAt = pointerType === "mouse"));
  list.addEventListener("pointerleave", () => {
    isPointedAt = false;
    paintSoon();
  });
  byId("pause-all").addEventListener("click", () => uploads.pauseAll());
  byId("resume-all").addEventListener("click", () => uploads.resumeAll());
  byId("cancel-all").addEventListener("click", cancelAll);
  byId("choose-again").addEventListener("click", choose);
  uploads.addEventListener("change", paintSoon);
  connection.addEventListener("change", () => announce(connection.isUp ? say("connection.up") : say(`connection.${connection.state}`)));
  uploads.addEventListener("failed", ({ detail }) => announce(`${detail.name}: ${sayProblem(detail.problem)}`));
  uploads.addEventListener("done", () => announceProgress(() => (uploads.transfers.size ? progressWords() : say("tray.done"))));
  paint();
}

async function cancelAll() {
  const count = uploads.transfers.size;
  const left = [...uploads.transfers.values()].reduce((sum, one) => sum + one.size, 0);
  const agreed = count < 2 || (await confirm(say("cancel.title"), say("cancel.text", { count, size: size(left) }), say("cancel.all"), "danger"));
  if (agreed) uploads.cancelAll();
  if (agreed) moveFocus(null);
}

function paintSoon() {
  timer ??= setTimeout(paint, Math.max(0, PAUSE - (performance.now() - painted)));
}

/** Paint now: after an action of the person nothing waits. */
function paint() {
  clearTimeout(timer);
  timer = null;
  painted = performance.now();
  byId("tray").hidden = !uploads.transfers.size && !(isPointedAt && rows.items.length);
  const focused = rows.items.length && byId("transfers").contains(document.activeElement) ? rows.itemOf(document.activeElement) : null;
  const place = focused ? rows.placeOf(focused.key) : -1;
  rows.show(isPointedAt ? withNew(rows.items) : currentItems());
  if (focused && rows.placeOf(focused.key) < 0 && !rows.focus(focused.key, place)) moveFocus(focused.transfer ?? null);
  paintTotal();
}

function currentItems() {
  const items = [];
  const shown = new Set();
  for (const transfer of uploads.transfers.values()) {
    const { folder } = transfer;
    if (!folder) items.push({ key: transfer.id, transfer });
    if (!folder || shown.has(folder)) continue;
    shown.add(folder);
    items.push({ key: folder.id, folder });
    if (folder.isOpen) for (const inner of folder.transfers) items.push({ key: inner.id, transfer: inner, isInner: true });
  }
  return items;
}

/** The rows as they stand, with new ones at the end: while the pointer is over them nothing moves under it. */
function withNew(items) {
  const known = new Set(items.map(({ key }) => key));
  return [...items, ...currentItems().filter(({ key }) => !known.has(key))];
}

function changeAll(change) {
  change();
  rows.show(currentItems());
  paintSoon();
}

function cancel({ transfer, folder }) {
  changeAll(() => (folder ? [...folder.transfers] : [transfer]).forEach((one) => uploads.cancel(one)));
}

// --- the line of all together

function paintTotal() {
  const all = [...uploads.transfers.values()];
  const count = (states) => all.filter((one) => states.has(one.state)).length;
  const active = count(ACTIVE);
  const waiting = count(FILELESS);
  const paused = count(new Set(["paused"]));
  setText(byId("tray-words"), active ? progressWords() : stillWords(all, paused, waiting));
  const { size: whole } = uploads.total;
  byId("tray-progress").value = whole ? sentBytes(all) / whole : 0;
  byId("pause-all").hidden = !active;
  byId("resume-all").hidden = Boolean(active) || !paused;
  byId("waiting").hidden = !waiting;
  setText(byId("waiting-words"), say("tray.missing", { count: waiting, names: waitingNames(all) }));
  const isAsking = waiting === count(new Set(["asking"]));
  setText(byId("choose-again").lastElementChild, say(isAsking ? "missing.permit" : "missing.choose"));
}

/** The first of those that wait for their files, and how many more there are. */
function waitingNames(all) {
  const names = all.filter((one) => FILELESS.has(one.state)).map(({ name }) => `\u2068${name}\u2069`);
  const count = names.length - NAMED;
  return new Intl.ListFormat(language).format(count > 0 ? [...names.slice(0, NAMED), say("tray.more", { count })] : names);
}

const sentBytes = (all) => all.reduce((sum, one) => sum + one.sent, uploads.total.doneSize);

function progressWords() {
  const all = [...uploads.transfers.values()];
  const { files, done, size: whole } = uploads.total;
  const heading = connection.isUp ? "tray.uploading" : connection.state === "offline" ? "tray.offline" : "tray.away";
  const words = [say(heading, { count: files, done }), percent(whole ? sentBytes(all) / whole : 0)];
  const speed = connection.isUp && uploads.rate.perSecond();
  if (speed) {
    const left = all.filter((one) => ACTIVE.has(one.state)).reduce((sum, one) => sum + one.size - one.sent, 0);
    words.push(rate(speed), duration(left / speed));
  }
  const failed = all.filter((one) => one.state === "failed").length;
  if (failed) words.push(say("folder.failed", { count: failed }));
  return words.join(" · ");
}

function stillWords(all, paused, waiting) {
  if (paused) return say("tray.paused", { count: paused });
  if (waiting) return say("tray.stopped");
  if (!all.length) return say("tray.done"); // the rows stay as long as the pointer is over them
  return say("tray.failed", { count: all.length });
}

// --- rows

function makeRow(item) {
  const lead = item.folder ? expander(item.folder) : element("span", { class: "lead" }, icon("wait"));
  const name = nameElement();
  const note = element("bdi");
  const total = element("span", { class: "size" });
  const bar = element("progress", { max: 1 });
  const share = element("span", { class: "share" });
  const why = iconButton("info", say("details"), () => showFailure(item.transfer));
  const go = iconButton("pause", say("pause"), () => act(item));
  const stop = iconButton("cancel", say("cancel.it"), () => cancel(item));
  const row = element(
    "li",
    { class: `row transfer${item.isInner ? " inner" : ""}` },
    lead,
    element("div", { class: "title" }, name, element("span", { class: "note" }, note)),
    total,
    element("div", { class: "bar" }, bar, share),
    element("div", { class: "actions" }, why, go, stop),
  );
  parts.set(row, { lead, name, note, total, bar, share, why, go, stop });
  return row;
}

function expander(folder) {
  const button = iconButton("open", say("folder.open", { name: folder.name }), () => {
    changeAll(() => (folder.isOpen = !folder.isOpen));
  });
  button.classList.add("lead");
  return button;
}

function changeRow(row, item) {
  if (item.folder) changeFolder(parts.get(row), row, item.folder);
  else changeTransfer(parts.get(row), row, item.transfer);
}

function changeFolder(part, row, folder) {
  const all = [...folder.transfers];
  const failed = all.filter((one) => one.state === "failed").length;
  setAttribute(part.lead, "aria-expanded", `${folder.isOpen}`);
  setName(part.name, `${folder.name}/`);
  const words = say("folder.files", { count: folder.files, done: folder.done });
  setText(part.note, failed ? `${words} · ${say("folder.failed", { count: failed })}` : words);
  setText(part.total, size(folder.size));
  changeBar(part, folder.doneSize + all.reduce((sum, one) => sum + one.sent, 0), folder.size, folder.name);
  const isActive = all.some((one) => ACTIVE.has(one.state));
  changeAction(part, isActive ? "pause" : "play", say(isActive ? "pause" : "resume"), isActive || all.some((one) => one.state === "paused"));
  setAttribute(row, "data-state", failed ? "failed" : isActive ? "sending" : "paused");
  setLabel(part.stop, say("cancel.folder"));
  part.why.hidden = true;
}

function changeTransfer(part, row, transfer) {
  const { state } = transfer;
  const isWaiting = !connection.isUp && ACTIVE.has(state);
  setAttribute(row, "data-state", isWaiting ? "resting" : state);
  changeIcon(part.lead.firstChild, isWaiting || state === "resting" ? "network" : (ICONS[state] ?? "wait"));
  setName(part.name, transfer.name);
  setAttribute(part.name, "title", transfer.path ?? transfer.name);
  setText(part.note, stateWords(transfer, isWaiting));
  setText(part.total, size(transfer.size));
  setAttribute(part.total, "title", exactSize(transfer.size));
  changeBar(part, transfer.sent, transfer.size, transfer.name);
  const [name, words] = actionOf(transfer);
  changeAction(part, name, words, name !== null);
  setLabel(part.stop, say(state === "failed" ? "remove" : "cancel.it"));
  part.why.hidden = state !== "failed" || !transfer.problem.detail;
}

function stateWords(transfer, isWaiting) {
  const { state, problem } = transfer;
  if (isWaiting) return say(`waits.${connection.state}`);
  if (state === "failed") return sayProblem(problem);
  // What was too slow says what the person is to do; here it goes on without.
  if (state === "resting") return problem && problem.code !== "too_slow" ? `${sayProblem(problem)} ${say("again")}` : say("waits.again");
  if (state !== "sending") return say(`state.${state}`);
  const speed = transfer.rate.perSecond();
  return speed ? duration((transfer.size - transfer.sent) / speed) : "";
}

function actionOf(transfer) {
  if (ACTIVE.has(transfer.state)) return ["pause", say("pause")];
  if (transfer.state === "paused") return ["play", say("resume")];
  if (uploads.canRetry(transfer)) return ["retry", say("retry")];
  return [null, ""];
}

function act({ transfer, folder }) {
  const all = folder ? [...folder.transfers] : [transfer];
  const isActive = all.some((one) => ACTIVE.has(one.state));
  changeAll(() => all.forEach((one) => (isActive ? uploads.pause(one) : folder && one.state !== "paused" ? null : uploads.resume(one))));
}

function changeBar(part, sent, whole, name) {
  const done = whole ? Math.min(1, sent / whole) : 0;
  part.bar.value = done;
  setAttribute(part.bar, "aria-label", name);
  setText(part.share, percent(done));
}

function changeAction(part, name, words, isShown) {
  part.go.hidden = !isShown;
  if (!isShown) return;
  changeIcon(part.go.firstChild, name);
  setLabel(part.go, words);
}

/** What the service said of a failure, for whoever runs it. */
function showFailure({ name, problem }) {
  const sheet = openSheet(
    name,
    element("p", { class: "refusal" }, icon("warn"), element("span", { text: sayProblem(problem) })),
    facts([
      [say("fact.code"), element("code", { text: problem.code })],
      [say("fact.detail"), problem.detail],
      [say("fact.request"), problem.request_id && element("code", { text: problem.request_id })],
    ]),
  );
  if (problem.request_id) sheet.append(element("footer", {}, copyButton(problem.request_id, say("copy.request"))));
}

function setLabel(button, words) {
  setAttribute(button, "aria-label", words);
  setAttribute(button, "title", words);
}
