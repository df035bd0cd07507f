// Owns the ways by which files come to the page: dropped, chosen, pasted. Each gives `{file, path, root}` in groups, as
// they are found: `path` is where a file lies in its folder, `root` the handle by which it can be read after a reload.

const GROUP = 250;

/** Files of an <input>. */
export function* filesOfInput(input) {
  yield [...input.files].map((file) => ({ file, path: file.webkitRelativePath || null, root: null }));
}

/** Files of a paste. A picture of the clipboard has no name of its own, so it gets the time. */
export function* filesOfPaste(data, nameOf) {
  yield [...data.files].map((file) => {
    const named = file.name === "image.png" ? new File([file], nameOf(), { type: file.type }) : file;
    return { file: named, path: null, root: null };
  });
}

/** Files and folders of a drop. What is asked of the event is asked at once: afterwards it is empty. */
export function filesOfDrop(data) {
  const items = [...data.items].filter((item) => item.kind === "file");
  const found = items.map((item) => ({
    entry: item.webkitGetAsEntry?.() ?? null,
    file: item.getAsFile(),
    handle: item.getAsFileSystemHandle?.().catch(() => null) ?? null,
  }));
  return inGroups(dropped(found));
}

async function* dropped(found) {
  for (const { entry, file, handle } of found) {
    const root = await handle;
    if (entry?.isDirectory) {
      for await (const { file: inner, path } of filesBelow(entry)) yield { file: inner, path, root };
    } else if (file) {
      yield { file, path: null, root };
    }
  }
}

/** All files below a directory, each with its path from there. */
async function* filesBelow(directory) {
  const reader = directory.createReader();
  for (;;) {
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!entries.length) return;
    const files = entries.filter((entry) => entry.isFile);
    const read = await Promise.all(files.map((entry) => new Promise((resolve, reject) => entry.file(resolve, reject))));
    for (const [at, file] of read.entries()) yield { file, path: files[at].fullPath.replace(/^\//, "") };
    for (const entry of entries) if (entry.isDirectory) yield* filesBelow(entry);
  }
}

/** Files by the system's own window, which gives handles; null where the browser has none, and an <input> must do. */
export function pickFiles() {
  if (!globalThis.showOpenFilePicker) return null;
  return inGroups(picked(showOpenFilePicker({ multiple: true })));
}

async function* picked(choice) {
  let handles;
  try {
    handles = await choice;
  } catch (error) {
    if (error.name === "AbortError") return; // the window was closed without a choice
    throw error;
  }
  for (const handle of handles) yield { file: await handle.getFile(), path: null, root: handle };
}

async function* inGroups(found) {
  let group = [];
  for await (const one of found) {
    if (group.push(one) >= GROUP) {
      yield group;
      group = [];
    }
  }
  if (group.length) yield group;
}

/** The file of a kept upload, by the handle of itself or of its folder; null when it is not there any more. */
export async function fileOfHandle(root, path) {
  try {
    if (root.kind === "file") return await root.getFile();
    const steps = path.split("/").slice(1);
    let directory = root;
    for (const step of steps.slice(0, -1)) directory = await directory.getDirectoryHandle(step);
    return await (await directory.getFileHandle(steps.at(-1))).getFile();
  } catch (error) {
    if (["NotFoundError", "TypeMismatchError", "NotAllowedError"].includes(error.name)) return null;
    throw error;
  }
}
