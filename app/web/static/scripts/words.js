// Owns the page's sentences, and how numbers, sizes, times and refusals are put for people.

import { base } from "./api.js";

export const language = document.documentElement.lang;

const plurals = new Intl.PluralRules(language);
const whole = new Intl.NumberFormat(language, { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat(language, { maximumFractionDigits: 1 });
// How hours and dates are written is the reader's own, as far as it is the page's language.
const locale = navigator.languages.find((one) => one.split("-")[0] === language) ?? language;
const clock = new Intl.DateTimeFormat(locale, { hour: "2-digit", minute: "2-digit" });
const shortDate = new Intl.DateTimeFormat(locale, { day: "numeric", month: "short", year: "numeric" });
const longDate = new Intl.DateTimeFormat(locale, { weekday: "long", day: "numeric", month: "long", year: "numeric" });
const full = new Intl.DateTimeFormat(locale, { dateStyle: "long", timeStyle: "medium" });
const relative = new Intl.RelativeTimeFormat(language, { numeric: "auto" });

let texts = {};

/** Load the sentences of the page's language; everything else waits for this. */
export async function loadWords() {
  const answer = await fetch(`${base}/static/languages/${language}.json`);
  texts = await answer.json();
}

/** The sentence of a key. `count` chooses the plural; numbers are written as the language writes them. */
export function say(key, values = {}) {
  let text = texts[key];
  if ("count" in values) text = texts[`${key}.${plurals.select(values.count)}`] ?? texts[`${key}.other`] ?? text;
  return (text ?? key).replace(/\{(\w+)\}/g, (_, name) => {
    const value = values[name];
    return typeof value === "number" ? whole.format(value) : (value ?? "");
  });
}

/** A refusal in words: the sentence of its code, with its members. `problem` is a problem document or a record's error. */
export function sayProblem(problem) {
  const key = `problem.${problem.code}`;
  if (!(key in texts)) return say("problem.unknown");
  if (problem.code === "quota_exceeded" && problem.unit && problem.unit !== "bytes") return say(`${key}.uploads`, problem);
  const values = { ...problem };
  if (["too_large", "request_too_large", "quota_exceeded"].includes(problem.code)) {
    for (const name of ["limit", "received", "used", "asked"]) {
      if (typeof values[name] === "number") values[name] = size(values[name]);
    }
  }
  const isWhole = [...texts[key].matchAll(/\{([\w]+)\}/g)].every(([, name]) => values[name] !== undefined);
  return say(isWhole ? key : `${key}.short`, values);
}

/** A size for people: limits in the binary units in which they were set, all else in decimal ones. */
export function size(bytes) {
  for (const [power, unit] of [[4, "TiB"], [3, "GiB"], [2, "MiB"]]) {
    const count = bytes / 1024 ** power;
    if (count >= 1 && count < 10_000 && Number.isInteger(count)) return `${whole.format(count)}\u00a0${unit}`;
  }
  if (bytes < 1000) return say("bytes", { count: bytes });
  let count = bytes;
  let unit = "";
  for (unit of ["kB", "MB", "GB", "TB"]) {
    count /= 1000;
    if (count < 999.5) break;
  }
  return `${(count < 9.95 ? tenths : whole).format(count)}\u00a0${unit}`;
}

/** What is used of a limit, in the limit's own unit: "1.2 of 5 GiB". */
export function sizeOf(used, limit) {
  const unit = [4, 3, 2].map((power) => 1024 ** power).find((step) => limit % step === 0);
  return unit && used >= unit / 10 ? tenths.format(used / unit) : size(used);
}

export const exactSize = (bytes) => say("bytes", { count: bytes });

export const rate = (bytesPerSecond) => say("rate", { size: size(Math.round(bytesPerSecond)) });

export const percent = (part) => `${whole.format(Math.floor(part * 100))} %`;

/** A time that is left; no seconds above a minute, for they would only flicker. */
export function duration(seconds) {
  if (seconds < 60) return say("left.seconds", { count: Math.max(1, Math.ceil(seconds)) });
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return say("left.minutes", { count: minutes });
  const hours = Math.round(minutes / 60);
  if (hours < 48) return say("left.hours", { count: hours });
  return say("left.days", { count: Math.round(hours / 24) });
}

const midnight = (date) => new Date(date.getFullYear(), date.getMonth(), date.getDate());

export const timeOfDay = (text) => clock.format(new Date(text));
export const dateAndTime = (text) => full.format(new Date(text));
export const date = (text) => shortDate.format(new Date(text));

/** The heading of a day: today, yesterday, or its date. */
export function day(text) {
  const then = new Date(text);
  const days = Math.round((midnight(then) - midnight(new Date())) / 86_400_000);
  const words = days === 0 || days === -1 ? relative.format(days, "day") : longDate.format(then);
  return words.charAt(0).toLocaleUpperCase(language) + words.slice(1);
}

/** The day on which a time lies here, as something to compare. */
export const dayKey = (text) => new Date(text).toDateString();
