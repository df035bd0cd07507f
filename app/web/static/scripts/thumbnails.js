// Owns small pictures of images. They are drawn here, from the bytes: nothing of a file is shown that could run.

const TYPES = new Set(["image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "image/bmp"]);
const MOST_BYTES = 4_000_000;
const MOST_KEPT = 200;
const SIDE = 64;

const drawn = new Map();
let last = Promise.resolve();

/** Whether a record is of an image that browsers draw and that cannot run. */
export const isImage = (record) => TYPES.has(record.content_type.split(";")[0]);

/** Draw a record's picture into a row in place of its icon, one row after the other. */
export function drawThumbnail(place, record) {
  if (place.dataset.of === record.id || !isImage(record) || record.size > MOST_BYTES) return;
  place.dataset.of = record.id;
  last = last.then(async () => {
    if (!place.isConnected) return void delete place.dataset.of; // it was scrolled away
    if (!drawn.has(record.id)) keep(record.id, await draw(record));
    const picture = drawn.get(record.id);
    if (picture) place.replaceChildren(picture);
  });
}

/** The picture, or null of bytes that are no image whatever their type says. */
async function draw(record) {
  try {
    const answer = await fetch(record.links.content, { priority: "low" });
    if (!answer.ok) return null;
    const bitmap = await createImageBitmap(await answer.blob());
    const scale = Math.max(SIDE / bitmap.width, SIDE / bitmap.height);
    const canvas = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE });
    const [width, height] = [bitmap.width * scale, bitmap.height * scale];
    canvas.getContext("2d").drawImage(bitmap, (SIDE - width) / 2, (SIDE - height) / 2, width, height);
    return canvas;
  } catch {
    return null;
  }
}

function keep(id, picture) {
  drawn.set(id, picture);
  if (drawn.size > MOST_KEPT) drawn.delete(drawn.keys().next().value);
}
