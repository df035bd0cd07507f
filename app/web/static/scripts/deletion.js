// Owns deleting: what is deleted vanishes at once, and ten seconds long it can be brought back. Only then, or when the
// page is left, the service is asked.

import { FILES, ask } from "./api.js";
import { announce } from "./announcer.js";
import { byId, setText } from "./dom.js";
import { records } from "./records.js";
import { say, size } from "./words.js";

const TIME = 10_000;
const MOST = 1_000; // ids of one request

const groups = [];
const hidden = new Set();
let onward = () => {};

/** Show the bar when something was deleted. `back(id)` puts the focus on a record's row. */
export function showUndo({ back }) {
  onward = back;
  byId("undo").addEventListener("click", undo);
  addEventListener("pagehide", () => groups.splice(0).forEach((group) => commit(group, true)));
}

/** Whether a record waits to be deleted, and is not shown. */
export const isGoing = (id) => hidden.has(id);

/** Delete these records, unless they are brought back in time. */
export function remove(deleted) {
  if (!deleted.length) return;
  const group = { deleted, timer: setTimeout(() => end(group), TIME) };
  groups.push(group);
  for (const { id } of deleted) hidden.add(id);
  changed();
  announce(`${words(group)}. ${say("undo.time")}`);
}

function undo() {
  const group = groups.pop();
  if (!group) return;
  clearTimeout(group.timer);
  for (const { id } of group.deleted) hidden.delete(id);
  changed();
  announce(say("undo.done"));
  onward(group.deleted[0].id);
}

function end(group) {
  groups.splice(groups.indexOf(group), 1);
  commit(group, false);
  changed();
}

/** Ask the service. What it did not delete comes back into sight. */
async function commit({ deleted }, isLeaving) {
  for (let at = 0; at < deleted.length; at += MOST) {
    const ids = deleted.slice(at, at + MOST).map(({ id }) => id);
    try {
      if (ids.length === 1) await ask("DELETE", `${FILES}/${ids[0]}`, { keepalive: isLeaving });
      else await ask("POST", `${FILES}/delete`, { json: { ids }, keepalive: isLeaving });
      for (const id of ids) records.merge({ ...records.find(id), status: "deleted" });
    } catch (error) {
      announce(say("delete.failed", { reason: error.message }));
    }
    for (const id of ids) hidden.delete(id);
  }
  records.showSoon();
}

function words({ deleted }) {
  const bytes = deleted.reduce((sum, one) => sum + one.size, 0);
  return deleted.length === 1
    ? say("undo.it", { name: deleted[0].filename })
    : say("undo.many", { count: deleted.length, size: size(bytes) });
}

function changed() {
  const group = groups.at(-1);
  byId("undo-bar").hidden = !group;
  if (group) setText(byId("undo-words"), words(group));
  records.show();
}
