"use strict";
// The overview: what was compared, and what was found beside what chance leaves and what could be found.

const NRN_BINS = 40;
const NRN_EDGES = [0.1, 0.9];
const NRN_HEIGHT = 340;
const MAIN_CURVES = ["loss", "ev", "l0", "dead_fraction"];

/** Fill the overview page. */
async function renderOverview(main) {
  const {json} = await loadData("overview");
  const found = {...json, ...(json.verdicts ?? {}), verdicts: json.verdicts};
  append(main, [
    el("header", {class: "page-head"},
      el("h1", null, tokenText(json.title ?? "Crosscoder report")), modelList(json.models ?? [])),
    found.counts && survivorLine(found), findings(json),
    section("verdicts", "Verdicts", verdictParts(found)), interestSection(json),
    reconstructionSection(json), spliceSection(json), trainingSection(json),
    await normsSection(json), causalSection(found), settingsSection(json), notesSection(json),
  ]);
}

/** The models, one entry each: key and name of its source, path, hook and width. */
function modelList(models) {
  const entry = ({name, path, revision, hook_name: hook, d_model: width}, i) => el("li", null,
    sourceKey(i), el("strong", null, tokenText(name)), " ",
    el("span", {class: "mono"}, tokenText(String(path ?? "")), revision && ["@", tokenText(revision)]),
    el("span", {class: "muted"}, hook && [" at ", tokenText(hook)], width && `, width ${countText(width)}`));
  return el("ul", {class: "models"}, models.map(entry));
}

/** What was found and what could not have been found: grouped where the report groups it. */
function findings({paragraph, paragraphs}) {
  if (paragraphs?.length) return el("div", {class: "findings"}, paragraphs.map(findingGroup));
  if (!paragraph?.length) return null;
  const kind = paragraph.length > 6 ? "finding is-long" : "finding";
  return el("p", {class: kind}, paragraph.map((sentence, i) => [i ? " " : "", tokenText(sentence)]));
}

/** One group of sentences behind its heading; null where there are none. */
function findingGroup({heading, sentences}) {
  if (!sentences.length) return null;
  return el("p", null, el("strong", null, tokenText(heading), "."),
    sentences.map((sentence) => [" ", tokenText(sentence)]));
}

/** Latents that are worth a look, with why. */
function interestSection({latents_of_interest: chosen}) {
  if (!chosen?.length) return null;
  const entry = ({latent, why}) =>
    el("li", null, latentLink(latent, null, `Latent ${latent}`), ": ", tokenText(why ?? ""));
  return section("interest", "Latents worth a look", el("ul", {class: "plain-list"}, chosen.map(entry)));
}

/** Explained variance per kind of text, source and of the difference, beside a table of token means. */
function reconstructionSection({reconstruction, sources}) {
  const title = "How well the crosscoder reconstructs";
  if (!reconstruction?.length) {
    return section("reconstruction", title, absent("The reconstruction was not evaluated."));
  }
  const pair = (share, means) => [formatNumber(share), el("span", {class: "muted"}, formatNumber(means))];
  const row = (one) => [tokenText(one.text), countText(one.n_tokens), formatNumber(one.l0),
    ...sources.flatMap((name) => pair(one.explained_variance?.[name], one.token_means?.[name])),
    ...pair(one.difference, one.token_means_difference)];
  const groups = [...sources.map((name) => [tokenText(name), 2]), ["difference", 2]];
  const headers = ["held-out text", "tokens", "L0", ...groups.flatMap(() => ["EV", "by token means"])];
  return section("reconstruction", title,
    el("p", null, "Explained variance (EV) on held-out text: 1 is perfect, 0 is no better than the mean. ",
      "What matters most for a comparison is the difference between the models. Beside each stands what a ",
      "table of one mean per token would explain. L0 is the mean number of active latents per token."),
    numbersTable(headers, reconstruction.map(row),
      {caption: "Explained variance by kind of text", head: groupHead([["", 3], ...groups])}));
}

/** KL and recovered cross entropy when the reconstruction is spliced into the models. */
function spliceSection({splice, sources}) {
  if (!splice?.length) return null;
  const texts = [...new Set(splice.map(({text}) => text))];
  const of = (text, source) => splice.find((one) => one.text === text && one.source === source);
  const row = (text) => [tokenText(text), ...sources.flatMap((source) =>
    ["kl", "ce_recovered"].map((name) => formatNumber(of(text, source)?.[name])))];
  const groups = sources.map((name) => [tokenText(name), 2]);
  const headers = ["held-out text", ...groups.flatMap(() => ["KL", "CE recovered"])];
  return section("splice", "What the models write with the reconstruction in place",
    el("p", null, "The reconstruction replaces the activation in the model. KL is in nats per token, 0 at ",
      "best. CE recovered is the share of the cross entropy that zeros in its place would lose, 1 at best."),
    numbersTable(headers, texts.map(row),
      {caption: "Reconstruction spliced into the models", head: groupHead([["", 1], ...groups])}));
}

/** Training curves, one chart per kind of quantity; the less telling ones are closed at first. */
function trainingSection({training, sources}) {
  if (!training?.step?.length) {
    return section("training", "Training", absent("This run has no training curves."));
  }
  const steps = {label: "step", values: training.step};
  const toned = (one) => ({...one, label: plainToken(one.label), tone: sourceTone(one.name, sources)});
  const draw = ({title, series, log}) => lineChart(
    {title, unit: log && "logarithmic", log, x: steps, series: series.map(toned)});
  const charts = trainingCharts(training.series);
  const isMain = ({name}) => MAIN_CURVES.includes(name);
  const others = charts.filter((chart) => !isMain(chart));
  const grid = (group) => el("div", {class: "chart-grid"}, group.map(draw));
  const place = ({name}) => MAIN_CURVES.indexOf(name);
  const shown = charts.filter(isMain).sort((a, b) => place(a) - place(b));
  return section("training", "Training", grid(shown),
    others.length > 0 && lazyDetails("Further curves", () => grid(others)));
}

/** The series of the training log by chart: losses together, explained variances together, others alone. */
function trainingCharts(series) {
  const charts = Map.groupBy(series, ({name}) => splitOnce(name, "/")[0]);
  const titles = {loss: "Loss", ev: "Explained variance"};
  return [...charts].map(([name, group]) => ({
    name, series: group, log: name === "loss" || name === "grad_norm",
    title: titles[name] ?? plainToken(group[0].label),
  }));
}

/** The color class of a series that belongs to a source; undefined for others. */
function sourceTone(name, sources) {
  const at = sources.indexOf(splitOnce(name, "/")[1]);
  return at >= 0 ? `source-${at % 4}` : undefined;
}

/** Decoder norms: the histogram of NRN and cosine against NRN, from the table of latents. */
async function normsSection({screen, sources}) {
  const table = await loadTable();
  const charts = table.byName.has("nrn_l2")
    ? el("div", {class: "chart-grid"}, nrnHistogram(table, sources), nrnScatter(table, sources))
    : absent("NRN compares two sources; the table of this crosscoder has none.");
  return section("norms", "Decoder norms: a screen", screenSentence(screen, sources), charts);
}

/** What the norm screen says, and that it is only that. */
function screenSentence(screen, sources) {
  if (!screen) return null;
  const {n_fire: n, n_never: never, n_one_sided: sided, n_tokens: tokens} = screen;
  return el("p", null, `Of ${countText(n + never)} latents ${countText(n)} fire on ${countText(tokens)} `,
    "held-out tokens", isUndefined(sided) ? "" : `; ${sided || "none"} of these lie beyond NRN 0.1 or 0.9`,
    ". NRN is the second source's share of the two decoder norms: 0 is ", tokenText(sources[0]),
    " only, 1 is ", tokenText(sources[1] ?? "the second"), " only. Norms alone take artifacts for ",
    "discoveries: read them with the verdicts above.");
}

/** The horizontal axis of both charts of norms. */
function nrnAxis([first, second = "second"]) {
  return {low: 0, high: 1, label: `NRN: 0 = ${plainToken(first)} only, 1 = ${plainToken(second)} only`};
}

/** How the latents that fire spread over NRN. */
function nrnHistogram(table, sources) {
  const {data} = table.byName.get("nrn_l2"), fires = firesTest(table);
  const counts = new Array(NRN_BINS).fill(0);
  for (let row = 0; row < table.n; row++) {
    if (!Number.isFinite(data[row]) || !fires(row)) continue;
    counts[Math.min(NRN_BINS - 1, Math.floor(data[row] * NRN_BINS))]++;
  }
  const [low, middle, high] = countsByScreen(counts);
  return histogramChart({
    title: "NRN of the latents that fire", counts, x: nrnAxis(sources), height: NRN_HEIGHT,
    label: `NRN of the latents that fire: ${low} below 0.1, ${middle} between, ${high} above 0.9.`,
    marks: NRN_EDGES.map((at) => ({at, text: String(at)})),
  });
}

/** Counts below, between and above the edges of the norm screen. */
function countsByScreen(counts) {
  const [from, to] = NRN_EDGES.map((edge) => Math.round(edge * NRN_BINS));
  const parts = [counts.slice(0, from), counts.slice(from, to), counts.slice(to)];
  return parts.map((part) => countText(part.reduce((a, b) => a + b, 0)));
}

/** Groups of the scatter: one per verdict, or all latents where there are no verdicts. */
function scatterGroups(table) {
  const verdict = table.byName.get("verdict");
  const plain = {label: verdict ? "no verdict" : "latents", tone: "tone-muted", shape: "dot", size: 3};
  if (!verdict) return {groups: [plain], group: () => 0};
  const known = Object.keys(VERDICT_MARKS).filter((name) => verdict.choices.includes(name));
  const names = [...verdict.choices.filter((name) => !known.includes(name)), ...known];
  const groups = names.map((name) => ({...plain, ...VERDICT_MARKS[name], label: plainToken(name),
    href: href("latents", null, {verdict: name})}));
  const at = verdict.choices.map((name) => names.indexOf(name) + 1);
  return {groups: [plain, ...groups], group: (row) => at[verdict.data[row]] ?? 0};
}

/** Cosine of the two decoder rows against NRN, a point per latent that fires. */
function nrnScatter(table, sources) {
  const nrn = table.byName.get("nrn_l2"), cosine = table.byName.get("decoder_cosine");
  if (!cosine) return absent("The decoder rows have no cosine: the sources differ in width.");
  const {groups, group} = scatterGroups(table), fires = firesTest(table);
  const byNrn = href("latents", null, {sort: "nrn_l2", dir: "desc", fires: "1"});
  return scatterChart({
    title: "Decoder cosine against NRN", groups, height: NRN_HEIGHT,
    group: (row) => (fires(row) ? group(row) : -1),
    open: (row) => { location.hash = href("latent", table.latents[row]); },
    describe: (row) => pointLines(table, row, groups[group(row)].label),
    x: {...nrnAxis(sources), values: nrn.data},
    y: {low: Math.min(0, extent([cosine.data])?.low ?? 0), high: 1, values: cosine.data, label: "cosine"},
    label: `Decoder cosine against NRN, a point per latent. Mean NRN ${formatNumber(meanOf(nrn.data))}, ` +
      `mean cosine ${formatNumber(meanOf(cosine.data))}.`,
    note: [el("a", {href: byNrn}, "The same latents as a table"),
      ", sorted by NRN. Point at a latent to name it; click to open it."],
  });
}

/** What the box at a point says. */
function pointLines({byName, latents}, row, verdict) {
  const value = (name) => formatNumber(byName.get(name).data[row]);
  return [el("strong", null, `Latent ${latents[row]}`), el("span", null, verdict),
    el("span", null, `NRN ${value("nrn_l2")}, cosine ${value("decoder_cosine")}`),
    ...(byName.has("frequency") ? [el("span", null, `frequency ${value("frequency")}`)] : [])];
}

/** Mean of the values that are defined. */
function meanOf(values) {
  const defined = values.filter((value) => Number.isFinite(value));
  return defined.reduce((a, b) => a + b, 0) / defined.length;
}

/** Everything that was set, closed at first. */
function settingsSection({settings}) {
  if (!settings?.length) return null;
  const pairs = settings.map(([label, text]) => [tokenText(label), tokenText(String(text))]);
  return section("settings", "Settings", el("details", {class: "more"},
    el("summary", null, "What was set for this run"), factList(pairs, "facts is-list")));
}

/** What was read, and what is missing and why. */
function notesSection({notes}) {
  return notes?.length ? section("notes", "Notes", sentenceList(notes)) : null;
}
