// Owns the drop zone and everything by which files come: drop anywhere, choose, paste, and the files that a reload asks
// for again.

import { announce } from "./announcer.js";
import { byId, element, wordButton } from "./dom.js";
import { filesOfDrop, filesOfInput, filesOfPaste, pickFiles } from "./files.js";
import { askPermission, giveFiles } from "./recovery.js";
import { openSheet } from "./sheets.js";
import { newId } from "./transfer.js";
import { uploads } from "./uploads.js";
import { say } from "./words.js";

/** Show the ways in. `attempt` tells the person what went wrong. */
export function showChooser(attempt) {
  const files = byId("files");
  const folder = byId("folder");
  byId("choose-files").addEventListener("click", () => choose(attempt));
  byId("choose-folder").addEventListener("click", () => folder.click());
  byId("choose-folder").hidden = !("webkitdirectory" in folder);
  for (const input of [files, folder]) {
    input.addEventListener("change", () => {
      attempt(() => take(filesOfInput(input)));
      input.value = "";
    });
  }
  addEventListener("paste", (event) => {
    if (!event.clipboardData?.files.length || event.target.matches("input, textarea")) return;
    event.preventDefault();
    attempt(() => take(filesOfPaste(event.clipboardData, pastedName)));
  });
  showDrop(attempt);
}

function choose(attempt) {
  const picked = pickFiles();
  if (picked) attempt(() => take(picked));
  else byId("files").click();
}

function pastedName() {
  const now = new Date();
  const two = (number) => `${number}`.padStart(2, "0");
  const day = `${now.getFullYear()}-${two(now.getMonth() + 1)}-${two(now.getDate())}`;
  return `${say("pasted")} ${day} ${two(now.getHours())}.${two(now.getMinutes())}.${two(now.getSeconds())}.png`;
}

/** The whole window takes a drop; the zone says so while something is held over it. */
function showDrop(attempt) {
  let depth = 0;
  const brings = (event) => event.dataTransfer?.types.includes("Files");
  const mark = (change) => {
    depth = Math.max(0, change === null ? 0 : depth + change);
    document.body.classList.toggle("dropping", depth > 0);
  };
  addEventListener("dragenter", (event) => brings(event) && mark(1));
  addEventListener("dragleave", (event) => brings(event) && mark(-1));
  addEventListener("dragover", (event) => {
    if (!brings(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
  });
  addEventListener("drop", (event) => {
    if (!brings(event)) return;
    event.preventDefault();
    mark(null);
    const found = filesOfDrop(event.dataTransfer);
    attempt(() => take(found));
  });
}

/** Take the groups of files in: those that an upload waits for go to it, all others are new. */
async function take(groups) {
  const batch = newId();
  let count = 0;
  for await (const group of groups) {
    count += group.length;
    const { strangers, lookalikes } = await giveFiles(group);
    uploads.add([...strangers, ...lookalikes], batch);
  }
  uploads.rebundle();
  if (count) announce(say("chosen", { count }));
  else announce(say("chosen.nothing"));
}

/** After a reload: with the permission for the kept handles, else by choosing the same files once more. */
export async function chooseAgain(attempt) {
  const waiting = [...uploads.transfers.values()].filter(({ state }) => ["missing", "asking"].includes(state));
  if (waiting.some(({ state }) => state === "asking")) return attempt(askPermission);
  const input = element("input", { type: "file", multiple: true });
  if (waiting.every(({ path }) => path)) input.webkitdirectory = true;
  input.addEventListener("change", () => attempt(() => giveAgain(filesOfInput(input))));
  input.click();
}

async function giveAgain(groups) {
  for (const group of groups) {
    const { strangers, lookalikes } = await giveFiles(group);
    const refused = [...lookalikes.map((one) => [one, "again.other"]), ...strangers.map((one) => [one, "again.unknown"])];
    if (refused.length) explain(refused);
  }
  uploads.rebundle();
}

/** Say kindly why files are not the ones that are waited for, and offer to upload them as new ones. */
function explain(refused) {
  const list = element("ul", {}, ...refused.slice(0, 5).map(([{ file }, key]) => element("li", { text: say(key, { name: file.name }) })));
  const sheet = openSheet(say("again.title"), list);
  sheet.append(
    element("footer", {},
      wordButton("add", say("again.add", { count: refused.length }), () => {
        uploads.add(refused.map(([one]) => one), newId());
        sheet.close();
      }),
      wordButton(null, say("close"), () => sheet.close()),
    ),
  );
}
