"use strict";
// Building the page: every node is made here and every string becomes text, never markup.

const SVG_NAMESPACE = "http://www.w3.org/2000/svg";

/** Whether an address stays in this report: a fragment, a relative path or a blob. */
function isOwnAddress(address) {
  const bare = String(address).replace(/[\u0000-\u0020\u007f-\u009f]/g, "");
  return bare.startsWith("blob:") || !/^([a-z][a-z0-9+.-]*:|[\\/])/i.test(bare);
}

/** Set one attribute; an address that leaves the report is left out, so that its link stays plain text. */
function setAttribute(node, name, value) {
  if (/^on/i.test(name) || name === "srcdoc") throw new Error(`el: "${name}" is set through on: {...} only`);
  if (value === null || value === undefined || value === false) return;
  if (/^(href|src|xlink:href|action)$/i.test(name) && !isOwnAddress(value)) return;
  node.setAttribute(name, value === true ? "" : String(value));
}

/** Give a node its attributes: `on` for listeners, `style` through CSSOM, everything else by its name. */
function setAttributes(node, attrs) {
  for (const [name, value] of Object.entries(attrs)) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    } else if (name === "style") {
      for (const [key, setting] of Object.entries(value)) node.style.setProperty(cssName(key), setting);
    } else {
      setAttribute(node, name, value);
    }
  }
}

/** "backgroundColor" as "background-color"; custom properties and names with dashes stay as they are. */
function cssName(property) {
  if (property.startsWith("--")) return property;
  return property.replace(/[A-Z]/g, (letter) => "-" + letter.toLowerCase());
}

/** Append nodes, strings and numbers (as text) and lists of them; null, undefined and false are left out. */
function append(node, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    if (Array.isArray(child)) append(node, child);
    else node.append(child instanceof Node ? child : String(child));
  }
  return node;
}

/** An HTML element: el("a", {href: "#/", on: {click: f}, style: {"--share": 0.5}}, "text", node). */
function el(tag, attrs, ...children) {
  const node = document.createElement(tag);
  if (attrs) setAttributes(node, attrs);
  return append(node, children);
}

/** An SVG element, with the same arguments as el. */
function svg(tag, attrs, ...children) {
  const node = document.createElementNS(SVG_NAMESPACE, tag);
  if (attrs) setAttributes(node, attrs);
  return append(node, children);
}

/** Remove everything within a node and return it. */
function clear(node) {
  node.replaceChildren();
  return node;
}

const INTEGER_FORMAT = new Intl.NumberFormat("en-US", {maximumFractionDigits: 0});

/** Whether a value counts as undefined: null, undefined or NaN. */
function isUndefined(value) {
  return value === null || value === undefined || Number.isNaN(value);
}

/** A number as readers write it: "0.971", "2.10e-5", "32,768"; an undefined one is a dash. */
function formatNumber(value, kind = "number") {
  if (isUndefined(value)) return "\u2013";
  const sign = value < 0 ? "\u2212" : "";
  if (Math.abs(value) === Infinity) return sign + "\u221e";
  if (kind === "integer") return sign + INTEGER_FORMAT.format(Math.abs(value));
  return formatMeasure(Math.abs(value), sign);
}

/** A finite magnitude behind its sign: three to four digits that count, powers of ten where it is tiny. */
function formatMeasure(size, sign) {
  if (size === 0) return "0";
  if (size < 0.0009995) return sign + size.toExponential(2).replace("e-", "e\u2212");
  if (size >= 999.5) return sign + INTEGER_FORMAT.format(size);
  const digits = Math.floor(Math.log10(size));
  return sign + size.toFixed(digits >= 0 || size >= 0.1 ? 3 - Math.max(0, digits) : 2 - digits);
}

/** A number as a node: undefined ones are a dash that says so. */
function numberNode(value, kind = "number") {
  const text = formatNumber(value, kind);
  if (!isUndefined(value)) return document.createTextNode(text);
  return el("abbr", {title: "undefined", class: "undefined"}, text);
}

/** A function that runs `f` once calls have paused for `milliseconds`; `.flush()` runs a waiting call now. */
function debounce(f, milliseconds) {
  let timer = null;
  let waiting = null;
  const run = () => {
    const args = waiting;
    clearTimeout(timer);
    timer = waiting = null;
    if (args) f(...args);
  };
  const debounced = (...args) => {
    clearTimeout(timer);
    waiting = args;
    timer = setTimeout(run, milliseconds);
  };
  debounced.flush = run;
  return debounced;
}

/** A box that says in place what went wrong. */
function problemBox(title, ...children) {
  return el("div", {class: "problem", role: "alert"}, el("p", {class: "problem-title"}, title), children);
}
