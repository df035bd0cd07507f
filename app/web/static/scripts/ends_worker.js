// Owns the thread in which files' ends are read and hashed, so that the page does not wait for a slow disk.

import { hashOfEnds } from "./ends.js";

addEventListener("message", async ({ data: { number, file } }) => {
  try {
    postMessage({ number, hash: await hashOfEnds(file) });
  } catch (error) {
    postMessage({ number, error: error.message });
  }
});
