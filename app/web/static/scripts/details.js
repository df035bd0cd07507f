// Owns the sheet of one record: everything that is known of it, and everything that can be done with it.

import { copyButton } from "./clipboard.js";
import { element, icon, wordButton } from "./dom.js";
import { facts, openSheet } from "./sheets.js";
import { showLinks } from "./share.js";
import { isImage } from "./thumbnails.js";
import { dateAndTime, exactSize, say, sayProblem, size } from "./words.js";

const MOST_PREVIEWED = 50_000_000;

/** Open the sheet. `removed` is called when it is to be deleted; `status` is its state in words. */
export function showDetails(record, { removed, status }) {
  const isHere = record.status === "completed";
  const sheet = openSheet(record.filename);
  if (isHere && isImage(record) && record.size <= MOST_PREVIEWED) {
    sheet.append(element("img", { class: "preview", src: record.links.content, alt: say("preview", { name: record.filename }) }));
  }
  if (record.error) sheet.append(element("p", { class: "refusal" }, icon("warn"), element("span", { text: sayProblem(record.error) })));
  sheet.append(
    facts([
      [say("fact.status"), status],
      [say("fact.size"), `${size(record.size)} (${exactSize(record.size)})`],
      [say("fact.path"), record.path && element("bdi", { text: record.path })],
      [say("fact.type"), record.content_type],
      [say("fact.created"), moment(record.created_at)],
      [say("fact.completed"), moment(record.completed_at)],
      [say("fact.expires"), moment(record.expires_at)],
      [say("fact.digest"), record.sha256 && element("code", { text: record.sha256 })],
      ...Object.entries(record.metadata).map(([name, value]) => [name, element("bdi", { text: value })]),
    ]),
  );
  if (isHere) sheet.append(actions(record, sheet, removed));
  sheet.append(
    element(
      "details",
      {},
      element("summary", { text: say("details.more") }),
      facts([
        [say("fact.id"), element("code", { text: record.id })],
        [say("fact.protocol"), record.protocol],
        [say("fact.code"), record.error && element("code", { text: record.error.code })],
        [say("fact.detail"), record.error?.detail],
      ]),
    ),
  );
}

function actions(record, sheet, removed) {
  const download = element("a", { class: "button strong", href: record.links.content, download: "" }, icon("download"), element("span", { text: say("download") }));
  return element(
    "footer",
    {},
    download,
    wordButton("link", say("share"), () => showLinks(record)),
    copyButton(record.sha256, say("copy.digest")),
    wordButton("remove", say("delete.word"), () => {
      sheet.close();
      removed();
    }),
  );
}

const moment = (text) => text && element("span", {}, dateAndTime(text), element("small", { text: text }));
