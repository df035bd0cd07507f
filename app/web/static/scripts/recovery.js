// Owns what comes after a reload: uploads that were left find their files again, by a handle that the browser kept, or
// by files that the person chooses once more.

import { fileOfHandle } from "./files.js";
import { leftUploads } from "./kept.js";
import { hashInBackground } from "./recognition.js";
import { Transfer } from "./transfer.js";
import { uploads } from "./uploads.js";

let roots = new Map();

/** Take on the uploads that a reload left; those whose files can be read go on by themselves. */
export async function takeLeftUploads() {
  const left = await leftUploads(() => [...uploads.transfers.keys()]);
  roots = left.roots;
  const states = new Map();
  for (const [id, handle] of roots) states.set(id, await handle.queryPermission({ mode: "read" }));
  const taken = left.uploads.map((kept) => {
    const transfer = new Transfer(kept);
    transfer.url = kept.url;
    transfer.ends = kept.ends;
    transfer.state = states.get(kept.root) === "prompt" ? "asking" : "missing";
    return uploads.put(transfer);
  });
  await Promise.all(taken.filter(({ root }) => states.get(root) === "granted").map(readAgain));
  uploads.rebundle();
}

/** After a click: ask for the permission to read the files of kept handles, and go on with those that it opens. */
export async function askPermission() {
  const asking = [...uploads.transfers.values()].filter(({ state }) => state === "asking");
  for (const id of new Set(asking.map(({ root }) => root))) {
    if ((await roots.get(id).requestPermission({ mode: "read" })) !== "granted") continue;
    await Promise.all(asking.filter(({ root }) => root === id).map(readAgain));
  }
  uploads.rebundle();
}

async function readAgain(transfer) {
  const file = await fileOfHandle(roots.get(transfer.root), transfer.path);
  if (file && (await isSame(transfer, file))) uploads.give(transfer, file);
  else uploads.lose(transfer);
}

/** Give files to the uploads that wait for them. Returns those that nobody waits for, and those that only look alike:
 * of the same name and size, with other ends. */
export async function giveFiles(found) {
  const waiting = new Map();
  for (const transfer of uploads.transfers.values()) {
    if (["missing", "asking"].includes(transfer.state)) waiting.set(key(transfer), transfer);
  }
  const strangers = [];
  const lookalikes = [];
  for (const one of found) {
    const known = key({ path: one.path, name: one.file.name, size: one.file.size });
    const transfer = waiting.get(known);
    if (!transfer) {
      strangers.push(one);
    } else if (await isSame(transfer, one.file)) {
      waiting.delete(known);
      uploads.give(transfer, one.file);
    } else {
      lookalikes.push(one);
    }
  }
  return { strangers, lookalikes };
}

const key = ({ path, name, size }) => `${size} ${path ?? name}`;

async function isSame(transfer, file) {
  if (file.size !== transfer.size) return false;
  return transfer.ends === null || (await hashInBackground(file).catch(() => null)) === transfer.ends;
}
