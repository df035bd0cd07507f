// Owns copying, on plain http as well, where browsers have no clipboard for pages: there the text is selected and copied
// as by hand.

import { announce } from "./announcer.js";
import { element, wordButton } from "./dom.js";
import { say } from "./words.js";

/** Copy a text; whether it went. */
export async function copy(text) {
  let isCopied = true;
  if (navigator.clipboard) isCopied = await navigator.clipboard.writeText(text).then(() => true, () => bySelection(text));
  else isCopied = bySelection(text);
  announce(say(isCopied ? "copied" : "copy.byhand"));
  return isCopied;
}

/** A button that copies a text and says on itself that it did. */
export function copyButton(text, label, kind = "") {
  const button = wordButton("copy", label, async () => {
    const words = button.querySelector("span");
    words.textContent = say((await copy(text)) ? "copied" : "copy.byhand");
    setTimeout(() => (words.textContent = label), 2_000);
  }, kind);
  return button;
}

function bySelection(text) {
  const field = element("textarea", { readonly: true, class: "unseen", "aria-hidden": "true" });
  field.value = text;
  const focused = document.activeElement;
  // A modal sheet lets nothing outside of it be selected.
  (document.querySelector("dialog[open]") ?? document.body).append(field);
  field.select();
  const isCopied = document.execCommand("copy");
  field.remove();
  focused?.focus();
  return isCopied;
}
