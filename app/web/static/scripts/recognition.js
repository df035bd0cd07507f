// Owns the questions to the hashing thread: which hash a file's ends have.

let worker = null;
let count = 0;
const waiting = new Map();

/** The hash of a file's ends (ends.js). Raises an Error when the file cannot be read. */
export function hashInBackground(file) {
  worker ??= begin();
  const number = ++count;
  return new Promise((resolve, reject) => {
    waiting.set(number, { resolve, reject });
    worker.postMessage({ number, file });
  });
}

function begin() {
  const begun = new Worker(new URL("ends_worker.js", import.meta.url), { type: "module" });
  begun.addEventListener("message", ({ data }) => {
    const { resolve, reject } = waiting.get(data.number);
    waiting.delete(data.number);
    if (data.error === undefined) resolve(data.hash);
    else reject(new Error(data.error));
  });
  begun.addEventListener("error", () => {
    for (const { reject } of waiting.values()) reject(new Error("the hashing thread could not be started"));
    waiting.clear();
    worker = null;
  });
  return begun;
}
