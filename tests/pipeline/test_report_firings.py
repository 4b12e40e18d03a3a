"""Where latents fire, as the report shows it: against snippets, inspection and brute force."""

import itertools

import pytest
import torch

from crosscoders.crosscoder import Crosscoder
from crosscoders.kernels import SparseLatents
from crosscoders.pipeline.report.firings import Firings, read_firings
from crosscoders.pipeline.report.nearest import nearest_latents
from crosscoders.pipeline.report.places import choose_places
from crosscoders.pipeline.report.rows import choose_rows
from crosscoders.pipeline.report.shares import KeptHarvest, source_shares
from crosscoders.pipeline.report.windows import windows_around
from crosscoders.reasoning.snippets import quantile_snippets, top_snippets
from crosscoders.report.inspection import inspect_text
from tests.data.toy_harvester import ToyHarvester
from tests.data.toy_models import toy_tokenizer
from tests.pipeline.report_cases import (
    END_OF_TEXT,
    firings_of,
    tied_activations,
    toy_crosscoder,
    toy_sources,
    toy_text,
)


@pytest.mark.parametrize(("n_top", "n_quantile"), [(8, 4), (1, 3), (0, 0), (3, 0)])
def test_places_are_those_of_the_snippet_functions_for_every_latent(n_top: int, n_quantile: int) -> None:
    dense, (tokens, _) = tied_activations(), toy_text()
    places = choose_places(firings_of(dense), n_top=n_top, n_quantile=n_quantile)
    for latent, (first, stop) in enumerate(itertools.pairwise(places.ptr.tolist())):
        expected = top_snippets(dense[latent], tokens, toy_tokenizer(), n=n_top)
        n_expected_top = len(expected)
        expected += quantile_snippets(dense[latent], tokens, toy_tokenizer(), n=n_quantile)
        assert places.token[first:stop].tolist() == [20 * s.row + s.position for s in expected]
        assert (~places.is_quantile[first:stop]).sum() == n_expected_top
        assert places.latent[first:stop].tolist() == [latent] * (stop - first)


@pytest.mark.parametrize("is_masked", [True, False])
@pytest.mark.parametrize(("n_before", "n_after"), [(16, 7), (2, 0), (0, 3)])
def test_windows_and_their_activations_are_those_of_the_snippets(
    n_before: int, n_after: int, is_masked: bool
) -> None:
    dense, (tokens, mask) = tied_activations(), toy_text()
    dense = dense * mask if is_masked else dense  # else the marked token may be an end of text
    firings = firings_of(dense)
    places = choose_places(firings, n_top=8, n_quantile=0)
    windows = windows_around(
        places.token, tokens, n_before=n_before, n_after=n_after, end_of_text=END_OF_TEXT
    )
    shown = firings.at(places.latent.repeat_interleave(windows.length), windows.tokens())
    parts, found = shown.split(windows.length.tolist()), iter(range(len(places.token)))
    for latent in range(len(dense)):
        for snippet in top_snippets(
            dense[latent], tokens, toy_tokenizer(), n_before=n_before, n_after=n_after
        ):
            at = next(found)
            assert parts[at].tolist() == list(snippet.activations)
            assert windows.at[at] == snippet.at
            assert windows.start[at] == 20 * snippet.row + snippet.position - snippet.at
    assert next(found, None) is None


def test_without_an_end_of_text_windows_end_with_the_row() -> None:
    tokens, _ = toy_text()
    windows = windows_around(torch.tensor([0, 19, 25]), tokens, n_before=9, n_after=5, end_of_text=None)
    assert windows.start.tolist() == [0, 10, 20]
    assert windows.length.tolist() == [6, 10, 11]
    assert windows.at.tolist() == [0, 9, 5]


def test_the_histogram_counts_every_firing_in_equal_bins() -> None:
    dense = tied_activations()
    dense[5] *= torch.rand(dense[5].shape, generator=torch.Generator().manual_seed(0))
    found = firings_of(dense).histogram(n_bins=24)
    for latent, values in enumerate(dense):
        fired = values[values > 0].double()
        edges = torch.arange(1, 24).double() / 24
        bins = torch.bucketize(fired / fired.max(), edges, right=True) if len(fired) else fired.long()
        assert found[latent].tolist() == torch.bincount(bins, minlength=24).tolist()
    assert torch.equal(firings_of(dense).max_activation(), dense.flatten(1).amax(dim=1))


def dense_latents(crosscoder: Crosscoder, rows: torch.Tensor) -> torch.Tensor:
    latents = crosscoder.encode(rows)
    return latents.to_dense() if isinstance(latents, SparseLatents) else latents


@pytest.mark.parametrize("rows_at_a_time", [1, 5, 99])
def test_firings_are_the_encoders_positive_latents_on_counted_tokens(rows_at_a_time: int) -> None:
    sources, (tokens, mask) = toy_sources(), toy_text()
    crosscoder = toy_crosscoder(sources)
    found = read_firings(crosscoder, sources, tokens, mask=mask, rows_at_a_time=rows_at_a_time)
    with torch.no_grad():
        dense = dense_latents(crosscoder, sources.harvest(tokens).flatten(0, 1)) * mask.flatten()[:, None]
    expected = firings_of(dense.T.view(24, *tokens.shape).relu())
    assert torch.equal(found.ptr, expected.ptr)
    assert torch.equal(found.token, expected.token)
    torch.testing.assert_close(found.activation, expected.activation)
    assert found.n_counted == int(mask.sum())


@pytest.mark.parametrize("is_folded", [False, True])
@pytest.mark.parametrize("max_bytes", [1, 10**9])
def test_shares_are_the_encoder_rows_times_the_scaled_activations(is_folded: bool, max_bytes: int) -> None:
    sources, (tokens, mask) = toy_sources(), toy_text()
    crosscoder = toy_crosscoder(sources)
    plain = crosscoder
    crosscoder = crosscoder.fold() if is_folded else crosscoder
    firings = read_firings(crosscoder, sources, tokens, mask=mask, rows_at_a_time=4)
    places = choose_places(firings, n_top=8, n_quantile=4)
    windows = windows_around(places.token, tokens, n_before=16, n_after=7, end_of_text=END_OF_TEXT)
    kept = KeptHarvest(sources, n_tokens=tokens.numel(), max_bytes=max_bytes)
    found = source_shares(
        crosscoder, kept, tokens, windows=windows, latent=places.latent, rows_at_a_time=5, max_bytes=max_bytes
    )
    x = plain.normalize(sources.harvest(tokens).flatten(0, 1))
    token, latent = windows.tokens(), places.latent.repeat_interleave(windows.length)
    by_column = (plain.W_enc.detach()[latent] * x[token]).double()
    expected = torch.stack([by_column[:, :16].sum(dim=1), by_column[:, 16:].sum(dim=1)], dim=1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    fires = (firings.at(latent, token) > 0).nonzero().flatten()
    pre = found.sum(dim=1) + plain.b_enc.detach()[latent]
    torch.testing.assert_close(pre[fires], firings.at(latent, token)[fires], rtol=1e-4, atol=1e-5)


def test_shares_are_those_of_inspect_text() -> None:
    sources = toy_sources()
    crosscoder = toy_crosscoder(sources)
    tokens = torch.arange(4, 20)[None]
    text = toy_tokenizer().decode(tokens[0].tolist())
    inspected = inspect_text(crosscoder, sources, text=text, n_latents=24)
    firings = read_firings(crosscoder, sources, tokens, mask=tokens > 0, rows_at_a_time=1)
    windows = windows_around(firings.token, tokens, n_before=0, n_after=0, end_of_text=END_OF_TEXT)
    found = source_shares(
        crosscoder,
        sources,
        tokens,
        windows=windows,
        latent=firings.latent(),
        rows_at_a_time=1,
        max_bytes=2**20,
    )
    shown = {(at, a.latent): a for at, active in enumerate(inspected.active) for a in active}
    pairs = list(zip(firings.token.tolist(), firings.latent().tolist(), strict=True))
    assert sorted(pairs) == sorted(shown)
    assert len(pairs) > 30
    for pair, share, activation in zip(pairs, found.tolist(), firings.activation.tolist(), strict=True):
        assert share == pytest.approx(list(shown[pair].shares.values()), rel=1e-5, abs=1e-6)
        assert activation == pytest.approx(shown[pair].activation, rel=1e-5)


def test_activations_are_harvested_twice_only_if_they_are_too_many_to_keep() -> None:
    tokens = torch.arange(12).view(3, 4)
    for max_bytes, n_calls in ((10**6, 1), (10, 2)):
        harvester = ToyHarvester()
        kept = KeptHarvest(harvester, n_tokens=12, max_bytes=max_bytes)
        assert torch.equal(kept.harvest(tokens), kept.harvest(tokens))
        assert harvester.calls == n_calls


def test_rows_are_shared_evenly_among_the_kinds_of_text() -> None:
    origin = torch.tensor([0] * 30 + [1] * 5 + [2] * 15)[:, None].expand(-1, 10)
    counted = torch.ones(50, 10, dtype=torch.bool)
    counted[7] = False
    rows = choose_rows(counted, origin, n_tokens=250)
    assert rows.tolist() == sorted(set(rows.tolist()) - {7})
    assert torch.bincount(origin[rows, 0]).tolist() == [10, 5, 10]
    assert len(choose_rows(counted, origin, n_tokens=10**6)) == 49
    assert len(choose_rows(counted, origin, n_tokens=259)) == 25
    with pytest.raises(ValueError, match=r"n_tokens=9.*allow more"):
        choose_rows(counted, origin, n_tokens=9)


@pytest.mark.parametrize("is_folded", [False, True])
@pytest.mark.parametrize("max_bytes", [1, 10**9])
def test_nearest_latents_have_the_largest_cosines(is_folded: bool, max_bytes: int) -> None:
    crosscoder = toy_crosscoder(toy_sources())
    with torch.no_grad():
        crosscoder.W_dec.copy_(torch.randn(24, 48, generator=torch.Generator().manual_seed(0)))
        crosscoder.W_dec[[3, 9]] = 0
    rows = crosscoder.W_dec.detach().double()
    crosscoder = crosscoder.fold() if is_folded else crosscoder
    nearest, cosine = nearest_latents(crosscoder, n=22, max_bytes=max_bytes)
    assert nearest.shape == (24, 22)
    for latent in range(24):
        true = torch.nn.functional.cosine_similarity(rows[latent], rows, dim=1)
        others = [o for o in range(24) if o != latent and o not in (3, 9) and latent not in (3, 9)]
        others.sort(key=lambda other: -float(true[other]))
        n = len(others)
        assert nearest[latent, :n].tolist() == others
        torch.testing.assert_close(cosine[latent, :n].double(), true[others], rtol=1e-5, atol=1e-6)
        assert bool(cosine[latent, n:].isnan().all())
        assert not nearest[latent, n:].any()


def test_no_more_latents_are_near_than_there_are() -> None:
    nearest, cosine = nearest_latents(toy_crosscoder(toy_sources(), n_latents=4), n=8, max_bytes=2**20)
    assert nearest.shape == cosine.shape == (4, 3)


def test_nothing_that_fires_gives_no_places() -> None:
    silent: Firings = firings_of(torch.zeros(4, 2, 5))
    places = choose_places(silent, n_top=8, n_quantile=4)
    assert places.ptr.tolist() == [0] * 5
    assert len(places.token) == 0
    assert silent.histogram(n_bins=24).sum() == 0
    assert silent.at(torch.tensor([1]), torch.tensor([3])).tolist() == [0]
