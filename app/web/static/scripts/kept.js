// Owns what outlives a reload: the unfinished uploads and the handles of their files, in IndexedDB. Uploads belong to
// the tab that has them; a new tab asks the others which they have, and takes on only what nobody has.

import { base } from "./api.js";

const NAME = `waybill${base}`;
const ASKING = 300;

/** Whether this browser keeps anything; false in some private windows. */
export let isKeeping = true;

const opened = new Promise((resolve) => {
  const request = indexedDB.open(NAME, 1);
  request.onupgradeneeded = () => {
    request.result.createObjectStore("uploads", { keyPath: "id" });
    request.result.createObjectStore("roots", { keyPath: "id" });
  };
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => {
    isKeeping = false;
    resolve(null);
  };
});

/** Do some writing in one transaction, and wait for its end. */
async function write(work) {
  const database = await opened;
  if (!database) return;
  const transaction = database.transaction(["uploads", "roots"], "readwrite");
  work(transaction.objectStore("uploads"), transaction.objectStore("roots"));
  await new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = () => reject(transaction.error);
  });
}

async function read(store) {
  const database = await opened;
  if (!database) return [];
  const request = database.transaction(store).objectStore(store).getAll();
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Keep these uploads, as they are now. */
export const keep = (transfers) => write((uploads) => transfers.forEach((transfer) => uploads.put(transfer.kept)));

/** Keep a handle by which files can be read again after a reload, under the id that uploads name it by. */
export const keepRoot = (id, handle) => write((_, roots) => roots.put({ id, handle }));

/** Forget these uploads: finished, or given up. */
export const forget = (ids) => write((uploads) => ids.forEach((id) => uploads.delete(id)));

export const forgetAll = () =>
  write((uploads, roots) => {
    uploads.clear();
    roots.clear();
  });

// Tabs speak to one another here. What a tab has it says when asked.
const channel = new BroadcastChannel(`${NAME} uploads`);
const taken = new Set();
let own = () => [];

channel.onmessage = ({ data }) => {
  if (data.ask) channel.postMessage({ have: own() });
  if (data.have) data.have.forEach((id) => taken.add(id));
};

/** The uploads that a closed or reloaded tab left, and the handles of their files by id. `ids` tells what this tab has. */
export async function leftUploads(ids) {
  own = ids;
  const [uploads, roots] = await Promise.all([read("uploads"), read("roots")]);
  if (!uploads.length) {
    if (roots.length) await write((_, store) => store.clear());
    return { uploads: [], roots: new Map() };
  }
  channel.postMessage({ ask: true });
  await new Promise((resolve) => setTimeout(resolve, ASKING));
  return { uploads: uploads.filter(({ id }) => !taken.has(id)), roots: new Map(roots.map(({ id, handle }) => [id, handle])) };
}
