"use strict";
// What verification found, beside what null pairs leave by chance and what could have been found.

/** The verdicts' part of the overview; without a verification, that there is none and how to get one. */
function verdictParts(found) {
  if (!found.verdicts) return unverified(found);
  if (!found.counts) {
    return [absent(tokenText(found.why_none ?? "No verdict could be given.")), alignmentLine(found)];
  }
  const short = "This was the short verification: other seeds were not compared.";
  return [found.is_short && el("p", {class: "muted"}, short), countsTable(found),
    el("div", {class: "two-columns"}, nullsPart(found), powerPart(found)), alignmentLine(found)];
}

/** That no verification was run, what the screen is worth without it, and the command. */
function unverified({why_none: why, screen}) {
  const n = screen?.n_one_sided;
  const passing = isUndefined(n) ? "" : `: ${n || "no"} ${n === 1 ? "latent passes" : "latents pass"} it`;
  return el("div", {class: "callout"},
    el("p", null, el("strong", null, "No verification was run"), why ? [": ", tokenText(why)] : "."),
    el("p", null, `The norm screen below is only a screen${passing}. It takes artifacts of training for `,
      "discoveries, and does not say how many hits chance would leave."),
    commandLine("crosscoders verify RUN"), el("p", {class: "muted"}, "Then write the report again."));
}

/** The survivors as links, or plainly none. */
function survivorLine({survivors, owners, screened}) {
  const of = isUndefined(screened) ? "" : ` of ${countText(screened)} that a screen would report`;
  if (!survivors?.length) {
    return el("p", {class: "survivors"}, el("strong", null, "None"), ": no latent is model-specific",
      screened ? `, though a screen would report ${countText(screened)}.` : ".");
  }
  const link = (latent, i) => el("li", null,
    latentLink(latent, {verdict: "model-specific"}, `Latent ${latent}`),
    owners?.[i] && el("span", {class: "muted"}, " ", tokenText(owners[i])));
  const verb = survivors.length === 1 ? "is" : "are";
  return [el("p", {class: "survivors"},
    el("strong", null, countText(survivors.length)), `${of} ${verb} model-specific:`),
  el("ul", {class: "inline-list"}, survivors.map(link))];
}

/** Verdicts with their counts and what they mean. */
function countsTable({counts}) {
  const total = counts.reduce((sum, [, n]) => sum + n, 0);
  const name = (verdict, n) =>
    (n ? el("a", {href: href("latents", null, {verdict})}, tokenText(verdict)) : tokenText(verdict));
  const rows = counts.map(([verdict, n, help]) => [name(verdict, n), n ? countText(n) : "none",
    n ? percentText(n / total) : "", tokenText(help ?? "")]);
  return numbersTable(["verdict", "latents", "share", "what it means"], rows,
    {caption: "Verdicts on the latents that fire", words: [3]});
}

/** What verification calls model-specific in pairs where nothing is. */
function nullsPart({nulls, others}) {
  const row = (one) => [tokenText(one.name), countText(one.n_crosscoders),
    `${countText(one.n_false)} of ${countText(one.n_live)}`,
    withInterval(one.rate ?? one.n_false / one.n_live, one.low, one.high, (rate) => percentText(rate, 2)),
    expectedText(one)];
  const headers = ["null pair", "crosscoders", "called model-specific", "rate [95%]", "expected here"];
  return el("div", null, el("h3", null, "What chance leaves"),
    el("p", null, "The same verdicts in pairs that differ in nothing that matters."),
    nulls?.length ? numbersTable(headers, nulls.map(row), {caption: "Null pairs"})
      : absent("No null pair was trained, so how many hits chance leaves is unknown."),
    others?.length > 0 && lazyDetails("Further crosscoders, judged on their own", () => othersTable(others)));
}

/** How many latents a null leaves among as many as this run has. */
function expectedText({expected, at_most: most}) {
  if (isUndefined(expected)) return formatNumber(expected);
  return `${expected.toFixed(1)}${isUndefined(most) ? "" : `, at most ${most.toFixed(1)}`}`;
}

/** Further crosscoders, counted the same way. */
function othersTable(others) {
  const row = (one) => (typeof one === "string" ? [tokenText(one), "", ""]
    : [tokenText(one.name ?? ""), countText(one.n_specific), countText(one.n_live)]);
  return numbersTable(["crosscoder of", "model-specific", "latents that fire"], others.map(row),
    {caption: "Further crosscoders"});
}

/** The share of planted features that was found, by how often they fire. */
function powerPart({power}) {
  const title = el("h3", null, "What could have been found");
  if (!power?.rates?.length) {
    return el("div", null, title, absent("Nothing was planted, so what could have been found is unknown."));
  }
  const rate = (value) => `${Number((100 * value).toPrecision(6))}%`;
  const row = (one) => [rate(one.rate), countText(one.n_planted), countText(one.n_recovered),
    countText(one.n_specific), markedInterval(one.n_specific / one.n_planted, one, {format: twoDigits})];
  const headers = ["fires on", "planted", "has a latent", "called model-specific", "power [95%]"];
  return el("div", null, title,
    el("p", null, "Features planted into this run's own activations: the share called model-specific ",
      "is the power."),
    numbersTable(headers, power.rates.map(row), {caption: "Power by rate"}), strengthLine(power));
}

/** How strong the plants were, and how many in known directions were taken for new ones. */
function strengthLine({strength, typical, known_wrong: wrong, known_planted: planted}) {
  const beside = isUndefined(typical) ? "" : `, a typical latent ${twoDigits(typical)}`;
  const mistaken = `${wrong || "none"} ${wrong === 1 ? "was" : "were"} wrongly called model-specific.`;
  return el("p", {class: "muted"},
    isUndefined(strength) ? "" : `Plants write ${twoDigits(strength)} of the mean activation norm${beside}. `,
    planted ? `Of ${planted} in directions that both models have, ${mistaken}` : "");
}

/** Whether the two models' rows belong to the same tokens. */
function alignmentLine({alignment}) {
  if (!alignment?.message) return null;
  return el("p", {class: "muted"}, "Alignment of the models' rows: ", tokenText(alignment.message));
}

/** The causal check: how much of the gap between the models' outputs sets of latents close, per text. */
function causalSection({causal, pair}) {
  if (!causal?.length) return null;
  const kinds = [...new Set(causal.flatMap(({controls}) => (controls ?? []).map(({kind}) => kind)))];
  const row = (one) => [tokenText(one.text), tokenText(one.set), countText(one.n_latents),
    countText(one.n_tokens), markedInterval(one.closed, one, {format: percentText}),
    ...kinds.map((kind) => advantageOver((one.controls ?? []).find((control) => control.kind === kind)))];
  const headers = ["held-out text", "latents", "n", "tokens", "gap closed [95%]", ...kinds.map(tokenText)];
  const groups = [["", 5], ["more than random latents, matched by", kinds.length]];
  const head = kinds.length > 0 && groupHead(groups);
  return section("causal", "Does it matter?", causalWords(pair),
    numbersTable(headers, causal.map(row), {caption: "Causal check", head, words: [1]}));
}

/** What the causal check does. */
function causalWords(pair) {
  const [first, second] = pair ?? ["the first model", "the second"];
  return el("p", null, "What the latents write differently is added to the activation of ", tokenText(first),
    ". Shown is the share of the gap (KL) to ", tokenText(second), " that this closes on held-out text. The ",
    "control: random latents, as many or as large.");
}

/** How much more a set closes than its control. */
function advantageOver(control) {
  if (!control) return formatNumber(null);
  return withInterval(control.advantage, control.low, control.high, percentText);
}
