"use strict";
// The router: one page of the report for each address, and the frame around it.

const PAGES = {
  overview: {render: "renderOverview", file: "overview"},
  latents: {render: "renderBrowser", file: "browser"},
  latent: {render: "renderLatent", file: "latent"},
  experiments: {render: "renderExperiments", file: "experiments"},
};
const NEXT_IS_A_LATENT = ["overview", "latents"];
const leftPlaces = new Map();
let shownPage = null;
let isReadAhead = false;
let reportTitle = "Crosscoder report";
window.reportReady = false;

/** Show the page of the URL; the one before is left in place where it can change into it. */
async function navigate() {
  window.reportReady = false;
  const entry = enterEntry();
  leavePlace(entry.before);
  const state = readState();
  const isUpdate = shownPage?.page === "latents" && state.page === "latents";
  if (!isUpdate || !updateBrowser(shownPage.node, state)) {
    const page = {page: state.page, node: el("div", {class: "page"})};
    const isFirst = shownPage === null;
    shownPage = page;
    markCurrent(state.page);
    await fillPage(page, state);
    if (shownPage !== page) return;
    if (!isFirst) arrive(page.node, entry);
  }
  nameWindow(shownPage.node);
  window.reportReady = true;
  if (NEXT_IS_A_LATENT.includes(shownPage.page)) readAhead();
}

/** Once the page is idle, read the text of snippets: the first latent then opens as fast as the next ones. */
function readAhead() {
  if (isReadAhead) return;
  isReadAhead = true;
  const whenIdle = window.requestIdleCallback ?? setTimeout;
  whenIdle(async () => {
    try {
      if ((await loadTable()).hasText) await loadData("text");
    } catch {
      // The page that needs the text says what is wrong with it.
    }
  });
}

/** Put a new page in place of the old one and fill it; what goes wrong is said in it. */
async function fillPage({page, node}, state) {
  clear(document.getElementById("main")).append(node);
  try {
    if (page === null) node.append(...unknownPage());
    else await renderOf(page)(node, state);
  } catch (error) {
    console.error(error);
    if (!node.querySelector("h1")) node.append(el("h1", {}, "This page could not be shown"));
    node.append(problemBox(plainToken(String(error.message))));
  }
}

/** The function that fills a page, from a script of its own. */
function renderOf(page) {
  const {render, file} = PAGES[page];
  if (typeof window[render] === "function") return window[render];
  throw new Error(`app/${file}.js is missing; the report folder is incomplete`);
}

/** What an address shows that is no page of the report. */
function unknownPage() {
  const links = [["overview", "Overview"], ["latents", "Latents"], ["experiments", "Experiments"]];
  return [el("h1", {}, "No such page"), el("p", {}, "This report has no page at this address. It has these:"),
    el("ul", {}, links.map(([page, name]) => el("li", {}, el("a", {href: href(page)}, name))))];
}

/** Remember where the reader was on the page that is being left: the scroll and the focused control. */
function leavePlace(key) {
  if (key === null) return;
  const active = document.activeElement;
  leftPlaces.set(key, {scroll: window.scrollY, id: active.id, href: active.getAttribute("href")});
}

/** Take the reader to the head of a new page, or to where they were on one that they come back to. */
function arrive(node, {key, isReturn}) {
  const place = isReturn ? leftPlaces.get(key) : null;
  const links = place?.href ? [...node.querySelectorAll("a[href]")] : [];
  const link = links.find((a) => a.getAttribute("href") === place.href);
  const kept = (place?.id && document.getElementById(place.id)) || link || node.querySelector("h1");
  if (kept?.tagName === "H1") kept.setAttribute("tabindex", "-1");
  kept?.focus();
  window.scrollTo(0, place?.scroll ?? 0);
}

/** Mark the page's link in the navigation. */
function markCurrent(page) {
  for (const link of document.querySelectorAll("nav a[data-page]")) {
    if (link.dataset.page === page) link.setAttribute("aria-current", "page");
    else if (link.dataset.page === "latents" && page === "latent") link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

/** Name the window after the page and the report. */
function nameWindow(node) {
  const heading = node.querySelector("h1")?.textContent;
  document.title = heading && heading !== reportTitle ? `${heading} - ${reportTitle}` : reportTitle;
}

/** Write the report's title and the library's version into the frame. */
async function fillFrame() {
  try {
    const {title, library_version: version} = (await loadData("overview")).json;
    reportTitle = plainToken(title || reportTitle);
    document.getElementById("site-title").textContent = reportTitle;
    if (version) document.getElementById("written-by").textContent = `Written by crosscoders ${version}.`;
  } catch {
    // The overview says what is missing; the other pages do without the title.
  }
}

/** Open the latent whose number was typed, or say why not. */
async function jumpToLatent(event) {
  event.preventDefault();
  const input = document.getElementById("jump-to");
  const problem = await jumpProblem(input.value.trim());
  document.getElementById("jump-problem").textContent = problem;
  input.setAttribute("aria-invalid", String(problem !== ""));
  if (problem) return;
  location.hash = href("latent", Number(input.value));
  input.value = "";
}

/** Why a text is no latent of this report; "" where it is one. */
async function jumpProblem(text) {
  try {
    const {n} = await loadTable();
    if (/^\d+$/.test(text) && Number(text) < n) return "";
    return `A number from 0 to ${countText(n - 1)}`;
  } catch (error) {
    return error.message;
  }
}

/** Let the theme button go through the themes. */
function startTheme() {
  const button = document.getElementById("theme");
  const label = () => { button.textContent = `Theme: ${chosenTheme}`; };
  button.addEventListener("click", () => {
    chooseTheme(THEMES[(THEMES.indexOf(chosenTheme) + 1) % THEMES.length]);
    label();
  });
  label();
}

/** Start the report. */
async function start() {
  history.scrollRestoration = "manual";
  startTheme();
  document.getElementById("jump").addEventListener("submit", jumpToLatent);
  document.getElementById("skip").addEventListener("click", (event) => {
    event.preventDefault();
    document.getElementById("main").focus();
  });
  window.addEventListener("hashchange", navigate);
  await fillFrame();
  await navigate();
}

start();
