"""Snippets: one pass over text finds what a dense look at everything finds."""

import pytest
import torch

from crosscoders.reasoning import (
    Snippet,
    SnippetOptions,
    collect_snippets,
    quantile_snippets,
    read_latents,
    top_snippets,
)
from crosscoders.reasoning.snippets import quantile_middles, token_pieces
from tests.data.toy_models import toy_tokenizer
from tests.reasoning.toy_text import END, N_LATENTS, dense_latents, toy_crosscoder, toy_rows, toy_sources

OPTIONS = SnippetOptions(n_top=5, n_quantile=3, n_test=4, n_random=40, n_before=4, n_after=2)
LATENTS = torch.tensor([7, 2, 11, 3])


@pytest.fixture(scope="module")
def toy():
    sources = toy_sources()
    crosscoder = toy_crosscoder(sources)
    tokens, mask = toy_rows()
    return crosscoder, sources, tokens, mask, dense_latents(crosscoder, sources, tokens, mask)


def collected(toy, *, options=OPTIONS, rows_at_a_time=7, latents=LATENTS):
    crosscoder, sources, tokens, mask, _ = toy
    return collect_snippets(
        crosscoder, sources, tokens=tokens, mask=mask, latents=latents, tokenizer=toy_tokenizer(),
        options=options, rows_at_a_time=rows_at_a_time,
    )  # fmt: skip


def close(found: Snippet, expected: Snippet) -> bool:
    same = (found.pieces, found.at, found.row, found.position) == (
        expected.pieces, expected.at, expected.row, expected.position,
    )  # fmt: skip
    return same and torch.allclose(
        torch.tensor(found.activations), torch.tensor(expected.activations), atol=1e-5
    )


def test_reading_gives_every_counted_activation_once(toy):
    crosscoder, sources, tokens, mask, dense = toy
    seen = torch.zeros_like(dense)
    for rows in read_latents(crosscoder, sources, tokens, mask=mask, rows_at_a_time=7):
        seen[rows.first_row + rows.row, rows.position, rows.latent] += rows.activation
    torch.testing.assert_close(seen, dense, atol=1e-5, rtol=0)


def test_collected_top_snippets_are_those_of_a_dense_look(toy):
    tokens, dense = toy[2], toy[4]
    found = collected(toy)
    assert list(found.latents) == LATENTS.tolist()
    for latent, snippets in found.latents.items():
        expected = top_snippets(
            dense[..., latent], tokens, toy_tokenizer(), n=OPTIONS.n_top, n_before=4, n_after=2
        )
        assert snippets.n_fired == int((dense[..., latent] > 0).sum())
        assert len(snippets.top) == len(expected)
        assert all(close(a, b) for a, b in zip(snippets.top, expected, strict=True))


def test_every_collected_snippet_shows_the_text_and_activations_of_its_place(toy):
    tokens, dense = toy[2], toy[4]
    for latent, snippets in collected(toy).latents.items():
        for s in snippets.shown + snippets.test:
            start = s.position - s.at
            ids = tokens[s.row, start : start + len(s.pieces)]
            assert END not in ids
            assert "".join(s.pieces) == toy_tokenizer().decode(ids.tolist())
            values = dense[s.row, start : start + len(s.pieces), latent]
            torch.testing.assert_close(torch.tensor(s.activations), values, atol=1e-5, rtol=0)
            assert s.activation == s.activations[s.at] > 0


def test_the_three_kinds_share_no_row(toy):
    for snippets in collected(toy).latents.values():
        rows = [s.row for s in snippets.shown + snippets.test]
        assert len(set(rows)) == len(rows)
        assert 2 <= len(snippets.quantile) <= 3  # one of them fires in few rows
        assert sorted(snippets.quantile, key=lambda s: -s.activation) == list(snippets.quantile)


def test_rows_at_a_time_does_not_change_the_top_and_a_seed_fixes_the_rest(toy):
    one, other = collected(toy, rows_at_a_time=1), collected(toy, rows_at_a_time=1)
    assert one.latents == other.latents
    assert one.random == other.random
    whole = collected(toy, rows_at_a_time=100)
    for latent in one.latents:
        assert [s.row for s in one.latents[latent].top] == [s.row for s in whole.latents[latent].top]


def test_non_activating_snippets_are_silent_everywhere(toy, generator):
    dense, found = toy[4], collected(toy)
    for at, latent in enumerate(found.latents):
        for index, s in enumerate(found.random):
            window = dense[s.row, max(0, s.position - 4) : s.position + 3, latent]
            assert bool(found.silent[at, index]) == bool((window == 0).all())
        for s in found.non_activating(latent, n=6, generator=generator):
            assert found.silent[at, found.random.index(s)]


def test_hard_negatives_share_more_tokens_with_where_the_latent_fires(toy):
    found, latent = collected(toy), int(LATENTS[0])
    own = {p for s in found.latents[latent].shown + found.latents[latent].test for p in s.pieces}
    overlap = [
        [len(own & set(s.pieces)) for s in found.non_activating(latent, n=4, generator=seed, hard=hard)]
        for hard, seed in ((True, torch.Generator()), (False, torch.Generator()))
    ]
    assert min(overlap[0]) >= max(0, sorted(overlap[1])[0])
    assert sum(overlap[0]) > sum(overlap[1])


def test_the_sample_behind_quantiles_and_tests_is_uniform(toy):
    """Every firing row outside of the top is a test snippet equally often."""
    options = [SnippetOptions(n_top=1, n_quantile=0, n_test=2, n_random=1, seed=s) for s in range(60)]
    drawn = torch.zeros(30)
    for option in options:
        for s in collected(toy, options=option, rows_at_a_time=30, latents=LATENTS[:1]).latents[7].test:
            drawn[s.row] += 1
    fired = (toy[4][..., 7] > 0).sum(dim=1)
    top_row = int(toy[4][..., 7].amax(dim=1).argmax())
    assert drawn[top_row] == 0
    assert bool((drawn[fired == 0] == 0).all())
    often, seldom = drawn[fired >= 3].mean(), drawn[fired == 1].mean()
    assert often > seldom  # tokens are drawn, not rows


def test_quantile_snippets_are_the_middles_of_equal_parts():
    values = torch.tensor([[0.0, 8, 1, 7], [2, 6, 3, 5], [4, -1, 0, 0]])
    tokens = torch.arange(4, 16).view(3, 4)
    found = quantile_snippets(values, tokens, toy_tokenizer(), n=4)
    assert [s.activation for s in found] == [7, 5, 3, 1]
    assert [s.token.strip() for s in found] == ["w7", "w11", "w10", "w6"]


@pytest.mark.parametrize(("n_items", "n_parts"), [(8, 4), (9, 2), (3, 5), (0, 3), (1, 1)])
def test_quantile_middles_are_spread_evenly(n_items, n_parts):
    middles = quantile_middles(n_items, n_parts)
    assert len(middles) == len(set(middles)) == min(n_items, n_parts)
    for part, middle in enumerate(middles):
        assert part * n_items / len(middles) <= middle < (part + 1) * n_items / len(middles)


class ByteTokenizer:
    eos_token_id = 0

    def decode(self, ids):
        return bytes(ids).decode("utf-8", errors="replace")


def test_a_character_of_several_tokens_belongs_to_the_one_that_completes_it():
    ids = list("a\u00e9\u4e2db".encode())
    pieces = token_pieces(ids, ByteTokenizer())
    assert pieces == ("a", "", "\u00e9", "", "", "\u4e2d", "b")


def test_snippet_text_is_one_line_and_marks_what_is_asked():
    snippet = Snippet(
        activation=2.0, pieces=("a", "\n", " b"), activations=(0.0, 1.0, 2.0), at=2, row=0, position=2
    )
    assert (snippet.before, snippet.token, snippet.after) == ("a\\n", " b", "")
    assert str(snippet) == "   2.00  a\\n[[ b]]"
    assert snippet.marked({0, 1}) == "[[a]][[\\n]] b"


@pytest.mark.parametrize("latents", [[], [1, 1], [N_LATENTS]])
def test_latents_that_cannot_be_collected_are_refused(toy, latents):
    with pytest.raises(ValueError, match="latents"):
        collected(toy, latents=torch.tensor(latents, dtype=torch.int64))


def test_a_mask_without_a_token_is_refused(toy):
    crosscoder, sources, tokens, mask, _ = toy
    with pytest.raises(ValueError, match="no token"):
        list(read_latents(crosscoder, sources, tokens, mask=torch.zeros_like(mask)))
