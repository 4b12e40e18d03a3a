"""Choosing latents to ablate, and their controls."""

import pytest
import torch
from torch.testing import assert_close

from crosscoders.interventions.ablation.latent_sets import (
    identity_donors,
    matched_random_sets,
    shuffled_identity,
    target_energy,
    threshold_set,
)
from crosscoders.interventions.ablation.occurrences import Occurrences
from tests.interventions.ablation_cases import (
    COLUMNS,
    SILENT,
    TOKENS,
    at,
    codes_by_hand,
    toy_crosscoder,
    toy_sources,
)

NAN = float("nan")


def test_the_set_is_above_the_threshold_and_among_the_most_frequent() -> None:
    nrn = torch.tensor([0.9, 0.4, 0.6, NAN, 0.7, 0.8, 0.5, 0.55])
    frequency = torch.tensor([0.1, 0.9, 0.5, 0.8, 0.0, 0.05, 0.6, 0.2])
    # Seven fire; in order of frequency: 1, 3, 6, 2, 7, 0, 5. Above 0.5 and firing: 2, 7, 0, 5.
    assert threshold_set(nrn, frequency, top_percent=50).tolist() == [2]
    assert threshold_set(nrn, frequency, top_percent=100).tolist() == [0, 2, 5, 7]
    assert threshold_set(nrn, frequency, top_percent=50, of="thresholded").tolist() == [2, 7]
    assert threshold_set(nrn, frequency, top_percent=1).tolist() == []
    assert threshold_set(nrn, frequency, top_percent=1, nrn_above=0.0).tolist() == [1]
    assert threshold_set(nrn, frequency, top_percent=1, of="thresholded").tolist() == [2]


def test_a_percentage_is_of_the_latents_that_fire() -> None:
    frequency = torch.cat([torch.linspace(0.01, 0.5, 1000), torch.zeros(500)])
    nrn = torch.full((1500,), 0.6)
    sizes = [len(threshold_set(nrn, frequency, top_percent=k)) for k in (0.5, 5, 20, 100)]
    assert sizes == [5, 50, 200, 1000]


def test_energy_is_what_the_latents_write_before_the_targets() -> None:
    crosscoder, sources = toy_crosscoder(), toy_sources()
    places = ((0, 3), (2, 8), (0, 7))
    energy = target_energy(crosscoder, sources, TOKENS, at(*places), batch_size=2)
    f = codes_by_hand(crosscoder, sources.harvest(TOKENS))
    squares = sum(f[row, position - 1].square() for row, position in places)
    for source, columns in enumerate(COLUMNS.values()):
        norms = crosscoder.W_dec.detach().double()[:, columns].square().sum(dim=1)
        assert_close(energy[:, source], squares * norms, rtol=1e-5, atol=1e-8)
    assert energy[SILENT].tolist() == [0, 0]
    assert_close(target_energy(crosscoder.fold(), sources, TOKENS, at(*places)), energy, rtol=1e-5, atol=1e-8)


def population(n: int = 400, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    frequency = torch.exp(-4 * torch.rand(n, generator=generator))
    energy = torch.exp(3 * torch.randn(n, generator=generator)).double()
    frequency[:20] = 0.0
    energy[20:60] = 0.0
    return frequency, energy


def test_matched_sets_never_overlap_the_set_and_match_it(generator: torch.Generator) -> None:
    frequency, energy = population()
    latents = torch.arange(50, 90)
    matched = matched_random_sets(
        latents, frequency=frequency, energy=energy, n_draws=6, generator=generator, max_ratio=8.0
    )
    for i, draw in enumerate(matched.draws):
        assert not set(draw.tolist()) & set(latents.tolist())
        assert len(draw.unique()) == len(draw) == 40 - matched.n_unmatched[i]
        assert bool((frequency[draw] > 0).all())
        assert_close(matched.energy_ratio[i], float(energy[draw].sum() / energy[latents].sum()))
        assert_close(matched.frequency_ratio[i], float(frequency[draw].sum() / frequency[latents].sum()))
        assert 0.5 < matched.frequency_ratio[i] < 2
        assert int((energy[draw] == 0).sum()) == 10  # latents 50 to 59 have none either
    assert len({tuple(draw.tolist()) for draw in matched.draws}) == 6
    again = matched_random_sets(
        latents, frequency=frequency, energy=energy, n_draws=6, max_ratio=8.0,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(matched.draws, again.draws, strict=True))


def test_a_partner_is_one_of_the_nearest_within_the_ratio(generator: torch.Generator) -> None:
    frequency = torch.tensor([0.1, 0.1, 0.1, 0.39, 0.41, 0.1])
    energy = torch.tensor([1.0, 1.1, 3.0, 1.0, 1.0, 100.0]).double()
    only = {"frequency": frequency, "energy": energy, "n_draws": 20, "generator": generator}
    first = torch.tensor([0])
    nearest = matched_random_sets(first, **only, n_nearest=1)
    assert {int(draw) for draw in nearest.draws} == {1}
    wide = matched_random_sets(first, **only, n_nearest=9)
    assert {int(draw) for draw in wide.draws} == {1, 2, 3}
    lonely = matched_random_sets(torch.tensor([5]), **only)
    assert set(lonely.n_unmatched) == {1}
    assert all(len(draw) == 0 for draw in lonely.draws)
    assert lonely.energy_ratio[0] == 0


def test_a_set_without_energy_has_no_energy_ratio(generator: torch.Generator) -> None:
    frequency, energy = population()
    found = matched_random_sets(
        torch.arange(20, 25), frequency=frequency, energy=energy, n_draws=1, generator=generator
    )
    assert found.energy_ratio[0] != found.energy_ratio[0]
    assert bool((energy[found.draws[0]] == 0).all())


def test_shuffled_rows_keep_each_norm_and_take_others_directions(generator: torch.Generator) -> None:
    crosscoder, latents = toy_crosscoder(), torch.tensor([2, 9, 15])
    frequency = torch.full((20,), 0.1)
    frequency[SILENT] = 0
    rows = shuffled_identity(crosscoder, latents, frequency=frequency, generator=generator)
    own = crosscoder.W_dec.detach()
    donors = torch.tensor([i for i in range(20) if i not in (2, 9, 15, SILENT)])
    chosen = []
    for columns in COLUMNS.values():
        assert_close(rows[:, columns].norm(dim=1), own[latents][:, columns].norm(dim=1))
        cosine = torch.cosine_similarity(rows[:, None, columns], own[donors][None, :, columns], dim=2)
        assert_close(cosine.max(dim=1).values, torch.ones(3))
        chosen.append(cosine.argmax(dim=1).tolist())
    assert chosen[0] == chosen[1]  # one other latent in both sources
    assert len(set(chosen[0])) == 3
    again = shuffled_identity(
        crosscoder, latents, frequency=frequency, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(rows, again)


def test_bad_input_says_what_is_wrong(generator: torch.Generator) -> None:
    f, e, one = torch.full((4,), 0.5), torch.ones(4).double(), torch.tensor([0])
    for percent in (0, 101, NAN):
        with pytest.raises(ValueError, match="top_percent must lie above 0"):
            threshold_set(f, f, top_percent=percent)
    with pytest.raises(ValueError, match="nrn_above"):
        threshold_set(f, f, top_percent=5, nrn_above=1.5)
    with pytest.raises(ValueError, match="frequencies must lie in"):
        threshold_set(f, 3 * f, top_percent=5)
    with pytest.raises(ValueError, match="at least 1, got 0, 5 and 4"):
        matched_random_sets(one, frequency=f, energy=e, n_draws=0, generator=generator)
    with pytest.raises(ValueError, match="energies must be finite"):
        matched_random_sets(one, frequency=f, energy=-e, n_draws=1, generator=generator)
    with pytest.raises(ValueError, match=r"outside 0\.\.3"):
        matched_random_sets(torch.tensor([4]), frequency=f, energy=e, n_draws=1, generator=generator)
    few = torch.full((20,), 0.1) * (torch.arange(20) < 2)
    with pytest.raises(ValueError, match=r"no other latent fires and has a direction in every source"):
        shuffled_identity(toy_crosscoder(), torch.tensor([0, 1]), frequency=few, generator=generator)


def test_few_others_lend_their_directions_more_than_once(generator: torch.Generator) -> None:
    crosscoder, latents = toy_crosscoder(), torch.tensor([0, 1, 2])
    few = torch.full((20,), 0.1) * (torch.arange(20) < 5)
    assert identity_donors(crosscoder, latents, frequency=few).tolist() == [3, 4]
    rows = shuffled_identity(crosscoder, latents, frequency=few, generator=generator)
    own = crosscoder.W_dec.detach()
    for columns in COLUMNS.values():
        assert_close(rows[:, columns].norm(dim=1), own[latents][:, columns].norm(dim=1))
        cosine = torch.cosine_similarity(rows[:, None, columns], own[None, 3:5, columns], dim=2)
        assert_close(cosine.max(dim=1).values, torch.ones(3))


def test_an_empty_set_has_empty_controls(generator: torch.Generator) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    frequency, energy = population()
    matched = matched_random_sets(none, frequency=frequency, energy=energy, n_draws=2, generator=generator)
    assert [len(draw) for draw in matched.draws] == [0, 0] == list(matched.n_unmatched)
    assert shuffled_identity(toy_crosscoder(), none, frequency=torch.ones(20), generator=generator).shape == (
        0,
        24,
    )
    empty = Occurrences(rows=none, positions=none, n_available=0, n_asked=1)
    assert float(target_energy(toy_crosscoder(), toy_sources(), TOKENS, empty).sum()) == 0
