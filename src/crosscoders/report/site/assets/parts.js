"use strict";
// Parts that the overview, latent and experiments pages share.

const VERDICT_MARKS = {
  "undecided": {tone: "tone-muted", shape: "dot", size: 3.4},
  "shared": {tone: "tone-source-0", shape: "circle", size: 2.2},
  "re-scaled": {tone: "tone-source-2", shape: "down", size: 3},
  "rotated": {tone: "tone-source-2", shape: "square", size: 2.8},
  "re-used": {tone: "tone-source-3", shape: "triangle", size: 3.6},
  "unstable": {tone: "tone-ink", shape: "ring", size: 3.4},
  "artifact (shrinkage)": {tone: "tone-warn", shape: "cross", size: 3.6},
  "artifact (decoupling)": {tone: "tone-warn", shape: "plus", size: 3.8},
  "model-specific": {tone: "tone-source-1", shape: "diamond", size: 5},
};

/** A part of a page under its own heading. */
function section(id, title, ...children) {
  const heading = `${id}-title`;
  return el("section", {id, "aria-labelledby": heading}, el("h2", {id: heading}, title), children);
}

/** One sentence that says why something is not here. */
function absent(sentence) {
  return el("p", {class: "absent"}, sentence);
}

/** A count with its thousands set off. */
function countText(value) {
  return formatNumber(value, "integer");
}

/** A share as a percentage, never a negative zero; a dash where undefined. */
function percentText(value, digits = 1) {
  if (isUndefined(value)) return formatNumber(value);
  const text = (100 * value).toFixed(digits);
  return `${Number(text) === 0 ? (0).toFixed(digits) : text.replace("-", "\u2212")}%`;
}

/** A number with two decimals. */
function twoDigits(value) {
  return isUndefined(value) ? formatNumber(value) : value.toFixed(2);
}

/** A number with its sign. */
function signed(value) {
  return (value > 0 ? "+" : "") + formatNumber(value);
}

/** "0.12 [0.08, 0.16]", or the value alone where the interval is undefined. */
function withInterval(value, low, high, format = formatNumber) {
  if (isUndefined(value) || isUndefined(low) || isUndefined(high)) return format(value);
  return el("span", {class: "interval"}, format(value),
    el("span", {class: "range"}, ` [${format(low)}, ${format(high)}]`));
}

/** A value with its interval drawn on a line from `from` to `to`; decoration beside the same in numbers. */
function intervalMark({value, low, high}, {from = 0, to = 1} = {}) {
  if (isUndefined(value)) return null;
  const at = (v) => 4 + 92 * Math.min(1, Math.max(0, (v - from) / (to - from)));
  const whisker = !isUndefined(low) && !isUndefined(high) && [at(low), at(high)];
  const size = {width: 100, height: 14, viewBox: "0 0 100 14", "aria-hidden": "true"};
  return svg("svg", {class: "interval-mark", ...size},
    svg("line", {class: "axis", x1: 4, x2: 96, y1: 7, y2: 7}),
    from < 0 && svg("line", {class: "axis", x1: at(0), x2: at(0), y1: 2, y2: 12}),
    whisker && svg("line", {class: "whisker", x1: whisker[0], x2: whisker[1], y1: 7, y2: 7}),
    svg("circle", {class: "value", cx: at(value), cy: 7, r: 3.2}));
}

/** A value with its interval, in numbers and as a mark. */
function markedInterval(value, {low, high}, {format = formatNumber, from = 0} = {}) {
  return el("span", {class: "with-mark"},
    withInterval(value, low, high, format), intervalMark({value, low, high}, {from}));
}

/** A table of numbers named `caption`; the first cell of a row names it, columns in `words` hold text. */
function numbersTable(headers, rows, {caption, head = null, words = []}) {
  const kind = (i) => (words.includes(i) ? "words" : null);
  const cell = (value, i) =>
    (i === 0 ? el("th", {scope: "row"}, value) : el("td", {class: kind(i)}, value));
  return scrollBox(caption, el("table", {class: "numbers", "aria-label": caption},
    el("thead", null, head,
      el("tr", null, headers.map((header, i) => el("th", {scope: "col", class: kind(i)}, header)))),
    el("tbody", null, rows.map((row) => el("tr", null, row.map(cell))))));
}

/** A box that scrolls where its content is too wide, and only then is a region that takes the keyboard. */
function scrollBox(label, ...children) {
  const box = el("div", {class: "table-scroll"}, children);
  const attrs = {tabindex: "0", role: "region", "aria-label": label};
  new ResizeObserver(() => {
    const scrolls = box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight;
    if (scrolls) setAttributes(box, attrs);
    else for (const name of Object.keys(attrs)) box.removeAttribute(name);
  }).observe(box);
  return box;
}

/** A row of group headings above a table's header: [[text, columns], ...]. */
function groupHead(groups) {
  return el("tr", {class: "group-head"}, groups.map(([text, columns]) =>
    (text ? el("th", {scope: "colgroup", colspan: columns}, text) : el("td", {colspan: columns}))));
}

/** A closed <details> whose content is made when it is first opened. */
function lazyDetails(summary, make) {
  const node = el("details", {class: "more"}, el("summary", null, summary));
  node.addEventListener("toggle", () => {
    if (node.open && node.childElementCount === 1) append(node, [make()]);
  });
  return node;
}

/** Labels and values one below the other; pairs whose value is null are left out. */
function factList(pairs, kind = "facts") {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  const entry = ([label, value]) => el("div", null, el("dt", null, label), el("dd", null, value));
  return el("dl", {class: kind}, known.map(entry));
}

/** Sentences as a list. */
function sentenceList(sentences) {
  return el("ul", {class: "plain-list"}, sentences.map((sentence) => el("li", null, tokenText(sentence))));
}

/** A command to type, in its own line. */
function commandLine(command) {
  return el("pre", {class: "command"}, el("code", null, command));
}

/** A link to a latent's page; params of a list go along. */
function latentLink(latent, params = null, text = null) {
  return el("a", {href: href("latent", latent, params)}, text ?? String(latent));
}

/** A key of a source's color: left-to-right order and hatching tell sources apart as well. */
function sourceKey(index) {
  return el("span", {class: `source-key bar-${index % 4}`, "aria-hidden": "true"});
}
