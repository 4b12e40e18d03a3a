"use strict";
// Snippets of a latent: tokens shaded by its activation, and below each token every source's share of the
// pre-activation. One tab stop per snippet; arrow keys go from token to token.

const SHARE_LABEL = "share of the pre-activation, W_enc[source] . x[source]; the latent has one activation " +
  "per token";
const SNIPPET_KINDS = [
  ["Strongest", "The places where it fires most."],
  ["Across its range", "Places at quantiles of its activations: what it does when it is not strongest."],
];
let areSharesShown = true;

/** The snippets of the i-th latent of a file, with where their tokens start in the file's ragged arrays. */
function readSnippets({arrays}, i) {
  const {snippet_ptr: ptr, snippet_length: lengths} = arrays;
  let offset = 0;
  for (let s = 0; s < ptr.data[i]; s++) offset += lengths.data[s];
  const snippets = [];
  for (let s = ptr.data[i]; s < ptr.data[i + 1]; s++) {
    const of = (name) => arrays[`snippet_${name}`].data[s];
    const snippet = {kind: of("kind"), start: of("start"), length: of("length"), at: of("at"), offset};
    snippets.push({...snippet, activation: of("activation")});
    offset += snippet.length;
  }
  return snippets;
}

/** What is known of the k-th token of a snippet. */
function readToken(view, snippet, k) {
  const {arrays, text, maximum, scale, sources} = view;
  const index = text.arrays.tokens.data[snippet.start + k];
  const entry = snippet.offset + k;
  const level = arrays.token_activation.data[entry] / 255;
  const share = (s) => (arrays.token_share.data[entry * sources.length + s] / 127) * scale;
  const isMarked = k === snippet.at;
  return {
    string: text.json.strings[index] ?? "", id: text.arrays.token_ids.data[index], level, isMarked,
    activation: isMarked ? snippet.activation : level * maximum, shares: sources.map((_, s) => share(s)),
  };
}

/** The section with all snippets of a latent; `everywhere` is {maximum, nTokens} of the table's text. */
function snippetSection(chunk, i, {text, everywhere}) {
  const view = {
    arrays: chunk.arrays, text, everywhere, sources: chunk.json.sources, tokens: new Map(),
    maximum: chunk.arrays.max_activation.data[i], scale: chunk.arrays.share_scale.data[i],
  };
  const snippets = readSnippets(chunk, i);
  const box = el("div", {class: areSharesShown ? "snippets" : "snippets hides-shares"});
  view.tip = el("div", {class: "tip token-tip", hidden: true});
  append(box, [SNIPPET_KINDS.map(([name, help], kind) =>
    snippetGroup(view, {name, help}, snippets.filter((one) => one.kind === kind))), view.tip]);
  followTokens(box, view);
  return section("snippets", "Where it fires", snippetLegend(view, box), box);
}

/** One group of snippets under its heading; null where there are none. */
function snippetGroup(view, {name, help}, snippets) {
  if (!snippets.length) return null;
  return el("div", {class: "snippet-group"}, el("h3", null, name), el("p", {class: "muted small"}, help),
    snippets.map((snippet, n) => snippetRow(view, snippet, `${name}, ${n + 1} of ${snippets.length}`)));
}

/** One snippet: its activation and place, and its tokens as a list of options. */
function snippetRow(view, snippet, name) {
  const tokens = Array.from({length: snippet.length}, (_, k) => readToken(view, snippet, k));
  const strings = tokens.map(({string}) => plainToken(string)).join("");
  const label = `${name}: activation ${formatNumber(snippet.activation)} at ` +
    `"${plainToken(tokens[snippet.at].string)}". Text: ${strings}`;
  const attrs = {class: "tokens", role: "listbox", "aria-orientation": "horizontal", "aria-label": label};
  const list = el("div", attrs, tokens.map((token) => tokenCell(view, token)));
  return el("div", {class: "snippet"},
    el("p", {class: "snippet-meta"}, el("strong", null, formatNumber(snippet.activation)),
      el("span", {class: "muted"}, placeOf(view.text, snippet))), list);
}

/** Where a snippet's marked token lies: row and token of the text that was read. */
function placeOf({arrays}, {start, at}) {
  const starts = arrays.row_start.data;
  let [low, high] = [0, starts.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (starts[middle] <= start) low = middle;
    else high = middle;
  }
  return `row ${low}, token ${start + at - starts[low]}`;
}

/** A token with its shade, and the bars of its shares below. */
function tokenCell(view, token) {
  const kind = token.isMarked ? "token is-marked" : token.level > 0 ? "token fires" : "token";
  const bars = token.shares.map((share, s) => shareBar(share, s, view.scale));
  const cell = el("span", {
    class: kind, role: "option", "aria-selected": "false", tabindex: token.isMarked ? "0" : "-1",
    "aria-label": tokenInWords(view, token), style: {"--level": token.level.toFixed(3)},
  }, el("span", {class: "token-word"}, tokenText(token.string)),
  el("span", {class: "bars", "aria-hidden": "true"}, bars));
  view.tokens.set(cell, token);
  return cell;
}

/** One source's share as a small bar, up where positive, down where negative. */
function shareBar(share, s, scale) {
  const size = scale > 0 ? Math.min(1, Math.abs(share) / scale) : 0;
  const kind = `bar bar-${s % 4}${share < 0 ? " is-negative" : ""}`;
  return el("span", {class: kind, style: {"--size": size.toFixed(3)}});
}

/** A token, its id, activation and shares as a sentence. */
function tokenInWords({sources}, token) {
  const fires = token.activation > 0 ? `activation ${formatNumber(token.activation)}` : "silent";
  const shares = sources.map((name, s) => `${plainToken(name)} ${signed(token.shares[s])}`).join(", ");
  const mark = token.isMarked ? "marked, " : "";
  return `"${plainToken(token.string)}", ${mark}${fires}; shares: ${shares}; token id ${token.id}`;
}

/** What shade, outline and bars mean, their scales, and the switch for the bars. */
function snippetLegend({maximum, scale, sources, everywhere}, box) {
  const toggle = el("input", {type: "checkbox", id: "shares"});
  toggle.checked = areSharesShown;
  toggle.addEventListener("change", () => {
    areSharesShown = toggle.checked;
    box.classList.toggle("hides-shares", !areSharesShown);
  });
  const sample = el("span", {class: "token is-marked sample"}, "outlined");
  return el("div", {class: "snippet-legend"},
    el("p", null, "Shade: activation, 0 ", el("span", {class: "heat-scale", "aria-hidden": "true"}),
      ` ${scaleEnd(maximum, everywhere)}. `, sample, ": the marked token."),
    el("p", null, "Bars below a token: ", SHARE_LABEL, ". Up adds, down takes away; a full bar is ",
      el("span", {class: "nowrap"}, `\u00b1${formatNumber(scale)}.`), " From left to right: ",
      sources.map((name, s) => [s ? ", " : "", sourceKey(s), tokenText(name)]), "."),
    el("p", {class: "muted"}, "Point at a token, tap it, or go along with the arrow keys for its numbers."),
    el("label", {class: "check"}, toggle, "Show the shares"));
}

/** The end of the scale of shades, with the text that it comes from. */
function scaleEnd(maximum, {maximum: most, nTokens}) {
  const [own, all] = [maximum, most].map((value) => formatNumber(value));
  const tokens = isUndefined(nTokens) ? "held-out text" : `${countText(nTokens)} held-out tokens`;
  const rest = isUndefined(most) || own === all ? "" : ` (${all} in all ${tokens})`;
  return `${own}, its largest in the text that snippets were read from${rest}`;
}

/** Show a token's numbers where it is pointed at or focused; arrow keys go along a snippet. */
function followTokens(box, view) {
  const tokenAt = (event) => event.target.closest?.(".token[role=option]");
  const show = (event) => showTip(box, view, tokenAt(event));
  box.addEventListener("pointerover", show);
  box.addEventListener("focusin", show);
  box.addEventListener("pointerleave", () => showTip(box, view, box.querySelector(".token:focus-visible")));
  box.addEventListener("focusout", () => showTip(box, view, null));
  box.addEventListener("keydown", (event) => {
    if (event.key === "Escape") showTip(box, view, null);
    const cell = tokenAt(event), next = cell && neighborToken(cell, event.key);
    if (!next) return;
    event.preventDefault();
    focusToken(cell, next);
  });
  box.addEventListener("click", (event) => {
    const cell = tokenAt(event);
    if (cell) focusToken(cell.parentElement.querySelector(".token[tabindex='0']"), cell);
  });
}

/** The token that a key leads to from another one; undefined for other keys and at the ends. */
function neighborToken(cell, key) {
  const cells = cell.parentElement.children;
  return {
    ArrowRight: cell.nextElementSibling, ArrowLeft: cell.previousElementSibling,
    Home: cells[0], End: cells[cells.length - 1],
  }[key];
}

/** Move a snippet's one tab stop, and the focus, to a token. */
function focusToken(from, to) {
  from?.setAttribute("tabindex", "-1");
  from?.setAttribute("aria-selected", "false");
  to.setAttribute("tabindex", "0");
  to.setAttribute("aria-selected", "true");
  to.focus();
}

/** Put the box with a token's numbers below it; nothing hides the box. */
function showTip(box, {tip, tokens, sources}, cell) {
  tip.hidden = !cell;
  if (!cell) return;
  const token = tokens.get(cell);
  const share = (name, s) =>
    el("span", null, sourceKey(s), "share of ", tokenText(name), ` ${signed(token.shares[s])}`);
  tip.replaceChildren(el("strong", null, tokenText(token.string)),
    el("span", {class: "muted"}, `token id ${token.id}`),
    el("span", null, `activation ${formatNumber(token.activation)}`), ...sources.map(share));
  const [outer, inner] = [box.getBoundingClientRect(), cell.getBoundingClientRect()];
  const most = outer.width - tip.offsetWidth;
  place(tip, {x: Math.max(0, Math.min(inner.left - outer.left, most)), y: inner.bottom - outer.top + 4});
}
