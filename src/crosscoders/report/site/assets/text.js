"use strict";
// Token text is data. Whatever would not show, or would show something else, is written as an escape.

// Control, format, unassigned, private and lone surrogate code points; spaces other than U+0020; line and
// paragraph separators; letters that show nothing. A token may be any piece of text, so all of them occur.
const UNSHOWABLE = /[\p{C}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}\u2800]|(?! )\p{Zs}/gu;
const PIECE_END = "\u001f"; // between the tokens of a text that holds several
const SHORT_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r"};

/** The escape of one code point: \n, \xNN for a byte that is no UTF-8, \u202e or \u{e0001} for others. */
function escapeOf(character) {
  if (Object.hasOwn(SHORT_ESCAPES, character)) return SHORT_ESCAPES[character];
  const code = character.codePointAt(0);
  if (code >= 0xdc80 && code <= 0xdcff) return "\\x" + (code - 0xdc00).toString(16);
  const digits = code.toString(16);
  return code > 0xffff ? `\\u{${digits}}` : "\\u" + digits.padStart(4, "0");
}

/** What an escape stands for, for those who point at it. */
function escapeTitle(character) {
  const code = character.codePointAt(0);
  if (code >= 0xdc80 && code <= 0xdcff) return "a byte that is not valid UTF-8 here";
  return "U+" + code.toString(16).toUpperCase().padStart(4, "0");
}

/** Text as one isolated <bdi>: escapes in <span class="esc">, plain spaces in <span class="sp">. */
function tokenText(string) {
  const node = el("bdi", {class: "token-text"});
  let from = 0;
  for (const match of string.matchAll(UNSHOWABLE)) {
    appendShown(node, string.slice(from, match.index));
    const kind = /^[\udc80-\udcff]$/.test(match[0]) ? "esc byte" : "esc";
    node.append(el("span", {class: kind, title: escapeTitle(match[0])}, escapeOf(match[0])));
    from = match.index + match[0].length;
  }
  return appendShown(node, string.slice(from));
}

/** Append text that shows as it is; a leading and a trailing space get a mark of their own (.sp). */
function appendShown(node, string) {
  for (const part of string.split(/(^ +| +$)/)) {
    if (part === "") continue;
    if (part.trim() === "") for (const space of part) node.append(el("span", {class: "sp"}, space));
    else node.append(part);
  }
  return node;
}

/** Several tokens in one text, each a chip of its own. */
function tokenPieces(string) {
  const chips = string.split(PIECE_END).map((piece) => el("span", {class: "piece"}, tokenText(piece)));
  return el("span", {class: "pieces"}, chips.flatMap((chip, i) => (i ? [" ", chip] : [chip])));
}

/** Several tokens in one text, as plain characters with bars between. */
function plainPieces(string) {
  return string.split(PIECE_END).map(plainToken).join(" | ");
}

/** Several tokens in one text as a search reads them: one after the other, as in running text. */
function runningText(string) {
  return plainToken(string.replace(/\u001f(?! )/g, " ").replaceAll(PIECE_END, ""));
}

/** Text with its escapes as plain characters, for titles, labels and files. */
function plainToken(string) {
  return string.replace(UNSHOWABLE, escapeOf);
}
