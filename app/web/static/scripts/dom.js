// Owns the making of elements and icons. Text is only ever set as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes (functions become listeners, false and null are left out) and children. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (name === "text") made.textContent = value;
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** An icon, one of those that page.html draws; it says nothing to a screen reader, so words stand beside it or in the label around it. */
export function icon(name) {
  const made = document.createElementNS(SVG, "svg");
  made.setAttribute("viewBox", "0 0 24 24");
  made.setAttribute("aria-hidden", "true");
  made.setAttribute("class", `icon ${name}`);
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  made.append(use);
  return made;
}

/** Change an icon in place. */
export function changeIcon(svg, name) {
  if (svg.getAttribute("class") === `icon ${name}`) return;
  svg.setAttribute("class", `icon ${name}`);
  svg.firstChild.setAttribute("href", `#icon-${name}`);
}

/** A button that shows an icon, and its words on hover and to a screen reader. */
export function iconButton(name, label, click) {
  return element("button", { type: "button", class: "quiet", "aria-label": label, title: label, click }, icon(name));
}

/** A button that shows its words, beside an icon if there is one. */
export function wordButton(name, label, click, kind = "") {
  return element("button", { type: "button", class: kind || null, click }, name ? icon(name) : null, element("span", { text: label }));
}

/** Set a text only when it changed, so that nothing is laid out again for it. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Set an attribute only when it changed. */
export function setAttribute(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

/** A name in two parts: the first is cut when there is no room, so that the end of a long name still shows. */
export function nameElement() {
  return element("bdi", { class: "name" }, element("span", { class: "start" }), element("span", { class: "end" }));
}

export function setName(node, name) {
  const letters = [...name];
  const cut = Math.max(0, letters.length - 10);
  setText(node.firstChild, letters.slice(0, cut).join(""));
  setText(node.lastChild, letters.slice(cut).join(""));
  setAttribute(node, "title", name);
}

export const byId = (id) => document.getElementById(id);
