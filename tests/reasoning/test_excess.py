"""The excess of categories: against every relabeling there is, and how often it errs where there is none."""

import itertools

import pytest
import torch

from crosscoders.reasoning import category_excess, frequency_matched

SAME = torch.full((100,), 0.1, dtype=torch.float64)


def test_counts_and_shares_are_those_of_every_relabeling():
    """Two strata of six latents, three and two of them chosen: all 20 x 15 relabelings."""
    frequency = torch.tensor([0.001] * 6 + [0.1] * 6, dtype=torch.float64)
    named = [0, 1, 3, 7, 8, 9, 10]
    category_of = {latent: "deductive" if latent in named else None for latent in range(12)}
    chosen, controls = torch.tensor([0, 1, 2, 6, 7]), torch.tensor([3, 4, 5, 8, 9, 10, 11])
    found = category_excess(
        category_of, chosen=chosen, controls=controls, frequency=frequency, categories=(), stratum_size=6
    )[0]
    counts = sorted(
        len(set(low + high) & set(named))
        for low in itertools.combinations(range(6), 3)
        for high in itertools.combinations(range(6, 12), 2)
    )
    assert (found.n, found.found) == (5, 3)
    assert found.expected == pytest.approx(sum(counts) / len(counts))
    assert found.p_more == pytest.approx(sum(count >= 3 for count in counts) / len(counts))
    assert found.p_fewer == pytest.approx(sum(count <= 3 for count in counts) / len(counts))
    assert (found.low, found.high) == (counts[int(0.025 * 300)], counts[int(0.975 * 300)])


def test_one_named_latent_among_many_is_no_finding():
    """None of the controls has the category: one chosen latent that has it may well be any of them."""
    category_of = {latent: "deductive" if latent == 0 else None for latent in range(60)}
    found = category_excess(
        category_of, chosen=torch.arange(20), controls=torch.arange(20, 60), frequency=SAME,
        categories=("deductive",),
    )  # fmt: skip
    assert [c.category for c in found] == ["any", "deductive"]
    assert found[0].verdict == "as many"
    assert found[0].p_more == pytest.approx(20 / 60)


def test_chosen_latents_that_stand_out_are_said_to_be_more_and_the_others_fewer():
    frequency = torch.logspace(-3, -1, 100, dtype=torch.float64)
    chosen, controls = torch.arange(0, 100, 3), torch.tensor([k for k in range(100) if k % 3])
    for of_chosen, of_controls, verdict in (("a", None, "more"), (None, "a", "fewer")):
        category_of = dict.fromkeys(chosen.tolist(), of_chosen)
        category_of |= dict.fromkeys(controls.tolist(), of_controls)
        found = category_excess(
            category_of, chosen=chosen, controls=controls, frequency=frequency, categories=("a", "b")
        )
        assert [c.verdict for c in found] == [verdict, verdict, "as many"]
        assert found[2].p_more == found[2].p_fewer == pytest.approx(1.0)


def test_a_latent_cannot_be_chosen_and_a_control():
    with pytest.raises(ValueError, match="both"):
        category_excess(
            {0: None, 1: None}, chosen=torch.tensor([0, 1]), controls=torch.tensor([1]), frequency=SAME,
            categories=(),
        )  # fmt: skip


@pytest.mark.parametrize("n_latents", [pytest.param(1000, marks=pytest.mark.slow), 400])
def test_it_errs_no_more_often_than_it_says(n_latents):
    """Chosen latents and categories both go with the frequency and with nothing else in common."""
    generator = torch.Generator().manual_seed(0)
    n_choices, n_each, n_more, n_fewer = 20, 20, 0, 0
    for _ in range(n_choices):
        place = torch.rand(n_latents, generator=generator, dtype=torch.float64)
        frequency = 10 ** (-4 + 3 * place)
        score = torch.rand(n_latents, generator=generator, dtype=torch.float64) + 0.5 * place
        chosen = score.topk(min(100, n_latents // 4)).indices
        pool = torch.ones(n_latents, dtype=torch.bool).index_fill(0, chosen, False).nonzero().flatten()
        controls = frequency_matched(frequency, chosen, pool, generator=generator, n_matches=8).unique()
        for _ in range(n_each):
            named = torch.rand(n_latents, generator=generator) < 0.05 + 0.25 * place
            category_of = {latent: "a" if has else None for latent, has in enumerate(named.tolist())}
            found = category_excess(
                category_of, chosen=chosen, controls=controls, frequency=frequency, categories=()
            )[0]
            n_more += found.verdict == "more"
            n_fewer += found.verdict == "fewer"
    n_tables = n_choices * n_each
    noise = 3 * (0.025 * 0.975 / n_tables) ** 0.5
    assert n_more / n_tables <= 0.025 + noise
    assert n_fewer / n_tables <= 0.025 + noise
