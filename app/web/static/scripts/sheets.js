// Owns dialogs: one sheet at a time, closed by Escape, by its button and by a click beside it; the focus returns to where
// it was.

import { element, iconButton, wordButton } from "./dom.js";
import { say } from "./words.js";

/** Open a sheet with a title and content. Returns it; its "close" event says that it was closed. */
export function openSheet(title, ...content) {
  const heading = element("h2", { id: "sheet-title", text: title });
  const sheet = element("dialog", { class: "sheet", "aria-labelledby": "sheet-title", tabindex: "-1" });
  const close = iconButton("cancel", say("close"), () => sheet.close());
  sheet.append(element("header", {}, heading, close), ...content);
  sheet.addEventListener("click", (event) => event.target === sheet && sheet.close());
  sheet.addEventListener("close", () => sheet.remove());
  document.querySelector("dialog[open]")?.close();
  document.body.append(sheet);
  sheet.showModal();
  sheet.focus(); // nothing in it is chosen beforehand
  return sheet;
}

/** Ask once, with the words of what will be done; whether it was agreed to. */
export function confirm(title, text, word, kind = "strong") {
  return new Promise((resolve) => {
    let agreed = false;
    const sheet = openSheet(title, element("p", { text }));
    const agree = wordButton(null, word, () => {
      agreed = true;
      sheet.close();
    }, kind);
    sheet.append(element("footer", {}, agree, wordButton(null, say("cancel"), () => sheet.close())));
    sheet.addEventListener("close", () => resolve(agreed));
    agree.focus();
  });
}

/** A table of names and values; values are texts or nodes, and those that are null are left out. */
export function facts(pairs) {
  const list = element("dl", { class: "facts" });
  for (const [name, value] of pairs) {
    if (value === null || value === undefined || value === "") continue;
    list.append(element("dt", { text: name }), element("dd", {}, value));
  }
  return list;
}
