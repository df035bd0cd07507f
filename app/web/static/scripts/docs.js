// The pages about the API: its description to search, to read, and to try with this browser's session.
// Everything that comes from outside is put in as text, never as markup.

const METHODS = ["get", "post", "put", "patch", "delete", "options"];
const EVERYWHERE = ["X-Request-Id", "X-Content-Type-Options", "Connection"];
const MOST_SHOWN = 1 << 20;
const TEXTUAL = /^text\/|[/+](json|xml|x-ndjson|yaml)\b/;
const MULTIPART = "multipart/form-data";
const URLENCODED = "application/x-www-form-urlencoded";

const url = document.querySelector('link[rel="service-desc"]').href;
const main = document.querySelector("#operations");
const search = document.querySelector("#search");
const found = document.querySelector("#found");
const base = url.slice(0, url.lastIndexOf("/"));
const entries = [];
let api = {};

/** An element with properties and children; texts become text. */
function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** The parts of a sentence, what stands between backticks as code. */
function worded(text) {
  return (text ?? "").split("`").map((part, at) => (at % 2 ? make("code", { textContent: part }) : part));
}

function followed(thing) {
  if (!thing?.$ref) return thing;
  return thing.$ref.slice(2).split("/").reduce((at, key) => at[key], api);
}

// --- words about schemas

/** A schema in a line, with links to the named ones. */
function typed(schema) {
  if (schema?.$ref) {
    const name = schema.$ref.split("/").pop();
    return [make("a", { href: `#schema-${name}`, textContent: name })];
  }
  if (schema?.allOf) return joined(schema.allOf.map(typed), " with ");
  if (schema?.anyOf && !schema.type) return joined(schema.anyOf.map(typed), " or ");
  if (schema?.enum) return [schema.enum.join(", ")];
  if (schema?.const !== undefined) return [String(schema.const)];
  if (schema?.type === "array") return ["list of ", ...typed(schema.items)];
  if (schema?.properties && !schema.type) {
    return joined(Object.entries(schema.properties).map(([name, of]) => [`${name} `, ...typed(of)]), ", ");
  }
  if (schema?.type === "object" && schema.additionalProperties?.type) {
    return ["object of ", ...typed(schema.additionalProperties)];
  }
  const bounds = [
    schema?.format,
    schema?.minimum !== undefined && `from ${schema.minimum}`,
    schema?.maximum <= Number.MAX_SAFE_INTEGER && `to ${schema.maximum}`,
    schema?.maxLength !== undefined && `${schema.maxLength} characters at most`,
  ].filter(Boolean);
  return [`${schema?.type ?? "anything"}${bounds.length ? ` (${bounds.join(", ")})` : ""}`];
}

function joined(lists, between) {
  return lists.flatMap((list, at) => (at ? [between, ...list] : list));
}

function plain(schema) {
  return typed(schema).map((part) => part.textContent ?? part).join("");
}

/** A value that a JSON body of this schema could begin with. */
function sample(schema) {
  const real = followed(schema);
  if (real?.examples?.length) return real.examples[0];
  if (real?.anyOf) return sample(real.anyOf[0]);
  if (real?.properties) {
    return Object.fromEntries(Object.entries(real.properties).map(([name, of]) => [name, sample(of)]));
  }
  return { array: [], integer: 1, number: 1, boolean: true, string: "" }[real?.type] ?? null;
}

// --- operations

function groupOf(path) {
  const [, first, second, third] = path.split(/[/.]/);
  if (first === "d") return "files";
  if (first !== "api") return "service";
  return second === "ingestion" ? third : second;
}

function codesOf(answer) {
  const schemas = Object.values(answer.content ?? {}).map(({ schema }) => schema);
  return schemas.flatMap((schema) => schema?.allOf?.flatMap((part) => part.properties?.code?.enum ?? []) ?? []);
}

function listed(path, method, operation) {
  const id = `${method}-${path}`;
  const summary = make(
    "summary",
    {},
    make("span", { className: "method", textContent: method.toUpperCase() }),
    make("code", { textContent: path }),
    make("span", {}, ...worded(operation.summary)),
  );
  const details = make("details", { id }, summary);
  details.addEventListener(
    "toggle",
    () => {
      if (details.childElementCount === 1) details.append(tried(path, method, operation), answered(operation));
    },
  );
  const names = (operation.parameters ?? []).map((parameter) => followed(parameter).name);
  const codes = Object.values(operation.responses).flatMap(codesOf);
  const words = [method, path, operation.summary, operation.description, ...names, ...codes];
  return { details, words: words.join(" ").toLowerCase() };
}

function answered(operation) {
  const list = make("dl");
  for (const [status, answer] of Object.entries(operation.responses)) {
    const codes = codesOf(answer);
    const kinds = Object.entries(answer.content ?? {}).filter(([kind]) => kind !== "application/problem+json");
    list.append(
      make("dt", { textContent: status }),
      make("dd", {}, ...worded(answer.description)),
      ...kinds.map(([kind, { schema }]) => make("dd", {}, make("code", { textContent: kind }), " ", ...typed(schema))),
    );
    if (codes.length) list.append(make("dd", {}, "Codes: ", make("code", { textContent: codes.join(", ") })));
    const headers = Object.keys(answer.headers ?? {}).filter((name) => !EVERYWHERE.includes(name));
    if (headers.length) list.append(make("dd", { className: "hint", textContent: `Headers: ${headers.join(", ")}` }));
  }
  return make("section", {}, make("h3", { textContent: "Answers" }), list);
}

// --- trying

let count = 0;

/** A labelled control, with what is to be said of it. */
function field(name, where, hint, control) {
  control.id = `field-${(count += 1)}`;
  const label = make("label", { htmlFor: control.id }, name, " ", make("span", { className: "where", textContent: where }));
  const parts = [label, control];
  if (hint) {
    parts.push(make("span", { id: `${control.id}-hint`, className: "hint" }, ...worded(hint)));
    control.setAttribute("aria-describedby", `${control.id}-hint`);
  }
  return make("div", { className: "field" }, ...parts);
}

function chooser(values, required) {
  const options = required ? values : ["", ...values];
  return make("select", {}, ...options.map((value) => make("option", { value, textContent: value })));
}

function tried(path, method, operation) {
  const parameters = (operation.parameters ?? []).map(followed).map((parameter) => {
    const { name, required, schema = {} } = parameter;
    const control = schema.enum ? chooser(schema.enum, required) : make("input", { required, autocomplete: "off" });
    const where = `${parameter.in}, ${plain(schema)}${required ? ", required" : ""}`;
    return { ...parameter, control, shown: field(name, where, parameter.description, control) };
  });
  const body = operation.requestBody ? bodied(operation.requestBody) : null;
  const send = make("button", { textContent: `Send ${method.toUpperCase()}` });
  const stop = make("button", { type: "button", textContent: "Stop", disabled: true });
  const status = make("p", { role: "status" });
  const output = make("div");
  const form = make(
    "form",
    {},
    operation.description ? make("p", {}, ...worded(operation.description)) : null,
    ...parameters.map(({ shown }) => shown),
    ...(body ? [body.shown] : []),
    make("div", { className: "row" }, send, stop),
    status,
    output,
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const aborting = new AbortController();
    const stopping = () => aborting.abort();
    stop.addEventListener("click", stopping);
    [send.disabled, stop.disabled] = [true, false];
    try {
      await exchanged(asked(path, method, parameters, body), status, output, aborting.signal);
    } catch (error) {
      status.append(aborting.signal.aborted ? " Stopped." : `No answer: ${error.message}`);
    } finally {
      stop.removeEventListener("click", stopping);
      [send.disabled, stop.disabled] = [false, true];
    }
  });
  return form;
}

/** The controls for a request's body, one set for each type that it may have. */
function bodied({ content, description, required }) {
  const kinds = Object.keys(content);
  const choice = chooser(kinds, true);
  const parts = make("div");
  let read = () => undefined;
  const show = () => {
    const schema = followed(content[choice.value].schema) ?? {};
    parts.replaceChildren();
    if (choice.value === MULTIPART || choice.value === URLENCODED) {
      read = formed(schema, choice.value, parts);
    } else if (/json$/.test(choice.value)) {
      const example = JSON.stringify(sample(schema), null, 2);
      const text = make("textarea", { rows: 6, spellcheck: false, [required ? "value" : "placeholder"]: example });
      parts.append(field("JSON", required ? "required" : "may be left empty", "", text));
      read = () => ({ body: text.value, kind: choice.value, curl: ["--data-binary", text.value] });
    } else {
      const file = make("input", { type: "file" });
      parts.append(field("File", "the body", "", file));
      read = () => ({
        body: file.files[0],
        kind: choice.value.includes("*") ? file.files[0]?.type || "application/octet-stream" : choice.value,
        curl: ["--data-binary", `@${file.files[0]?.name ?? "FILE"}`],
      });
    }
  };
  choice.addEventListener("change", show);
  show();
  return { shown: make("div", {}, field("Type", "of the body", description, choice), parts), read: () => read() };
}

function formed(schema, kind, parts) {
  const controls = Object.entries(schema.properties ?? {}).map(([name, of]) => {
    const binary = (of.items ?? of).format === "binary";
    const control = make("input", binary ? { type: "file", multiple: of.type === "array" } : { autocomplete: "off" });
    parts.append(field(name, plain(of), of.type === "array" && !binary ? "Several with commas between." : "", control));
    return [name, control, binary];
  });
  return () => {
    const body = kind === MULTIPART ? new FormData() : new URLSearchParams();
    const curl = [];
    for (const [name, control, binary] of controls) {
      const values = binary ? [...control.files] : control.value.split(",").filter(Boolean);
      for (const value of values) {
        body.append(name, value);
        curl.push(kind === MULTIPART ? "--form" : "--data-urlencode", `${name}=${binary ? `@${value.name}` : value}`);
      }
    }
    return { body, kind: null, curl };
  };
}

/** The request that a form describes, for fetch, and as a command. */
function asked(path, method, parameters, body) {
  const headers = new Headers();
  const query = new URLSearchParams();
  let target = path;
  for (const { name, in: where, control } of parameters) {
    const { value } = control;
    if (where === "path") target = target.replace(`{${name}}`, encodeURIComponent(value));
    else if (value && where === "query") query.append(name, value);
    else if (value && where === "header") headers.set(name, value);
  }
  const read = body?.read() ?? { body: undefined, kind: null, curl: [] };
  if (read.kind && read.body) headers.set("Content-Type", read.kind);
  const address = `${base}${target}${query.size ? `?${query}` : ""}`;
  const words = ["curl", "--include", "--cookie", "cookies", "--cookie-jar", "cookies", "--request", method.toUpperCase()];
  headers.forEach((value, name) => words.push("--header", `${name}: ${value}`));
  const command = [...words, ...read.curl, address].map(quoted).join(" ");
  return { address, command, how: { method: method.toUpperCase(), headers, body: read.body || undefined } };
}

function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

/** Text as it is, which the keyboard can scroll. */
function block(textContent) {
  return make("pre", { textContent, tabIndex: 0 });
}

/** Send a request and show its answer as it comes: its status, and the rest in `output`. */
async function exchanged({ address, command, how }, status, output, signal) {
  status.replaceChildren();
  output.replaceChildren(block(command));
  const began = performance.now();
  const answer = await fetch(address, { ...how, signal, cache: "no-store", redirect: "manual" });
  const took = Math.round(performance.now() - began);
  status.append(make("strong", { textContent: `${answer.status} ${answer.statusText}` }), ` after ${took} ms.`);
  status.className = answer.status >= 400 ? "refused" : "";
  const lines = [...answer.headers].map(([name, value]) => `${name}: ${value}`);
  output.append(block(lines.join("\n")));
  const kind = answer.headers.get("Content-Type") ?? "";
  const shown = block("");
  if (TEXTUAL.test(kind)) output.append(shown);
  const size = await received(answer, shown);
  if (!TEXTUAL.test(kind) && size) {
    output.append(make("p", { textContent: `${size.toLocaleString("en")} bytes of ${kind}` }));
    if (how.method === "GET") output.append(make("a", { href: address, textContent: "Save the file", download: "" }));
  } else if (/json$/.test(kind.split(";")[0]) && size < MOST_SHOWN) {
    shown.textContent = JSON.stringify(JSON.parse(shown.textContent), null, 2);
  }
  if (size >= MOST_SHOWN) output.append(make("p", { textContent: "The rest of it was left where it is." }));
}

/** Read the body of an answer into an element, up to a megabyte; how many bytes came. */
async function received(answer, shown) {
  const decoder = new TextDecoder();
  const reader = answer.body?.getReader();
  let size = 0;
  while (reader && size < MOST_SHOWN) {
    const { done, value } = await reader.read();
    if (done) return size;
    size += value.length;
    if (shown.isConnected) shown.append(decoder.decode(value, { stream: true }));
  }
  await reader?.cancel();
  return size;
}

// --- the page

function filter() {
  const terms = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let matching = 0;
  for (const { details, words } of entries) {
    details.hidden = !terms.every((term) => words.includes(term));
    matching += !details.hidden;
  }
  for (const section of main.querySelectorAll("section.group")) {
    section.hidden = !section.querySelector(":scope > details:not([hidden])");
  }
  found.textContent = terms.length ? `${matching} of ${entries.length}` : "";
}

/** Open what the address names. */
function unfold() {
  const named = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (named instanceof HTMLDetailsElement) {
    named.open = true;
    named.scrollIntoView();
    named.querySelector("summary").focus({ preventScroll: true });
  }
}

function grouped(name, id, details) {
  document.querySelector("#groups").append(make("li", {}, make("a", { href: `#${id}`, textContent: name })));
  return make("section", { id, className: "group" }, make("h2", { textContent: name }), ...details);
}

/** A named schema: its keys, and what each holds. */
function schemed(name, schema) {
  const keys = Object.entries(schema.properties ?? {});
  const list = make("dl");
  for (const [key, of] of keys) {
    const optional = schema.required?.includes(key) ? "" : " (may be missing)";
    list.append(make("dt", { textContent: `${key}${optional}` }), make("dd", {}, ...typed(of)));
    if (of.description) list.append(make("dd", { className: "hint" }, ...worded(of.description)));
  }
  const summary = make("summary", {}, make("code", { textContent: name }), make("span", {}, ...worded(schema.description)));
  const shown = keys.length ? list : make("p", {}, ...typed(schema));
  const words = [name, schema.description, ...keys.map(([key]) => key)].join(" ").toLowerCase();
  return { details: make("details", { id: `schema-${name}` }, summary, shown), words };
}

function drawn() {
  document.querySelector("#about").before(make("p", {}, ...worded(api.info.description)));
  const groups = new Map();
  for (const [path, operations] of Object.entries(api.paths)) {
    for (const method of METHODS.filter((method) => operations[method])) {
      const entry = listed(path, method, operations[method]);
      entries.push(entry);
      const group = groupOf(path);
      groups.set(group, [...(groups.get(group) ?? []), entry.details]);
    }
  }
  for (const [name, details] of groups) {
    main.append(grouped(name[0].toUpperCase() + name.slice(1), `group-${name}`, details));
  }
  const schemas = Object.entries(api.components.schemas).map(([name, schema]) => schemed(name, schema));
  entries.push(...schemas);
  main.append(grouped("Schemas", "group-schemas", schemas.map(({ details }) => details)));
  unfold();
}

document.addEventListener("keydown", (event) => {
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName);
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    search.focus();
  } else if (event.key === "Escape" && document.activeElement === search) {
    search.value = "";
    filter();
  }
});
search.addEventListener("input", filter);
addEventListener("hashchange", unfold);

try {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
  api = await answer.json();
  drawn();
} catch (error) {
  main.append(make("p", { className: "refused", role: "alert", textContent: `The description cannot be read: ${error.message}. Load the page again.` }));
}
