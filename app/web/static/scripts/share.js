// Owns the sheet of a file's share links: made, shown once, listed, revoked.

import { FILES, ask } from "./api.js";
import { copyButton } from "./clipboard.js";
import { element, iconButton, wordButton } from "./dom.js";
import { openSheet } from "./sheets.js";
import { date, say, sayProblem } from "./words.js";

const TIMES = ["1d", "7d", "30d", ""];
const COUNTS = [1, 10, 100, 0];

/** Open the sheet of a record's links. */
export function showLinks(record) {
  const url = `${FILES}/${record.id}/links`;
  const until = choice("share.until", TIMES, "7d");
  const times = choice("share.times", COUNTS, 0);
  const made = element("div", { class: "made", "aria-live": "polite" });
  const listed = element("ul", { class: "links" });
  const make = wordButton("link", say("share.make"), async () => {
    const json = {};
    if (until.select.value) json.expires_in = until.select.value;
    if (Number(times.select.value)) json.max_downloads = Number(times.select.value);
    try {
      const link = await ask("POST", url, { json });
      showMade(made, new URL(link.url, location.href).href);
      await list(url, listed);
    } catch (error) {
      made.replaceChildren(element("p", { class: "refusal", text: error.document ? sayProblem(error.document) : say("connection.away") }));
    }
  }, "strong");
  openSheet(
    say("share.title"),
    element("p", {}, element("bdi", { text: record.filename })),
    element("div", { class: "choices" }, until.label, times.label),
    element("footer", {}, make),
    made,
    listed,
  );
  list(url, listed).catch(() => {}); // the links are shown when the next one is made
}

function showMade(place, address) {
  const field = element("input", { readonly: true, value: address, "aria-label": say("share.address"), dir: "ltr" });
  field.addEventListener("focus", () => field.select());
  place.replaceChildren(element("p", { text: say("share.once") }), field, copyButton(address, say("share.copy"), "strong"));
  if (navigator.share) {
    place.append(wordButton("link", say("share.send"), () => navigator.share({ url: address }).catch((error) => {
      if (error.name !== "AbortError") throw error;
    })));
  }
}

async function list(url, place) {
  const { items } = await ask("GET", url);
  place.replaceChildren(
    ...items.map((link) => {
      const row = element("li", {}, element("span", { text: words(link) }));
      row.append(iconButton("remove", say("share.revoke"), async () => {
        await ask("DELETE", `${url}/${link.id}`);
        row.remove();
      }));
      return row;
    }),
  );
}

function words(link) {
  const until = link.expires_at ? say("share.expires", { date: date(link.expires_at) }) : say("share.endless");
  const used = link.max_downloads
    ? say("share.used.of", { count: link.max_downloads, used: link.downloads })
    : say("share.used", { count: link.downloads });
  return `${until} · ${used}`;
}

function choice(key, values, first) {
  const select = element("select", {}, ...values.map((value) => element("option", { value: `${value}`, text: say(`${key}.${value || "any"}`) })));
  select.value = `${first}`;
  return { select, label: element("label", {}, element("span", { text: say(key) }), select) };
}
