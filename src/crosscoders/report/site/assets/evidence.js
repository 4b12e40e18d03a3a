"use strict";
// The evidence behind a verdict: every measure with its interval and the line that the verdict draws for it.

const MEASURE_GROUPS = [
  ["How often it fires", ["n_firings", "n_sequences", "mean_activation"]],
  ["What each model writes when it fires", ["stronger", "ratio", "kappa", "norm_share", "decoder_cosine"]],
  ["Latent scaling: the same direction in the other model",
    ["nu_error", "nu_reconstruction", "nu_reconstruction_without_bias"]],
  ["Known directions and partners",
    ["reuse_cosine", "reuse_latent", "partner_correlation", "partner", "off_activity"]],
  ["One model's activation in every slot", ["swap_gained", "swap_lost", "swap_readable"]],
  ["Other seeds", ["stability"]],
];
// By measure: label, help, kind of value, and the line that a verdict draws, from its thresholds.
const MEASURES = {
  n_firings: ["firings", "", "integer", (t) => `${t.min_firings} or more for a verdict`],
  n_sequences: ["sequences", "In which it fires.", "integer",
    (t) => `${t.min_sequences} or more for a verdict`],
  mean_activation: ["mean activation", "Over the tokens on which it fires."],
  stronger: ["stronger model", "The one that writes more when it fires.", "source"],
  ratio: ["rho", "Squared strength of the weaker model over that of the stronger, in whatever direction.", "",
    (t) => `below ${t.absent}: the weaker is silent; above ${t.rescaled}: equally strong`],
  kappa: ["kappa", "Cosine of what the two models write.", "", (t) => `below ${t.rotated}: rotated`],
  norm_share: ["decoder norm share", "The second model's share of the decoder norms: only a screen.", "",
    (t) => `below ${twoDigits(1 - t.one_sided)} or above ${twoDigits(t.one_sided)}: one-sided by norms`],
  decoder_cosine: ["decoder cosine", "Of the two decoder rows; a shrunken row points anywhere."],
  nu_error: ["nu (error)", "How much of the weaker model's error it explains, against the stronger's."],
  nu_reconstruction: ["nu (reconstruction)", "Likewise of the reconstruction."],
  nu_reconstruction_without_bias: ["nu (reconstruction, no bias)", "Likewise, the bias left out."],
  reuse_cosine: ["cosine with a known direction", "The nearest one that both models have.", "",
    (t) => `${t.reused} or more: re-used`],
  reuse_latent: ["that direction's latent", "", "latent"],
  partner_correlation: ["partner's correlation", "With a latent that belongs more to the weaker model.", "",
    (t) => `${t.partner} or more: the other half of a pair`],
  partner: ["that partner", "", "latent"],
  off_activity: ["off-activity", "The silent model's variance along the direction while the latent is off, " +
    "over that along random ones. Decides nothing."],
  swap_gained: ["only the second fires it", "Share of the tokens on which either model alone fires it."],
  swap_lost: ["only the first fires it", "Likewise."],
  swap_readable: ["readable so", "Whether it fires at all this way.", "flag"],
  stability: ["stability", "Correlation of its activations with the best match in other seeds.", "",
    (t) => `${t.stable} or more: stable`],
};

/** The evidence for a verdict as a table, grouped; `context` is {pair, thresholds}. */
function evidenceTable({json, arrays}, i, context) {
  const names = json.evidence_columns;
  const values = new Map(names.map((name, at) => [name, arrays.evidence.data[i * names.length + at]]));
  const head = ["measure", "value [95%], and where the verdict draws its line"];
  const body = measureGroups(values).map(([title, group]) => el("tbody", null,
    el("tr", {class: "row-group"}, el("th", {scope: "rowgroup", colspan: 2}, title)),
    group.map((name) => measureRow(name, values, context))));
  const caption = "Evidence, measure by measure";
  return scrollBox(caption, el("table", {class: "numbers evidence", "aria-label": caption},
    el("thead", null, el("tr", null, head.map((text) => el("th", {scope: "col"}, text)))), body));
}

/** The measures that there are, by group; the bounds of an interval belong to their measure. */
function measureGroups(values) {
  const isBound = (name) => /_(low|high)$/.test(name) && values.has(name.replace(/_(low|high)$/, ""));
  const grouped = new Set(MEASURE_GROUPS.flatMap(([, group]) => group));
  const rest = [...values.keys()].filter((name) => name !== "latent" && !isBound(name) && !grouped.has(name));
  const groups = MEASURE_GROUPS.map(([title, group]) => [title, group.filter((name) => values.has(name))]);
  return [...groups, ["Further measures", rest]].filter(([, group]) => group.length);
}

/** One measure: name and help, value with interval, and where the verdict draws its line. */
function measureRow(name, values, {pair, thresholds}) {
  const [label, help, kind, line] = Object.hasOwn(MEASURES, name) ? MEASURES[name] : [measureLabel(name)];
  return el("tr", null,
    el("th", {scope: "row"}, label, help && el("span", {class: "help"}, help)),
    el("td", null, measureValue(name, kind, {values, pair}),
      thresholds && line && el("span", {class: "help"}, line(thresholds))));
}

/** A name for a measure that has none here: "decodable/base" as "decodable from base". */
function measureLabel(name) {
  return tokenText(name.replace(/^decodable\//, "decodable from ").replaceAll("_", " "));
}

/** The value of a measure: a link for latents, a name for sources, otherwise a number with its interval. */
function measureValue(name, kind, {values, pair}) {
  const value = values.get(name);
  if (isUndefined(value)) return numberNode(null);
  if (kind === "latent" && Number.isInteger(value)) return value >= 0 ? latentLink(value) : "none";
  if (kind === "source") return value < 0 ? "neither" : tokenText(pair?.[value] ?? String(value));
  if (kind === "flag") return value ? "yes" : "no";
  if (kind === "integer") return countText(value);
  return withInterval(value, values.get(`${name}_low`), values.get(`${name}_high`));
}

/** Enrichment by category: a row per question, a column per score, best first. */
function enrichmentTable({json, arrays}, i) {
  const names = json.enrichment_columns;
  const rows = enrichmentRows(names, enrichmentReader(arrays.enrichment), i);
  if (!rows.length) return absent("No category scores are defined for it.");
  const kinds = [...new Set(names.map((name) => splitOnce(name, "/")[0]))];
  const headers = ["category", ...kinds.map((kind) => (kind === "auroc" ? "AUROC" : kind))];
  const table = (some, caption) => numbersTable(headers, some.map(({label, scores}) =>
    [tokenText(label), ...kinds.map((kind) => formatNumber(scores[kind]))]), {caption});
  const rest = rows.slice(8), others = () => table(rest, "Enrichment by category, the rest");
  return [table(rows.slice(0, 8), "Enrichment by category, best first"),
    rest.length > 0 && lazyDetails(`${rest.length} more`, others)];
}

/** Reads the numbers behind the categories, which may be stored in steps of 1/65534. */
function enrichmentReader({data}) {
  if (!(data instanceof Uint16Array)) return (at) => data[at];
  return (at) => (data[at] === 65535 ? NaN : data[at] / 65534);
}

/** {label, scores} per question, by AUROC (or else the first score) from the best, undefined ones last. */
function enrichmentRows(names, read, i) {
  const rows = new Map();
  names.forEach((name, at) => {
    const [kind, question] = splitOnce(name, "/");
    if (!rows.has(question)) rows.set(question, {label: question.replaceAll("/", ", "), scores: {}});
    rows.get(question).scores[kind] = read(i * names.length + at);
  });
  const kind = names.some((name) => name.startsWith("auroc/")) ? "auroc" : splitOnce(names[0] ?? "", "/")[0];
  const key = ({scores}) => (isUndefined(scores[kind]) ? -Infinity : scores[kind]);
  const isKnown = ({scores}) => Object.values(scores).some((score) => !isUndefined(score));
  return [...rows.values()].filter(isKnown).sort((a, b) => key(b) - key(a));
}
