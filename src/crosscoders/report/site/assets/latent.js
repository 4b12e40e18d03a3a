"use strict";
// The page of one latent: where it fires, what it writes in each model, and what its verdict rests on.

const LATENTS_PER_FILE = 64;
const KEY_FIGURES = ["nrn_l2", "decoder_cosine", "ratio", "kappa", "stability", "frequency",
  "mean_activation", "max_activation", "category", "category_score"];
const NO_MODELS = "need the models, which were not at hand when this report was written.";

/** Fill the page of a latent. */
async function renderLatent(main, state) {
  const [table, overview] = await Promise.all([loadTable(), loadData("overview").catch(() => null)]);
  const row = rowOfLatent(table, state.id);
  if (row < 0) return append(main, noSuchLatent(state.id, table));
  const context = {table, row, latent: state.id, found: overview?.json ?? {}};
  const [chunk, text] = await Promise.all([table.hasPages ? loadChunk(state.id) : null,
    table.hasText ? loadData("text") : null]);
  const i = chunk ? state.id - chunk.json.first : -1;
  append(main, [await listNav(state), latentHead(context, chunk?.json.evidence?.[i])]);
  if (!chunk) return append(main, [absent(`Snippets, logit lens and nearest latents ${NO_MODELS}`)]);
  return append(main, [firesPart(context, chunk, i, text),
    el("div", {class: "two-columns"}, histogramPart(chunk, i), nearestPart(context, chunk, i)),
    lensPart(chunk, i, text), evidencePart(context, chunk, i), enrichmentPart(chunk, i),
    steeringPart(context, chunk)]);
}

/** The row of a latent in the table; -1 where it has none. */
function rowOfLatent({latents}, latent) {
  return latents[latent] === latent ? latent : latents.indexOf(latent);
}

/** What the address of a latent shows that this report does not have. */
function noSuchLatent(latent, {n, latents}) {
  return [el("h1", null, `No latent ${latent}`),
    el("p", null, `This report has ${countText(n)} latents, ${latents[0]} to ${latents[n - 1]}.`),
    el("p", null, el("a", {href: href("latents")}, "All latents"))];
}

/** The file that holds a latent's page. */
function loadChunk(latent) {
  return loadData(`latents/${String(Math.floor(latent / LATENTS_PER_FILE)).padStart(3, "0")}`);
}

/** Heading, verdict with its reason, what it fires on, and the key figures. */
function latentHead({table, row, latent, found}, reason) {
  const value = (name) => (table.byName.has(name) ? textOf(table.byName.get(name), row) : "");
  const line = (label, name) => value(name) && el("p", null, el("span", {class: "muted"}, `${label}: `),
    (table.byName.get(name).hasPieces ? tokenPieces : tokenText)(value(name)));
  const verdict = value("verdict");
  return [el("header", {class: "page-head"},
    el("div", {class: "title-line"}, el("h1", null, `Latent ${latent}`), verdict && verdictBadge(verdict)),
    verdictLine(verdict, reason, found),
    line("Annotation", "annotation"), line("Fires on", "fires_on")),
  factList(keyFigures(table, row))];
}

/** What its verdict means and why it was given, or why there is none. */
function verdictLine(verdict, reason, {verdicts}) {
  const meaning = verdicts?.counts?.find(([name]) => name === verdict)?.[2];
  if (verdict) {
    return el("p", {class: "reason"}, meaning && [tokenText(meaning), " "],
      reason && ["Because: ", tokenText(reason), "."]);
  }
  const why = verdicts ? ["No verdict: it does not fire on the held-out text."]
    : ["No verdict: no verification was run (", el("code", null, "crosscoders verify RUN"), ")."];
  return el("p", {class: "reason muted"}, why);
}

/** Labels and values of the key figures that the table has; empty columns are left out. */
function keyFigures(table, row) {
  const columns = KEY_FIGURES.map((name) => table.byName.get(name)).filter(Boolean);
  const norms = table.columns.filter(({name}) => name.startsWith("norm_l2/"));
  return [...columns, ...norms].filter(({isEmpty}) => !isEmpty).map((column) => [
    el("span", {title: plainToken(column.help ?? "")}, tokenText(column.label)), cellContent(column, row)]);
}

/** Links to the latents before and after in the list that the reader came from, and back to it. */
async function listNav({id, params}) {
  const {n, latents} = await loadTable();
  const {place, count, previous, next} = await listNeighbors(params, id);
  const isListed = place > 0, hasList = params.size > 0;
  const before = isListed ? previous : id > latents[0] ? id - 1 : null;
  const after = isListed ? next : id < latents[n - 1] ? id + 1 : null;
  const step = (latent, label, rel) => (latent === null ? el("span", {class: "muted"}, label)
    : el("a", {href: href("latent", latent, isListed ? params : null), rel}, `${label} (${latent})`));
  return el("nav", {class: "list-nav", "aria-label": "Latents"},
    el("a", {href: href("latents", null, params)}, hasList ? "Back to the list" : "All latents"),
    hasList && el("span", {class: "muted"},
      isListed ? `${countText(place)} of ${countText(count)} in the list` : "not in the list"),
    el("span", {class: "steps"}, step(before, "Previous", "prev"), step(after, "Next", "next")));
}

/** Snippets, or why there are none. */
function firesPart({table, row, found}, chunk, i, text) {
  const {snippet_ptr: ptr} = chunk.arrays;
  const instead = (sentence) => section("snippets", "Where it fires", absent(sentence));
  if (!firesTest(table)(row)) {
    const n = found.screen?.n_tokens ?? table.nTokens;
    return instead(`It never fires on the ${isUndefined(n) ? "" : `${countText(n)} `}held-out tokens.`);
  }
  if (!ptr) return instead(`Snippets ${NO_MODELS}`);
  if (ptr.data[i] < ptr.data[i + 1]) {
    const everywhere = {maximum: table.byName.get("max_activation")?.data[row], nTokens: table.nTokens};
    return snippetSection(chunk, i, {text, everywhere});
  }
  return instead("It fires on the held-out text, but on none of the tokens that snippets were read from.");
}

/** The histogram of its activations. */
function histogramPart({arrays}, i) {
  const maximum = arrays.max_activation?.data[i];
  if (!arrays.histogram || !(maximum > 0)) {
    return section("activations", "Activations", absent("There are no activations to count."));
  }
  const bins = arrays.histogram.shape[1];
  const counts = [...arrays.histogram.data.subarray(i * bins, (i + 1) * bins)];
  const total = counts.reduce((a, b) => a + b, 0);
  return section("activations", "Activations", histogramChart({
    title: "Activations above 0", counts, x: {low: 0, high: maximum, label: "activation"},
    note: `${countText(total)} firings in the text that snippets were read from.`,
  }));
}

/** The latents whose decoder rows are nearest. */
function nearestPart({table}, {arrays}, i) {
  const near = readRanks(arrays, "nearest", {numbers: "nearest_cosine", at: i});
  if (!near.length) {
    const why = arrays.nearest ? "Its decoder row has no direction." : "Nearest latents were not computed.";
    return section("nearest", "Nearest latents", absent(why));
  }
  const column = table.byName.get("verdict");
  const verdict = (latent) => (column ? textOf(column, rowOfLatent(table, latent)) : "");
  const row = ({index, value}) => [latentLink(index), formatNumber(value),
    verdict(index) ? verdictBadge(verdict(index)) : formatNumber(null)];
  return section("nearest", "Nearest latents",
    el("p", {class: "muted small"}, "By the cosine of whole decoder rows in normalized space."),
    numbersTable(["latent", "cosine", "verdict"], near.map(row),
      {caption: "Nearest latents", words: [2]}));
}

/** One row of ranked indices with their numbers; undefined ones are left out, none where it is absent. */
function readRanks(arrays, name, {numbers, at}) {
  if (!arrays[name]) return [];
  const ranks = arrays[name].shape.at(-1);
  const entry = (_, k) => ({
    index: arrays[name].data[at * ranks + k], value: arrays[numbers].data[at * ranks + k],
  });
  return Array.from({length: ranks}, entry).filter(({value}) => !isUndefined(value));
}

/** Tokens whose logits its decoder direction raises and lowers most, source by source. */
function lensPart({json, arrays}, i, text) {
  const title = "Logit lens of its decoder direction";
  if (!arrays.lens_top) return section("lens", title, absent(`The unembeddings ${NO_MODELS}`));
  const side = (word, array, s) => lensTable(word, plainToken(json.sources[s]),
    readRanks(arrays, array, {numbers: `${array}_value`, at: i * json.sources.length + s}), text);
  const column = (name, s) => el("div", {class: "lens"}, el("h3", null, sourceKey(s), tokenText(name)),
    el("div", {class: "lens-sides"}, side("raised", "lens_top", s), side("lowered", "lens_bottom", s)));
  return section("lens", title,
    el("p", null, "Change of each token's logit per unit of activation, through each model's own ",
      "unembedding, the mean over the vocabulary taken off. The layers in between and the final norm's ",
      "division are left out, so compare values within one model."),
    el("div", {class: "lens-grid"}, json.sources.map(column)));
}

/** One side of the lens in one source. */
function lensTable(side, source, entries, text) {
  if (!entries.length) return absent(`No token is ${side}: the direction is undefined in this model.`);
  const rows = entries.map(({index, value}) => [tokenText(text.json.strings[index] ?? ""), signed(value)]);
  return numbersTable([`token ${side}`, "logit"], rows,
    {caption: `Tokens ${side} most in ${source}`});
}

/** The verdict's evidence. */
function evidencePart({found}, chunk, i) {
  const title = "Evidence for the verdict";
  if (!chunk.arrays.evidence) {
    return section("evidence", title, absent("There is none: no verification was run."));
  }
  return section("evidence", title,
    el("p", null, "The tests of a verdict run in a fixed order, and the first that applies decides."),
    evidenceTable(chunk, i, found.verdicts ?? {}));
}

/** How well it tells the categories of reasoning apart. */
function enrichmentPart(chunk, i) {
  if (!chunk.arrays.enrichment) return null;
  return section("enrichment", "Enrichment by category",
    el("p", null, "Precision and recall of firing at all, AUROC of the activation; 0.5 is chance for AUROC."),
    enrichmentTable(chunk, i));
}

/** What the model writes when steered by this latent; nothing where that was not asked for. */
function steeringPart({latent}, {json}) {
  const samples = json.steering?.[latent];
  if (!samples?.length) return null;
  const prompts = Map.groupBy(samples, ({prompt}) => prompt ?? "");
  return section("steering", "Steering samples",
    el("p", null, "What the model writes with this latent's decoder direction added, beside a random ",
      "direction of the same norm. Strengths are in units of the mean residual norm."),
    [...prompts].map(([prompt, group], n) => [
      el("h3", null, el("span", {class: "muted"}, "Prompt: "), tokenText(prompt)),
      steeringTable(group, `Steering samples, prompt ${n + 1}`)]));
}

/** Samples of one prompt: a row per strength, the latent beside the random direction. */
function steeringTable(samples, caption) {
  const said = (strength, kind) => {
    const sample = samples.find((one) => one.strength === strength && one.kind === kind);
    const cut = sample?.is_finished === false && el("span", {class: "muted"}, " (cut off)");
    return sample ? [tokenText(sample.text), cut] : formatNumber(null);
  };
  const row = (strength) => el("tr", null,
    el("th", {scope: "row"}, strength === 0 ? "unsteered" : signed(strength)),
    strength === 0 ? el("td", {colspan: 2}, said(0, "none"))
      : ["latent", "random"].map((kind) => el("td", null, said(strength, kind))));
  const strengths = [...new Set(samples.map(({strength}) => strength))].sort((a, b) => a - b);
  const headers = ["strength", "this latent", "random direction"];
  return scrollBox(caption, el("table", {class: "texts", "aria-label": caption},
    el("thead", null, el("tr", null, headers.map((header) => el("th", {scope: "col"}, header)))),
    el("tbody", null, strengths.map(row))));
}
