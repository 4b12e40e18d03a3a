"use strict";
// The experiments that were run on this crosscoder: what the paper reports, what shows here, with figures.

/** Fill the page of experiments. */
async function renderExperiments(main, state) {
  const {json} = await loadData("experiments");
  const experiments = json.experiments ?? [];
  append(main, [el("h1", null, "Experiments"),
    experiments.length ? contentsList(main, experiments) : noExperiments(json.none),
    experiments.map(experimentSection),
    json.notes?.length > 0 && section("notes", "Notes", sentenceList(json.notes))]);
  const asked = state.params.get("show");
  if (asked) requestAnimationFrame(() => showExperiment(main, asked));
}

/** That no experiment was run, and how to run one. */
function noExperiments(sentence) {
  return [el("p", null, tokenText(sentence ?? "No experiment was run on this crosscoder.")),
    commandLine("crosscoders experiment norms RUN"),
    el("p", {class: "muted"}, "Then write the report again.")];
}

/** The experiments as links to their places on this page; the URL keeps which one was asked for. */
function contentsList(main, experiments) {
  const follow = (name) => (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    setParams({show: name});
    showExperiment(main, name);
  };
  const entry = ({name, title}) => {
    const address = href("experiments", null, {show: name});
    return el("li", null, el("a", {href: address, on: {click: follow(name)}}, tokenText(title ?? name)));
  };
  return el("nav", {class: "contents", "aria-label": "Experiments on this page"},
    el("ol", null, experiments.map(entry)));
}

/** Take the reader to one experiment. */
function showExperiment(main, name) {
  const wanted = [...main.querySelectorAll(".experiment")].find((node) => node.dataset.name === name);
  wanted?.scrollIntoView();
  wanted?.querySelector("h2").focus({preventScroll: true});
}

/** One experiment. */
function experimentSection(one, at) {
  const id = `experiment-${at}`;
  const claims = [["The paper reports", one.claim && tokenText(one.claim)],
    ["Here", one.verdict && tokenText(one.verdict)]];
  return el("section", {class: "experiment", "data-name": one.name, "aria-labelledby": id},
    el("h2", {id, tabindex: "-1"}, tokenText(one.title ?? one.name)), factList(claims, "claims"),
    figureList(one.figures ?? []), linesDetails(one), tableList(one.tables ?? []), madeFrom(one.made_from));
}

/** The figures, on white, loaded when they come into view. */
function figureList(figures) {
  if (!figures.length) return null;
  const kind = ({width, height}) => (width > 2 * height ? "paper-figure is-wide" : "paper-figure");
  const entry = ({file, alt, width, height}) => el("figure", {class: kind({width, height})},
    el("img", {src: file, alt: plainToken(alt ?? ""), loading: "lazy", decoding: "async", width, height}),
    el("figcaption", null, tokenText(alt ?? "")));
  return el("div", {class: "figures"}, figures.map(entry));
}

/** The numbers as they were printed. */
function linesDetails({lines, title}) {
  if (!lines?.length) return null;
  const text = el("pre", {class: "lines"}, lines.map((line) => [tokenText(line), "\n"]));
  return el("details", {class: "more"}, el("summary", null, "The numbers as text"),
    scrollBox(`${plainToken(title ?? "")}: the numbers`, text));
}

/** The tables: links where they came along, names otherwise. */
function tableList(tables) {
  if (!tables.length) return null;
  const entry = ({name, href: place}, i) => [i ? ", " : "",
    place ? el("a", {href: place}, tokenText(name)) : el("code", null, tokenText(name))];
  return el("p", {class: "muted small"}, "Tables in the experiment's own folder: ", tables.map(entry));
}

/** What an experiment was set to; settings that are empty say nothing. */
function madeFrom(made) {
  const isEmpty = (value) => value === null || value === "" ||
    (typeof value === "object" && Object.keys(value).length === 0);
  const options = Object.entries(made?.options ?? {}).filter(([, value]) => !isEmpty(value));
  if (!options.length) return null;
  const text = ([name, value]) => `${name} = ${typeof value === "string" ? value : JSON.stringify(value)}`;
  return el("p", {class: "muted small"}, "Options: ", tokenText(options.map(text).join(", ")));
}
