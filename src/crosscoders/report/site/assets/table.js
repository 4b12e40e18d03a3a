"use strict";
// The table of latents without its view: columns, words and comparisons, sorting, a list's state in the URL.
// A list's params: q, verdict, category, fires=1, sort=COLUMN, dir=asc|desc, page, and column=NAME for each.

const ROWS_PER_PAGE = 100;
const NO_CHOICE = "(none)";
const WORD_COLUMNS = ["fires_on", "annotation", "verdict", "category"];
const ALIASES = {
  nrn: "nrn_l2", cos: "decoder_cosine", cosine: "decoder_cosine", freq: "frequency", mean: "mean_activation",
  max: "max_activation", nu_e: "nu_error", nu_r: "nu_reconstruction", rho: "ratio", score: "category_score",
};
const NUMBER = /(undefined|[-+\u2212]?(?:\d+\.?\d*|\.\d+)(?:e[-+\u2212]?\d+)?)/;
const COMPARISON = new RegExp(`([a-z_][\\w./-]*)\\s*(>=|<=|!=|=|>|<)\\s*${NUMBER.source}(?=\\s|$)`, "gi");
const PIECE = /"([^"]*)"?|(\S+)/g;
const COMPARE = {
  ">": (a, b) => a > b, "<": (a, b) => a < b, ">=": (a, b) => a >= b, "<=": (a, b) => a <= b,
  "=": (a, b) => a === b || (Number.isNaN(a) && Number.isNaN(b)),
  "!=": (a, b) => a !== b && !(Number.isNaN(a) && Number.isNaN(b)),
};
let loadingTable = null;

/** The table of all latents, read once: {n, nTokens, hasText, hasPages, columns, byName, ...}. */
function loadTable() {
  loadingTable ??= loadData("table").then(makeTable);
  loadingTable.catch(() => { loadingTable = null; });
  return loadingTable;
}

/** A table from its data file: what the columns hold, and what a search looks through. */
function makeTable({json, arrays}) {
  const columns = json.columns.map((column) => makeColumn(column, arrays));
  const byName = new Map(columns.map((column) => [column.name, column]));
  const latents = byName.get("latent").data;
  const n = latents.length;
  const words = rowWords(columns, n);
  const has = {nTokens: json.n_tokens, hasText: json.has_text, hasPages: json.has_pages};
  return {n, ...has, columns, byName, latents, words, orders: new Map()};
}

/** A column with its values as `data`, one per row, and whether it is empty or holds several tokens each. */
function makeColumn(column, arrays) {
  const isText = column.kind === "text";
  const data = isText ? column.values : arrays[column.name].data;
  const hasPieces = isText && data.some((text) => text.includes(PIECE_END));
  return {...column, data, hasPieces, isEmpty: data.every(missingTest(column))};
}

/** Whether a column holds numbers. */
function isNumeric({kind}) {
  return kind === "number" || kind === "integer";
}

/** A test of a column's values for being undefined. */
function missingTest({kind}) {
  return {text: (value) => value === "", choice: (value) => value === 255}[kind] ?? Number.isNaN;
}

/** What the search box looks through: one lower-case string per row, with escapes as they are shown. */
function rowWords(columns, n) {
  const searched = columns.filter(({name, kind}) => kind === "text" || WORD_COLUMNS.includes(name));
  const words = new Array(n).fill("");
  for (const column of searched) {
    for (let row = 0; row < n; row++) words[row] += "\n" + runningText(textOf(column, row));
  }
  return words.map((text) => text.toLowerCase());
}

/** The text of a cell of a text or choice column; "" where undefined. */
function textOf(column, row) {
  if (column.kind === "choice") return column.choices[column.data[row]] ?? "";
  return column.data[row];
}

/** A search as {words, comparisons, notes}: notes say which comparisons could not be understood. */
function parseQuery(text, table) {
  const comparisons = [];
  const notes = [];
  const rest = text.replace(COMPARISON, (whole, name, sign, value) => {
    const {column, note} = findNumericColumn(name.toLowerCase(), table);
    if (note) notes.push(note);
    if (!column) return note ? " " : whole;
    comparisons.push({column, holds: COMPARE[sign], value: Number(value.replaceAll("\u2212", "-"))});
    return " ";
  });
  const pieces = [...rest.matchAll(PIECE)].map((piece) => (piece[1] ?? piece[2]).toLowerCase());
  return {words: pieces.filter(Boolean), comparisons, notes};
}

/** The numeric column that a name, an alias or an unmistakable beginning stands for, or a note why none. */
function findNumericColumn(name, {columns}) {
  const numeric = columns.filter(isNumeric);
  const wanted = Object.hasOwn(ALIASES, name) ? ALIASES[name] : name;
  const exact = numeric.find((column) => column.name.toLowerCase() === wanted);
  if (exact) return {column: exact};
  const begun = numeric.filter((column) => column.name.toLowerCase().startsWith(wanted));
  if (begun.length === 1) return {column: begun[0]};
  const names = begun.map((column) => column.name).join(", ");
  return {note: begun.length ? `"${name}" could be ${names}`
    : `no numeric column is called "${name}" (in quotes it is searched for as text)`};
}

/** The rows of an order that pass a list's filters, as a Uint32Array. */
function filterRows(table, order, list) {
  const {words, comparisons} = parseQuery(list.q, table);
  const tests = [...comparisons.map(comparisonTest), ...choiceTests(table, list)];
  if (list.fires) tests.push(firesTest(table));
  tests.push(...words.map((word) => wordTest(table, word)));
  const rows = new Uint32Array(order.length);
  let kept = 0;
  for (const row of order) {
    if (tests.every((passes) => passes(row))) rows[kept++] = row;
  }
  return rows.subarray(0, kept);
}

/** A test of rows by one comparison; an undefined value passes only "=undefined" and "!=". */
function comparisonTest({column: {data}, holds, value}) {
  const wanted = Math.fround(value);
  return (row) => holds(data[row], wanted);
}

/** Tests of rows by the chosen verdict and category. */
function choiceTests(table, list) {
  const chosen = ["verdict", "category"].filter((name) => list[name] && table.byName.has(name));
  return chosen.map((name) => {
    const {data, choices} = table.byName.get(name);
    const wanted = list[name] === NO_CHOICE ? 255 : choices.indexOf(list[name]);
    return (row) => data[row] === wanted;
  });
}

/** A test of rows by one word: in the row's text, or its latent's number. */
function wordTest({latents, words}, word) {
  const number = /^\d+$/.test(word) ? Number(word) : -1;
  return (row) => words[row].includes(word) || latents[row] === number;
}

/** A test of rows for having fired at all, by the column that says so. */
function firesTest({byName}) {
  const column = firingColumn(byName);
  return column ? (row) => column.data[row] > 0 : () => true;
}

/** The column that says whether a latent fired; undefined where the table has none. */
function firingColumn(byName) {
  return ["frequency", "max_activation", "mean_activation"].map((name) => byName.get(name)).find(Boolean);
}

/** All rows in the order of one column, undefined last, ties by latent; the latest orders are kept. */
function orderRows(table, name, direction) {
  const key = `${direction} ${name}`;
  if (!table.orders.has(key)) {
    if (table.orders.size >= 8) table.orders.delete(table.orders.keys().next().value);
    table.orders.set(key, sortRows(table, table.byName.get(name), direction === "desc" ? -1 : 1));
  }
  return table.orders.get(key);
}

/** Sort all rows by one column. */
function sortRows({n, latents}, column, sign) {
  const keys = column.kind === "text" ? column.data.map((text) => text.toLowerCase()) : column.data;
  const isMissing = missingTest(column);
  const byLatent = (a, b) => latents[a] - latents[b];
  const rows = Array.from({length: n}, (_, row) => row);
  const present = rows.filter((row) => !isMissing(keys[row]));
  const missing = rows.filter((row) => isMissing(keys[row]));
  present.sort((a, b) => (keys[a] < keys[b] ? -sign : keys[a] > keys[b] ? sign : byLatent(a, b)));
  return Uint32Array.from([...present, ...missing.sort(byLatent)]);
}

/** A list's state from the URL's params; whatever the table does not have falls back to the plain list. */
function readList(params, table) {
  const sort = table.byName.has(params.get("sort")) ? params.get("sort") : "latent";
  const asked = params.getAll("column").filter((name) => table.byName.has(name));
  return {
    q: params.get("q") ?? "", verdict: params.get("verdict") ?? "", category: params.get("category") ?? "",
    fires: params.get("fires") === "1", sort, dir: readDirection(params, table.byName.get(sort)),
    columns: asked.length ? asked : null, page: Math.max(1, Math.floor(Number(params.get("page"))) || 1),
  };
}

/** The direction in the URL, or else the natural one of a column. */
function readDirection(params, column) {
  const dir = params.get("dir");
  return dir === "asc" || dir === "desc" ? dir : firstDirection(column);
}

/** The direction in which a column is sorted first: numbers from the largest, all else from the start. */
function firstDirection(column) {
  return column.name !== "latent" && isNumeric(column) ? "desc" : "asc";
}

/** A list's state as params for the URL; what is as in the plain list is left out. */
function listParams(list) {
  const params = new URLSearchParams();
  for (const name of ["q", "verdict", "category"]) if (list[name]) params.set(name, list[name]);
  if (list.fires) params.set("fires", "1");
  if (list.sort !== "latent" || list.dir !== "asc") {
    params.set("sort", list.sort);
    params.set("dir", list.dir);
  }
  const others = list.columns?.filter((name) => name !== "latent") ?? [];
  for (const name of list.columns && others.length === 0 ? ["latent"] : others) params.append("column", name);
  if (list.page > 1) params.set("page", list.page);
  return params;
}

/** The rows of a list in its order. */
function listRows(table, list) {
  return filterRows(table, orderRows(table, list.sort, list.dir), list);
}

/** Where a latent stands in the list of some params: {place, count, previous, next}; place 0: not in it. */
async function listNeighbors(params, latent) {
  const table = await loadTable();
  const rows = listRows(table, readList(params, table));
  const at = rows.findIndex((row) => table.latents[row] === latent);
  const latentAt = (i) => (at >= 0 && i >= 0 && i < rows.length ? table.latents[rows[i]] : null);
  return {place: at + 1, count: rows.length, previous: latentAt(at - 1), next: latentAt(at + 1)};
}
