"use strict";
// The URL's fragment is the state: "#/", "#/latents?q=wait&sort=nrn_l2", "#/latent/350?...", "#/experiments".

const ROUTES = {overview: "", latents: "latents", latent: "latent", experiments: "experiments"};
let entryCount = 0;
let entryKey = null;

/** Where the URL stands: {page, id, params}; page is null for an address that is no page of the report. */
function readState() {
  const [path, query] = splitOnce(location.hash.replace(/^#\/?/, ""), "?");
  const [name, id, ...rest] = path.split("/");
  const page = Object.keys(ROUTES).find((key) => ROUTES[key] === name) ?? null;
  const isWhole = rest.length === 0 && (page === "latent" ? /^\d{1,9}$/.test(id ?? "") : id === undefined);
  return {page: isWhole ? page : null, id: isWhole && page === "latent" ? Number(id) : null,
    params: new URLSearchParams(query)};
}

/** A string before and after the first separator. */
function splitOnce(string, separator) {
  const at = string.indexOf(separator);
  return at < 0 ? [string, ""] : [string.slice(0, at), string.slice(at + separator.length)];
}

/** The address of a page: href("latent", 350, params) with a URLSearchParams or a mapping. */
function href(page, id = null, params = null) {
  const query = new URLSearchParams(params ?? {}).toString();
  return "#/" + ROUTES[page] + (id === null ? "" : `/${id}`) + (query ? "?" + query : "");
}

/** Write this page's params into the URL, as a new entry of the history or in place of it. */
function setParams(params, {replace = false} = {}) {
  const {page, id} = readState();
  if (page === null) return;
  if (!replace) entryKey = freshKey();
  history[replace ? "replaceState" : "pushState"]({key: entryKey}, "", href(page, id, params));
}

/** A name for an entry of the history that no other entry of this window has. */
function freshKey() {
  return `${Math.round(performance.timeOrigin)}-${entryCount++}`;
}

/** Note the history's entry: its key, the key of the one before, and whether this is a return to it. */
function enterEntry() {
  const before = entryKey;
  const known = history.state?.key ?? null;
  entryKey = known ?? freshKey();
  if (known === null) history.replaceState({key: entryKey}, "");
  return {before, key: entryKey, isReturn: known !== null && before !== null};
}
