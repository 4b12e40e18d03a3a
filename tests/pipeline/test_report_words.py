"""The report's paragraph says what its figures say, case by case, and no more."""

from typing import Any

import pytest

from crosscoders.bootstrap import wilson_interval
from crosscoders.diffing.verdicts import SHARED, SPECIFIC, UNDECIDED
from crosscoders.pipeline.report.words import paragraph, paragraphs

ALIGNED = {"message": "sources aligned."}


def row(difference: float | None, *, text: str = "all", means: float | None = 0.1) -> dict[str, Any]:
    return {"text": text, "n_tokens": 5000, "difference": difference, "token_means_difference": means}


def null(n_false: int, n_live: int, *, name: str = "benign drift", here: int = 1000) -> dict[str, Any]:
    high = wilson_interval(n_false, n_live)[1]
    chance = {"expected": here * n_false / max(n_live, 1), "at_most": here * high}
    return {"name": name, "n_crosscoders": 1, "n_live": n_live, "n_false": n_false, "high": high, **chance}


def at_rate(rate: float, n_specific: int, n_recovered: int = 16) -> dict[str, Any]:
    low, high = wilson_interval(n_specific, 16)
    counts = {"n_planted": 16, "n_recovered": n_recovered, "n_specific": n_specific}
    return {"rate": rate, "low": low, "high": high, **counts}


def power(*rates: dict[str, Any], wrong: int = 0, planted: int = 0, **strengths: float) -> dict[str, Any]:
    figures = {"strength": 0.33, "typical": None, **strengths}
    return {"rates": list(rates), "known_wrong": wrong, "known_planted": planted, **figures}


def control(n_as_much: int, *, kind: str = "count", unscalable: float | None = None) -> dict[str, Any]:
    return {"kind": kind, "n_draws": 5, "n_as_much": n_as_much, "unscalable": unscalable}


def patched(
    closed: float, *controls: dict[str, Any], text: str = "trace", low: float = 0.01
) -> dict[str, Any]:
    interval = {"low": low, "high": closed + 0.02}
    return {"text": text, "set": "survivors", "closed": closed, **interval, "controls": list(controls)}


def verified(n_survivors: int = 0, *, n_undecided: int = 0, **changes: Any) -> dict[str, Any]:
    survivors = list(range(7, 7 + n_survivors))
    n_shared = 1000 - n_survivors - n_undecided
    counts = [[SPECIFIC, n_survivors, ""], [SHARED, n_shared, ""], [UNDECIDED, n_undecided, ""]]
    found = {"counts": counts, "pair": ["base", "distilled"], "survivors": survivors, "screened": 40}
    found |= {"owners": ["distilled"] * n_survivors, "nulls": [], "others": [], "power": None, "causal": []}
    return found | {"is_short": False, "alignment": ALIGNED} | changes


def said(verdicts: dict[str, Any] | None = None, *rows: dict[str, Any], one_sided: int | None = 3) -> str:
    screen = {"n_fire": 1000, "n_never": 24, "n_one_sided": one_sided, "n_tokens": 5000}
    reconstruction = list(rows) or [row(0.9)]
    overview = {"screen": screen, "reconstruction": reconstruction, "verdicts": verdicts}
    return " ".join(paragraph({"sources": ["base", "distilled"], **overview}))


def test_the_paragraph_is_all_paragraphs_and_each_says_its_own() -> None:
    causal = [patched(0.04, control(0))]
    found = verified(2, n_undecided=3, nulls=[null(0, 3000)], power=power(at_rate(0.02, 16)), causal=causal)
    overview = {"screen": {}, "reconstruction": [row(0.9)], "verdicts": found}
    groups = dict(paragraphs(overview))
    assert list(groups) == [
        "What was looked at",
        "What was found",
        "What could not have been found",
        "What it does",
    ]
    assert paragraph(overview) == [sentence for group in groups.values() for sentence in group]
    for sentences, word in zip(groups.values(), ("sees", "null pairs", "planted", "Patched"), strict=True):
        assert word in " ".join(sentences)
    assert "does not suffice" in groups["What could not have been found"][-1]
    nothing = paragraphs(overview | {"verdicts": verified(0)})
    assert [heading for heading, _ in nothing] == list(groups)[:3]


def test_without_verification_it_is_a_screen_and_says_what_to_run() -> None:
    text = said(None)
    assert "3 of the 1,000 latents that fire look like one model's own" in text
    assert "Nothing here has been verified." in text
    assert "crosscoders verify RUN" in text
    assert "specific" not in text
    assert "none of the 1,000 latents that fire belongs to one model" in said(None, one_sided=0)
    assert "were not screened" in said(None, one_sided=None)


def test_what_has_no_two_models_is_not_sent_to_verification() -> None:
    screen = {"n_fire": 9, "n_one_sided": None}
    found = {"sources": ["a", "b", "c"], "screen": screen, "reconstruction": [], "verdicts": None}
    text = " ".join(paragraph(found))
    assert "Nothing here has been verified: verification compares two models." in text
    assert "run `" not in text


def test_survivors_are_counted_over_all_latents_that_fire_and_named_if_few() -> None:
    text = said(verified(2))
    assert "Of 1,000 latents that fire, 2 are called model-specific: latent 7 (distilled), latent 8" in text
    assert "without verification would have reported 40" in text
    assert "Of 1,000 latents that fire, 6 are called model-specific." in said(verified(6))


def test_where_nothing_survives_it_says_none() -> None:
    text = said(verified(0, causal=[patched(0.5)]))
    assert "Verification found none: of 1,000 latents that fire, none is called model-specific." in text
    assert "Patched" not in text
    assert "None would pass a screen either." in said(verified(0, screened=0))
    nothing = said(verified(0, counts=[[SPECIFIC, 0, ""]]))
    assert "Verification found none: no latent fires on the held-out text." in nothing


def test_what_could_not_be_judged_is_told() -> None:
    assert "On 43 of the 1,000 latents that fire the evidence does not suffice for a verdict." in said(
        verified(n_undecided=43)
    )
    assert "suffice" not in said(verified())


def test_survivors_no_more_frequent_than_false_calls_are_chance() -> None:
    text = said(verified(3, nulls=[null(0, 1000), null(5, 1000, name="self-diff")]))
    assert "0 of 1,000 (benign drift) and 5 of 1,000 (self-diff) latents were wrongly called" in text
    assert "at such rates chance leaves 5.0 of the 1,000 here, at most" in text
    assert "So what survives is no more than chance leaves." in text


@pytest.mark.parametrize("figures", [null(5, 1000) | {"expected": 0.0}, null(0, 3000) | {"expected": 9.0}])
def test_the_worse_of_the_raw_and_the_matched_rate_counts(figures: dict[str, Any]) -> None:
    assert "no more than chance leaves" in said(verified(3, nulls=[figures]))


def test_more_than_chance_is_claimed_only_where_the_intervals_are_apart() -> None:
    assert "So more survive than chance explains." in said(verified(30, nulls=[null(0, 3000)]))
    few = said(verified(2, nulls=[null(0, 3000)]))  # more than the most that is expected
    assert "more survive" not in few
    assert "By its number alone, what survives cannot be told from chance." in few
    one_of_two = said(verified(30, nulls=[null(0, 3000), null(20, 1000)]))
    assert "more survive" not in one_of_two


def test_chance_that_was_not_measured_is_not_spoken_of_as_if() -> None:
    text = said(verified(2))
    assert "How many chance leaves was not measured" in text
    assert "What survives may be chance." in text
    assert "may be chance" not in said(verified(0))
    assert "was not measured: no null" in said(verified(2, nulls=[null(0, 0)]))


def test_power_is_told_rate_by_rate_with_its_denominators() -> None:
    text = said(verified(power=power(at_rate(0.02, 16), at_rate(0.005, 12), at_rate(0.001, 1))))
    assert (
        "have found 16 of 16 where they fire on 2% of tokens, 12 of 16 on 0.5% and 1 of 16 on 0.1%." in text
    )
    assert "So some features that fire on 0.5% of tokens would be missed." in text
    assert "So most features that fire on 0.1% of tokens would be missed." in text
    assert "Rarer ones than 0.1% were not tried." in text
    assert "None found is therefore no proof that there is none." in text


def test_full_power_claims_no_miss_and_unmeasured_power_no_find() -> None:
    full = said(verified(power=power(at_rate(0.02, 16))))
    assert "missed" not in full
    assert "no proof" not in full
    for nothing in (None, power()):
        text = said(verified(power=nothing))
        assert "What could have been found was not measured: nothing was planted." in text
        assert "would have found" not in text


def test_plants_stronger_than_a_typical_latent_are_said_to_be() -> None:
    strong = said(verified(power=power(at_rate(0.02, 16), typical=0.08)))
    assert "Plants write 0.33 of the mean activation norm, a typical latent writes 0.08: features" in strong
    weak = said(verified(power=power(at_rate(0.02, 16), typical=0.5)))
    assert "harder" not in weak


def test_plants_in_known_directions_that_were_called_specific_are_counted() -> None:
    text = said(verified(power=power(at_rate(0.02, 16), wrong=5, planted=48)))
    assert "Of 48 plants in directions that both models already have, 5 were wrongly called" in text
    right = said(verified(power=power(at_rate(0.02, 16), planted=48)))
    assert "none were wrongly called" in right
    unseen = said(verified(power=power(at_rate(0.02, 0, n_recovered=0), planted=48)))
    assert "none were wrongly called" not in unseen
    assert "says little: no plant in a random direction got a latent." in unseen


def test_a_short_verification_says_that_seeds_were_not_compared() -> None:
    text = said(verified(is_short=True, power=power(at_rate(0.02, 16))))
    assert "Seeds were not compared" in text
    assert "other seeds, unlike" not in text
    others = [{"name": "real pair", "n_specific": n} for n in (0, 4)] + [{"name": "planted", "n_specific": 9}]
    assert "with other seeds, the pair has 0 and 4 latents called" in said(verified(others=others))


def test_rows_that_do_not_belong_together_leave_nothing_to_believe() -> None:
    alignment = {"message": "sources not aligned: R^2 0.020."}
    text = said(verified(counts=None, survivors=[], alignment=alignment))
    assert text.startswith("No verdict is given")
    assert "Sources not aligned: R^2 0.020." in text
    assert "crosscoder sees" not in text
    assert "found" not in text


def test_a_difference_that_is_hardly_explained_is_said_to_be() -> None:
    low = said(None, row(0.3))
    assert "sees only 30% of what changed" in low
    assert "on 5,000 held-out tokens" in low
    high = said(None, row(0.9))
    assert "only" not in high
    assert "sees 90% of what changed" in high
    assert "sees nothing of what changed in the activations: it explains -20%" in said(None, row(-0.2))
    assert "is not defined for these sources" in said(None, row(None))
    assert "was not measured" in said(None, row(0.9, text="story"))


def test_token_means_that_explain_as_much_and_the_worst_text_are_told() -> None:
    assert "one mean per token explains no less (95%)" in said(None, row(0.9, means=0.95))
    assert "one mean" not in said(None, row(0.9, means=None))
    rows = (row(0.9), row(0.3, text="drill"), row(0.95, text="story"), row(None, text="none"))
    assert "On drill it sees only 30%." in said(None, *rows)


def test_the_causal_share_is_that_of_the_text_where_it_is_most() -> None:
    rows = [patched(0.04, control(0), control(2)), patched(0.001, text="story")]
    text = said(verified(1, causal=rows))
    assert "closes 4% of the gap to distilled's output on trace, the most of 2 kinds of text" in text
    assert "(95% 1% to 6%)" in text
    assert "Of 10 random sets of latents 2 close as much." in text
    assert "none closes as much" in said(verified(1, causal=[patched(0.04, control(0))]))


@pytest.mark.parametrize(
    ("causal", "expected"),
    [
        ([], "Whether what survives changes what the model writes was not checked."),
        ([patched(0.01, low=-0.01)], "That cannot be told from no effect."),
        ([patched(0.04)], "It was not compared with random latents."),
        ([patched(0.04, control(0, unscalable=0.95))], "could not be scaled to its size"),
        ([patched(0.04) | {"low": None, "high": None}], "there is no interval."),
        ([patched(0.04) | {"set": "re-used"}], "was not checked."),
    ],
)
def test_an_effect_is_claimed_only_beside_its_comparison(causal: list[Any], expected: str) -> None:
    text = said(verified(1, causal=causal))
    assert expected in text
    assert "as much" not in text


def test_shares_that_only_round_to_nothing_or_all_say_so() -> None:
    assert "closes about 0% of" in said(verified(1, causal=[patched(0.0001, low=0.00005)]))
    assert "sees almost 100% of" in said(None, row(0.99999))
