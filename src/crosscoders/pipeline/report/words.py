"""The report's paragraph: what was found and what could not have been found, in plain sentences.

Every sentence is computed from the figures of the overview, and says no more than they do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from crosscoders._typing import typed
from crosscoders.bootstrap import wilson_interval
from crosscoders.diffing.verdicts import UNDECIDED
from crosscoders.pipeline.config import ALL_TEXT
from crosscoders.pipeline.verify.result import REAL

Figures = Mapping[str, Any]
LOOKED, FOUND, MISSED, DOES = (
    "What was looked at",
    "What was found",
    "What could not have been found",
    "What it does",
)
_LITTLE = 0.5  # explained share of the difference below which the crosscoder "sees only" so much
_FEW = 5  # survivors that are named one by one
_MAX_UNSCALABLE = 0.5  # share of tokens that a random set left alone, above which it is no comparison


@typed
def paragraph(overview: Figures) -> list[str]:
    """What a run shows, in short sentences with their denominators.

    Args:
        overview: As for `paragraphs`.

    Returns:
        The sentences of all paragraphs in the order in which they are to be read.
    """
    return [sentence for _, sentences in paragraphs(overview) for sentence in sentences]


@typed
def paragraphs(overview: Figures) -> list[tuple[str, list[str]]]:
    """The same under headings: what was looked at, found, could not have been found, and what it does.

    Args:
        overview: The report's overview: `sources`, `screen`, `reconstruction` and `verdicts` are read.

    Returns:
        Headings with their sentences; one that would have none is left out.
    """
    found = overview["verdicts"]
    if found is not None and found["counts"] is None:
        return [(FOUND, _not_aligned(found["alignment"]))]
    groups = [(LOOKED, _seen(overview["reconstruction"]))]
    if found is None:
        return [*groups, (FOUND, [*_screened(overview["screen"]), *_unverified(len(overview["sources"]))])]
    n_live = sum(n for _, n, _ in found["counts"])
    groups += [
        (FOUND, [*_survivors(found, n_live), *_chance(found, n_live), *_seeds(found)]),
        (MISSED, [*_power(found), *_undecided(found["counts"], n_live)]),
        (DOES, _causal(found)),
    ]
    return [(heading, sentences) for heading, sentences in groups if sentences]


def _not_aligned(alignment: Figures) -> list[str]:
    return [
        "No verdict is given: the rows of the two models do not seem to belong to the same tokens.",
        f"{_sentence(alignment['message'])}",
        "Until that is mended, believe nothing on these pages.",
    ]


def _seen(rows: Sequence[Figures]) -> list[str]:
    """How much of the change the crosscoder reconstructs, beside what token means explain."""
    whole = next((row for row in rows if row["text"] == ALL_TEXT), None)
    if whole is None:
        return ["How well the crosscoder reconstructs the models was not measured."]
    share, n_tokens = whole["difference"], whole["n_tokens"]
    if share is None:
        return ["How much of the change between the models it sees is not defined for these sources."]
    at = f"on {n_tokens:,} held-out tokens"
    if share <= 0:
        return [
            f"The crosscoder sees nothing of what changed in the activations: it explains {_percent(share)} "
            f"of the difference's variance {at}."
        ]
    only = "only " if share < _LITTLE else ""
    sentences = [
        f"The crosscoder sees {only}{_percent(share)} of what changed in the activations "
        f"(variance of the difference, {at}); the rest cannot show up here."
    ]
    means = whole["token_means_difference"]
    if means is not None and share <= means:
        sentences.append(f"A table of one mean per token explains no less ({_percent(means)}).")
    return sentences + _seen_least(rows, share)


def _seen_least(rows: Sequence[Figures], share: float) -> list[str]:
    known = [row for row in rows if row["text"] != ALL_TEXT and row["difference"] is not None]
    least = min(known, key=lambda row: row["difference"], default=None)
    if least is None or share < _LITTLE or least["difference"] >= _LITTLE:
        return []
    return [f"On {least['text']} it sees only {_percent(least['difference'])}."]


def _screened(screen: Figures) -> list[str]:
    n, n_fire = screen["n_one_sided"], screen["n_fire"]
    if n is None:
        return ["Decoder norms were not screened: that compares two models."]
    of = f"of the {n_fire:,} latents that fire"
    if n == 0:
        return [f"By their decoder norms none {of} belongs to one model."]
    return [
        f"By their decoder norms {n:,} {of} {'looks' if n == 1 else 'look'} like one model's own.",
        "Decoder norms are a screen: what passes may be an artifact of training.",
    ]


def _unverified(n_sources: int) -> list[str]:
    if n_sources != 2:
        return ["Nothing here has been verified: verification compares two models."]
    return [
        "Nothing here has been verified.",
        "To verify, run `crosscoders verify RUN` with this run's folder, then write the report again.",
    ]


def _survivors(found: Figures, n_live: int) -> list[str]:
    if n_live == 0:
        return ["Verification found none: no latent fires on the held-out text."]
    survivors, screened = found["survivors"], found["screened"]
    beside = f"A screen without verification would have reported {screened:,}."
    if not survivors:
        none = f"Verification found none: of {n_live:,} latents that fire, none is called model-specific."
        return [none, beside if screened else "None would pass a screen either."]
    verb = "is" if len(survivors) == 1 else "are"
    named = ""
    if len(survivors) <= _FEW:
        owners = zip(survivors, found["owners"], strict=True)
        named = ": " + ", ".join(f"latent {latent} ({owner})" for latent, owner in owners)
    return [
        f"Of {n_live:,} latents that fire, {len(survivors):,} {verb} called model-specific{named}.",
        beside,
    ]


def _undecided(counts: Sequence[Sequence[Any]], n_live: int) -> list[str]:
    n = sum(count for verdict, count, _ in counts if verdict == UNDECIDED)
    said = f"On {n:,} of the {n_live:,} latents that fire the evidence does not suffice for a verdict."
    return [said] if n else []


def _chance(found: Figures, n_live: int) -> list[str]:
    """How many latents null pairs would have left, and whether there are more."""
    nulls = [null for null in found["nulls"] if null["n_live"]]
    n = len(found["survivors"])
    if not nulls:
        said = "How many chance leaves was not measured: no null pair was trained."
        return [said, "What survives may be chance."] if n else [said]
    counted = _listed(
        [f"{null['n_false']:,} of {null['n_live']:,} ({null['name']})" for null in nulls], "and"
    )
    expected, at_most = (max(null[name] for null in nulls) for name in ("expected", "at_most"))
    sentences = [
        f"In null pairs, whose models do not differ in what matters, {counted} latents were wrongly called "
        f"model-specific: at such rates chance leaves {expected:,.1f} of the {n_live:,} here, at most "
        f"{at_most:,.1f}.",
    ]
    return [*sentences, _against_chance(n, n_live, expected=expected, nulls=nulls)] if n else sentences


def _against_chance(n: int, n_live: int, *, expected: float, nulls: Sequence[Figures]) -> str:
    rate = max(null["n_false"] / null["n_live"] for null in nulls)
    if n <= max(expected, rate * n_live):
        return "So what survives is no more than chance leaves."
    low, _ = wilson_interval(n, n_live)
    if low > max(null["high"] for null in nulls):
        return "So more survive than chance explains."
    return "By its number alone, what survives cannot be told from chance."


def _seeds(found: Figures) -> list[str]:
    if found["is_short"]:
        return ["Seeds were not compared: whether another training finds the same latents is unknown."]
    others = [f"{one['n_specific']:,}" for one in found["others"] if one["name"] == REAL]
    if not others:
        return []
    counts = _listed(others, "and")
    return [f"Trained again with other seeds, the pair has {counts} latents called model-specific."]


def _power(found: Figures) -> list[str]:
    """What became of planted features, and what follows for what may have been missed."""
    power = found["power"]
    if power is None or not power["rates"]:
        return ["What could have been found was not measured: nothing was planted.", *_known(power)]
    rates = power["rates"]
    (times, rate), *others = [(f"{at['n_specific']} of {at['n_planted']}", _rate(at)) for at in rates]
    said = [f"{times} where they fire on {rate} of tokens", *(f"{n} on {at}" for n, at in others)]
    sentences = [f"Of planted features, verification would have found {_listed(said, 'and')}."]
    missed = _missed(rates)
    sentences += [f"So {word} features that fire on {at} of tokens would be missed." for word, at in missed]
    if missed and not found["survivors"]:
        sentences.append("None found is therefore no proof that there is none.")
    rarest = min(rates, key=lambda at: at["rate"])
    sentences += [f"Rarer ones than {_rate(rarest)} were not tried.", *_strength(power)]
    if not found["is_short"]:
        sentences.append("Plants did not have to be found again by other seeds, unlike what survives.")
    return sentences + _known(power)


def _missed(rates: Sequence[Figures]) -> list[tuple[str, str]]:
    """Base rates at which plants were missed, under the word for how many."""
    found: dict[str, list[str]] = {}
    for at in rates:
        share = at["n_specific"] / at["n_planted"]
        word = "most" if at["high"] < 0.5 else "many" if share < 0.5 else "some" if share < 1 else ""
        if word:
            found.setdefault(word, []).append(_rate(at))
    return [(word, _listed(names, "or")) for word, names in found.items()]


def _strength(power: Figures) -> list[str]:
    strength, typical = power["strength"], power["typical"]
    if strength is None:
        return []
    said = f"Plants write {strength:.2f} of the mean activation norm"
    if typical is None:
        return [f"{said}; weaker features are harder to find."]
    beside = f"a typical latent writes {typical:.2f}"
    if typical < strength:
        return [f"{said}, {beside}: features as weak as that are harder to find."]
    return [f"{said}, {beside}."]


def _known(power: Figures | None) -> list[str]:
    if power is None or not power["known_planted"]:
        return []
    wrong, n = power["known_wrong"], power["known_planted"]
    if wrong == 0 and power["rates"] and not any(at["n_recovered"] for at in power["rates"]):
        said = f"None of {n} plants in directions that both models have was wrongly called model-specific"
        return [f"{said}, which says little: no plant in a random direction got a latent."]
    verb = "was" if wrong == 1 else "were"
    return [
        f"Of {n} plants in directions that both models already have, {wrong or 'none'} {verb} wrongly called "
        "model-specific."
    ]


def _causal(found: Figures) -> list[str]:
    """What the survivors do to the output, where it is most, and whether random latents do as much."""
    if not found["survivors"]:
        return []
    rows = [row for row in found["causal"] if row["set"] == "survivors" and row["closed"] is not None]
    if not rows:
        return ["Whether what survives changes what the model writes was not checked."]
    first, second = found["pair"]
    best = max(rows, key=lambda row: row["closed"])
    where = f"on {best['text']}" + (f", the most of {len(rows)} kinds of text" if len(rows) > 1 else "")
    closed = (
        f"Patched into {first}, what survives closes {_percent(best['closed'])} of the gap to {second}'s "
        f"output {where}"
    )
    if best["low"] is None or best["high"] is None:
        return [f"{closed}; there is no interval.", _against_random(best)]
    sentences = [f"{closed} (95% {_percent(best['low'])} to {_percent(best['high'])})."]
    if best["low"] <= 0:
        return [*sentences, "That cannot be told from no effect."]
    return [*sentences, _against_random(best)]


def _against_random(row: Figures) -> str:
    """How many random sets close as much; those that mostly could not be scaled to its size do not count."""
    if not row["controls"]:
        return "It was not compared with random latents."
    fair = [one for one in row["controls"] if (one["unscalable"] or 0) <= _MAX_UNSCALABLE]
    if not fair:
        return "Random latents could not be scaled to its size, so nothing is said against them."
    n, n_as_much = (sum(one[name] for one in fair) for name in ("n_draws", "n_as_much"))
    return f"Of {_count(n, 'random set')} of latents {n_as_much or 'none'} {_verb(n_as_much)} as much."


def _rate(at: Figures) -> str:
    return f"{100 * at['rate']:g}%"


def _percent(share: float) -> str:
    """A share in percent with one digit; what only rounds to 0 or 100 says so."""
    text = f"{100 * share:.1f}"
    if text in ("0.0", "-0.0"):
        return "0%" if share == 0 else "about 0%"
    if text == "100.0" and share != 1:
        return "almost 100%" if share < 1 else "about 100%"
    return f"{text.removesuffix('.0')}%"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _verb(n: int) -> str:
    return "close" if n > 1 else "closes"


def _listed(parts: Sequence[str], word: str) -> str:
    """Such as "2%, 1% or 0.1%"."""
    *first, last = parts
    return f"{', '.join(first)} {word} {last}" if first else last


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
