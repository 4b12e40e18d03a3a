"use strict";
// The latent browser: a table of all latents that is sorted, filtered and searched; its state is the URL.

const NARROW = matchMedia("(max-width: 40rem)");
const NARROW_COLUMNS = ["latent", "fires_on", "nrn_l2", "verdict"];
const TYPING_PAUSE_MS = 120;
const BADGES = {
  "model-specific": "badge-specific", shared: "badge-shared", rotated: "badge-changed",
  "re-scaled": "badge-changed", "re-used": "badge-changed", "artifact (shrinkage)": "badge-artifact",
  "artifact (decoupling)": "badge-artifact", unstable: "badge-open", undecided: "badge-open",
};
let browserView = null;

NARROW.addEventListener("change", () => {
  if (browserView?.main.isConnected) showList(browserView, browserView.list);
});

/** Fill the page with the latent browser in the state of the URL. */
async function renderBrowser(main, state) {
  const table = await loadTable();
  const view = {main, table, list: null, rows: null, shown: []};
  const changeList = (change, options) => applyChange(view, change, options);
  const changeTyped = () => changeList({q: readControls(view.controls).q, page: 1}, {replace: true});
  view.controls = makeControls(table, debounce(changeTyped, TYPING_PAUSE_MS),
    () => changeList({...readChosen(view), page: 1}));
  Object.assign(view, makeTableNodes(view), {pager: makePager(), status: el("p", {role: "status"})});
  const download = {type: "button", title: CSV_HELP, on: {click: () => downloadRows(view)}};
  main.append(el("h1", {}, "Latents"), el("p", {class: "lead"}, tableSentence(table)), view.controls.node,
    el("div", {class: "table-bar"}, view.status, view.pager.node, el("button", download, "Download CSV")),
    view.region);
  browserView = view;
  showList(view, readList(state.params, table));
}

/** Show the URL's state in the browser that stands on the page; false where there is none. */
function updateBrowser(main, state) {
  const view = browserView;
  if (view?.main !== main || !view.region.isConnected) return false;
  const before = view.list.page;
  const hadFocus = view.region.contains(document.activeElement);
  showList(view, readList(state.params, view.table));
  if (view.list.page !== before) view.region.scrollTop = 0;
  if (hadFocus && document.activeElement === document.body) view.region.focus({preventScroll: true});
  return true;
}

/** What the table holds, in one sentence. */
function tableSentence({n, nTokens}) {
  const measured = isUndefined(nTokens) ? "" : `, measured on ${countText(nTokens)} tokens`;
  return `${countText(n)} latents${measured}. A column's name sorts by it; a latent's number opens its page.`;
}

/** Change the list, show it and write it into the URL; nothing where the reader has left the page. */
function applyChange(view, change, {replace = false} = {}) {
  if (!view.region.isConnected) return;
  const list = {...view.list, ...change};
  const params = listParams(list);
  if (params.toString() === listParams(view.list).toString()) return;
  setParams(params, {replace});
  showList(view, list);
  view.region.scrollTop = 0;
}

/** What the controls change; the columns stay the default ones until a box of theirs is changed. */
function readChosen({controls, list, shown}) {
  const chosen = readControls(controls);
  const names = shown.map((column) => column.name).join("\n");
  return chosen.columns?.join("\n") === names ? {...chosen, columns: list.columns} : chosen;
}

/** Filter, sort and show a list; the time it took is left on the region as data-filter-ms. */
function showList(view, list) {
  const begin = performance.now();
  const {table} = view;
  const rows = listRows(table, list);
  const pages = Math.max(1, Math.ceil(rows.length / ROWS_PER_PAGE));
  Object.assign(view, {list: {...list, page: Math.min(list.page, pages)}, rows});
  showHeader(view, shownColumns(table, list));
  showRows(view);
  showPager(view.pager, view.list, pages);
  showCount(view);
  setControls(view.controls, view.list, view.shown, parseQuery(list.q, table).notes);
  view.region.dataset.filterMs = (performance.now() - begin).toFixed(1);
}

/** The columns to show: the list's own, or the default ones that are not empty, fewer on a narrow window. */
function shownColumns({columns, byName}, list) {
  const first = byName.get("latent");
  const isChosen = (column) => column === first || list.columns.includes(column.name);
  if (list.columns) return columns.filter(isChosen);
  const usual = NARROW.matches ? NARROW_COLUMNS.map((name) => byName.get(name)).filter(Boolean)
    : columns.filter((column) => column.shown || column === first);
  return usual.filter((column) => !column.isEmpty);
}

/** The region that scrolls, with an empty table in it. */
function makeTableNodes(view) {
  const sort = (event) => {
    const button = event.target.closest("button");
    if (button) sortBy(view, view.table.byName.get(button.dataset.column));
  };
  const [headRow, body] = [el("tr"), el("tbody")];
  const caption = el("caption", {class: "visually-hidden"});
  const table = el("table", {class: "latents"}, caption, el("thead", {on: {click: sort}}, headRow), body);
  const attrs = {class: "table-region", role: "region", "aria-label": "Table of latents", tabindex: 0};
  const region = el("div", attrs, table);
  return {region, caption, headRow, body};
}

/** Sort by a column; by the one sorted by already, the other way round. */
function sortBy(view, column) {
  const {sort, dir} = view.list;
  const turned = dir === "asc" ? "desc" : "asc";
  const next = sort === column.name ? turned : firstDirection(column);
  applyChange(view, {sort: column.name, dir: next, page: 1});
}

/** Show the columns' names; the buttons stay the same ones, and keep the focus, while the columns do. */
function showHeader(view, columns) {
  const {shown} = view;
  const isSame = columns.length === shown.length && columns.every((column, i) => column === shown[i]);
  if (!isSame) clear(view.headRow).append(...columns.map(headerCell));
  view.shown = columns;
  const {sort, dir} = view.list;
  const order = dir === "asc" ? "ascending" : "descending";
  view.caption.textContent = `Latents, sorted by ${plainToken(view.table.byName.get(sort).label)}, ${order}`;
  columns.forEach(({name}, i) => {
    const cell = view.headRow.children[i];
    if (name === sort) cell.setAttribute("aria-sort", order);
    else cell.removeAttribute("aria-sort");
  });
}

/** The head of one column: a button that sorts, described by what the column means. */
function headerCell(column) {
  return el("th", {scope: "col", class: cellClass(column)},
    el("button", {type: "button", "data-column": column.name, title: plainToken(column.help ?? "")},
      plainToken(column.label)));
}

/** The class of a column's cells. */
function cellClass(column) {
  if (column.name === "latent") return "cell-latent";
  return isNumeric(column) ? "cell-number" : `cell-${column.kind}`;
}

/** Show the rows of the list's page. */
function showRows(view) {
  const {rows, list, shown, table} = view;
  const from = (list.page - 1) * ROWS_PER_PAGE;
  const params = listParams(list);
  const nodes = Array.from(rows.subarray(from, from + ROWS_PER_PAGE), (row) =>
    el("tr", null, shown.map((column) => tableCell(column, row, table, params))));
  clear(view.body).append(...(nodes.length ? nodes : [emptyRow(shown.length)]));
}

/** One cell; the latent's number links to its page and takes the list along. */
function tableCell(column, row, {latents}, params) {
  if (column.name === "latent") {
    const link = el("a", {href: href("latent", latents[row], params)}, latents[row]);
    return el("th", {scope: "row", class: "cell-latent"}, link);
  }
  return el("td", {class: cellClass(column)}, cellContent(column, row));
}

/** What a cell shows: a number, a badge, tokens, or text with its escapes. */
function cellContent(column, row) {
  if (isNumeric(column)) return numberNode(column.data[row], column.kind);
  const text = textOf(column, row);
  if (text === "") return numberNode(null);
  if (column.name === "verdict") return verdictBadge(text);
  const node = column.hasPieces ? tokenPieces(text) : tokenText(text);
  node.title = plainPieces(text);
  return node;
}

/** A verdict as a small badge: always text, with a color and a frame of its kind. */
function verdictBadge(verdict) {
  const kind = Object.hasOwn(BADGES, verdict) ? BADGES[verdict] : "badge-open";
  return el("span", {class: `badge ${kind}`}, plainToken(verdict));
}

/** The row that says that nothing matches. */
function emptyRow(n) {
  return el("tr", {class: "empty-row"}, el("td", {colspan: n},
    "No latent matches. ", el("a", {href: href("latents")}, "Show all of them")));
}

/** Say how many latents match and which of them are shown. */
function showCount({status, rows, list, table}) {
  const from = (list.page - 1) * ROWS_PER_PAGE;
  const to = Math.min(from + ROWS_PER_PAGE, rows.length);
  const range = rows.length > ROWS_PER_PAGE ? `, ${countText(from + 1)} to ${countText(to)} shown` : "";
  status.textContent = rows.length ? `${countText(rows.length)} of ${countText(table.n)} latents${range}`
    : `None of ${countText(table.n)} latents matches`;
}

/** Links to the other pages of a list. */
function makePager() {
  const links = Object.fromEntries(["First", "Previous", "Next", "Last"].map((name) =>
    [name, el("a", {role: "link", tabindex: 0, id: `page-${name.toLowerCase()}`}, name)]));
  const place = el("span", {class: "muted"});
  const node = el("nav", {class: "pager", "aria-label": "Pages of the table"},
    links.First, links.Previous, place, links.Next, links.Last);
  return {node, links, place};
}

/** Point the pager's links at the pages around the shown one; those that lead nowhere keep the focus. */
function showPager({node, links, place}, list, pages) {
  const targets = {First: 1, Previous: list.page - 1, Next: list.page + 1, Last: pages};
  for (const [name, page] of Object.entries(targets)) {
    const leads = page !== list.page && page >= 1 && page <= pages;
    links[name].toggleAttribute("href", leads);
    if (leads) links[name].setAttribute("href", href("latents", null, listParams({...list, page})));
    links[name].setAttribute("aria-disabled", String(!leads));
  }
  place.textContent = `Page ${countText(list.page)} of ${countText(pages)}`;
  node.hidden = pages === 1;
}
