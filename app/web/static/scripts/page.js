// Owns the beginning: it puts the page's parts together, and tells the person what none of them could deal with.

import { announce } from "./announcer.js";
import { Refused, Unreachable, state } from "./api.js";
import { chooseAgain, showChooser } from "./chooser.js";
import { connection } from "./connection.js";
import { showUndo } from "./deletion.js";
import { offerJoining } from "./devices.js";
import { byId, setText } from "./dom.js";
import { listen } from "./events.js";
import { showHeader } from "./header.js";
import { focusRecord, showHistory } from "./history.js";
import { isKeeping } from "./kept.js";
import { records } from "./records.js";
import { takeLeftUploads } from "./recovery.js";
import { selection, showSelection } from "./selection.js";
import { session } from "./session.js";
import { showTray } from "./tray.js";
import { uploads } from "./uploads.js";
import { loadWords, say, sayProblem } from "./words.js";

/** Do what asks the service. A refusal is told in words, a service that is away is waited for; a fault of ours is thrown. */
async function attempt(work) {
  try {
    byId("notice").hidden = true;
    return await work();
  } catch (error) {
    if (error instanceof Unreachable) {
      connection.lost();
    } else if (error instanceof Refused) {
      tell(error.document);
    } else {
      throw error;
    }
    return null;
  }
}

/** Read the history without being asked to; that the session has ended is told, and stays told. */
async function readAgain() {
  try {
    await records.reload();
  } catch (error) {
    if (error instanceof Unreachable) connection.lost();
    else if (error instanceof Refused) tell(error.document);
    else throw error;
  }
}

function tell(problem) {
  setText(byId("notice-words"), sayProblem(problem));
  setText(byId("notice-detail"), `${problem.detail ?? ""}\n${problem.request_id ?? ""}`);
  byId("notice").hidden = false;
}

/** Let the history live: what happens to the session's uploads, here or on another device, is seen at once. */
function follow() {
  if (!session.current) return () => {};
  return listen((news) => {
    if (["open", "reset", "closed"].includes(news.kind)) readAgain();
    if (["open", "reset"].includes(news.kind)) session.refreshSoon(); // a device may have joined
    if (news.kind === "broken") connection.lost();
    if (news.kind !== "upload") return;
    if (news.name === "progress") return records.progress(news.data);
    records.merge(news.data);
    if (news.name !== "created") session.refreshSoon();
  });
}

function showConnection() {
  const show = () => {
    byId("connection").hidden = connection.isUp;
    if (!connection.isUp) setText(byId("connection-words"), say(`connection.${connection.state}`));
  };
  connection.addEventListener("change", () => {
    show();
    if (connection.isUp && session.current) readAgain();
  });
  show();
}

function listenToKeys() {
  addEventListener("keydown", (event) => {
    if (event.target.matches("input:not([type=checkbox]), select, textarea") || document.querySelector("dialog[open]")) {
      if (event.key === "Escape" && event.target === byId("search")) byId("clear-filters").click();
      return;
    }
    if (event.key === "/" && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      byId("search").focus();
    } else if (event.key === "Escape") {
      selection.setAll([]);
    }
  });
}

/** Ask before the page is left while something is under way that would not go on by itself. */
function guardLeaving() {
  addEventListener("beforeunload", (event) => {
    const isBusy = [...uploads.transfers.values()].some((one) => ["sending", "finishing"].includes(one.state) && !one.root);
    if (isBusy) event.preventDefault();
  });
}

function afterFinished(transfer) {
  const isThere = transfer?.record && focusRecord(transfer.record.id);
  if (!isThere) byId("choose-files").focus();
}

await loadWords();
showChooser(attempt);
showTray({ choose: () => chooseAgain(attempt), onward: afterFinished });
showHistory(attempt);
showSelection();
showUndo({ back: focusRecord });
showHeader(attempt);
showConnection();
listenToKeys();
guardLeaving();
uploads.addEventListener("done", ({ detail: { transfer, record } }) => {
  transfer.record = record;
  records.merge(record);
  session.refreshSoon();
});
uploads.addEventListener("unkept", () => announce(say("unkept")));
let again = follow();
session.addEventListener("new", () => {
  if (state.session) again();
  else again = follow();
  state.session = session.current;
  readAgain();
});
await takeLeftUploads();
if (!isKeeping) announce(say("unkept"));
offerJoining();
document.documentElement.dataset.ready = "true";
