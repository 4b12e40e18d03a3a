"""Snippets of many latents at once, from one pass over held-out text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.reasoning.reading import LatentRows, read_latents
from crosscoders.reasoning.snippets import Snippet, make_snippet, quantile_middles
from crosscoders.row_stream import SupportsHarvest


@dataclass(frozen=True, kw_only=True)
class SnippetOptions:
    """How many snippets of each kind, and how long.

    Args:
        n_top: Most activating ones of a latent, at most one per row of text.
        n_quantile: One from the middle of each of so many quantiles of a random sample of its activations,
            the rows of the top ones left out.
        n_test: Random activating ones, from rows that none of the others shows, kept for scoring.
        n_random: Random counted tokens, whatever fires there, shared by all latents: base rates and
            non-activating contexts.
        n_before: Tokens shown before the marked one.
        n_after: Tokens shown after it.
        seed: Seed of the random choices.

    Raises:
        ValueError: A count out of range.
    """

    n_top: int = 8
    n_quantile: int = 4
    n_test: int = 8
    n_random: int = 256
    n_before: int = 16
    n_after: int = 7
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_top", "n_random"):
            if getattr(self, name) < 1:
                raise ValueError(f"SnippetOptions: {name} must be at least 1, got {getattr(self, name)}.")
        for name in ("n_quantile", "n_test", "n_before", "n_after"):
            if getattr(self, name) < 0:
                raise ValueError(f"SnippetOptions: {name} must not be negative, got {getattr(self, name)}.")

    @property
    def n_sampled(self) -> int:
        """Size of the random sample of firing tokens that quantile and test snippets are taken from."""
        return 8 * self.n_quantile + 2 * self.n_test + self.n_top


@dataclass(frozen=True, kw_only=True)
class LatentSnippets:
    """The snippets of one latent; no row of text occurs in two of the three kinds.

    Args:
        latent: Its number in the crosscoder.
        n_fired: Tokens on which it fired.
        top: Most activating ones, the strongest first.
        quantile: One from each quantile of its activations, the strongest first.
        test: Random activating ones, kept for scoring.
    """

    latent: int
    n_fired: int
    top: tuple[Snippet, ...]
    quantile: tuple[Snippet, ...]
    test: tuple[Snippet, ...]

    @property
    def shown(self) -> tuple[Snippet, ...]:
        """What an annotator gets to see: top, then quantile."""
        return self.top + self.quantile


@dataclass(frozen=True, kw_only=True)
class SnippetCollection:
    """Snippets of many latents, and random ones that they share.

    Args:
        latents: Snippets by latent.
        random: Random counted tokens as snippets, activations zero.
        silent: For each latent, in the order of `latents`, whether it fires nowhere in each random snippet.
    """

    latents: Mapping[int, LatentSnippets]
    random: tuple[Snippet, ...]
    silent: Bool[Tensor, "chosen _random"]

    @typed
    def non_activating(
        self, latent: int, *, n: int, generator: torch.Generator, hard: bool = False
    ) -> tuple[Snippet, ...]:
        """Random snippets in which a latent fires nowhere.

        Args:
            latent: A collected latent.
            n: Snippets wanted; fewer where fewer are silent.
            generator: Draws.
            hard: Take those that share most tokens with where the latent fires, which are harder to tell
                apart, rather than any.

        Returns:
            At most `n` snippets.

        Raises:
            KeyError: The latent was not collected.
        """
        if latent not in self.latents:
            raise KeyError(f"SnippetCollection: latent {latent} was not collected.")
        at = list(self.latents).index(latent)
        silent = self.silent[at].nonzero().flatten()
        order = silent[torch.randperm(len(silent), generator=generator)].tolist()
        if hard:
            known = self.latents[latent]
            own = {piece for snippet in known.shown + known.test for piece in snippet.pieces}
            order.sort(key=lambda index: -_shared(own, self.random[index]))
        return tuple(self.random[index] for index in order[:n])


@typed
def collect_snippets(
    crosscoder: Crosscoder,
    sources: SupportsHarvest,
    *,
    tokens: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"],
    latents: Int[Tensor, " chosen"],
    tokenizer: Any,
    options: SnippetOptions | None = None,
    rows_at_a_time: int = 32,
) -> SnippetCollection:
    """Gather the snippets of many latents in one pass over held-out text.

    Args:
        crosscoder: A trained crosscoder.
        sources: The models, each with its hook.
        tokens: Rows of held-out token ids.
        mask: Which tokens count.
        latents: Latents wanted.
        tokenizer: The tokenizer that made the ids.
        options: How many snippets and how long; the defaults if None.
        rows_at_a_time: Rows that go through the models together; their chosen latents are held densely.

    Returns:
        Snippets of each latent, and random ones.

    Raises:
        ValueError: No latent, a latent twice or out of range, or a mask that counts no token.
    """
    collector = SnippetCollector(
        crosscoder.n_latents, tokens=tokens, mask=mask, latents=latents, options=options or SnippetOptions()
    )
    for rows in read_latents(crosscoder, sources, tokens, mask=mask, rows_at_a_time=rows_at_a_time):
        collector.update(rows)
    return collector.finish(tokenizer)


class SnippetCollector:
    """Gathers snippets while rows of text go by; `collect_snippets` drives it over a whole text.

    The random sample of a latent's firing tokens is uniform: each firing token gets a random priority, and
    the highest ones stay.

    Args:
        n_latents: Latents of the crosscoder.
        tokens: All rows of text.
        mask: Which tokens count.
        latents: Latents wanted.
        options: How many snippets and how long.

    Raises:
        ValueError: No latent, a latent twice or out of range, or a mask that counts no token.
    """

    @typed
    def __init__(
        self,
        n_latents: int,
        *,
        tokens: Int[Tensor, "batch pos"],
        mask: Bool[Tensor, "batch pos"],
        latents: Int[Tensor, " chosen"],
        options: SnippetOptions,
    ) -> None:
        self.latents: list[int] = _checked(latents.tolist(), n_latents)
        self.tokens = tokens
        self.options = options
        self._generator = torch.Generator().manual_seed(options.seed)
        self._slot = torch.full((n_latents,), -1)
        self._slot[self.latents] = torch.arange(len(self.latents))
        self._n_fired = torch.zeros(len(self.latents), dtype=torch.int64)
        self._top = _Kept(len(self.latents), options.n_top, options)
        self._sample = _Kept(len(self.latents), options.n_sampled, options)
        self._random = self._random_places(mask)
        self._random_peak = torch.zeros(len(self.latents), len(self._random))

    @typed
    def update(self, rows: LatentRows) -> None:
        """Take in the latents of some rows.

        Args:
            rows: Rows that were not given before.
        """
        slot = self._slot[rows.latent]
        wanted = slot >= 0
        at = (slot[wanted], rows.row[wanted], rows.position[wanted])
        dense = torch.zeros(len(self.latents), *rows.tokens.shape)
        dense[at] = rows.activation[wanted]
        self._n_fired += torch.bincount(at[0], minlength=len(self.latents))
        peak, position = dense.max(dim=2)
        row = torch.arange(dense.shape[1]).expand_as(peak)
        self._top.offer(peak, row, position, dense=dense, first_row=rows.first_row)
        self._offer_sample(dense, at, rows.first_row)
        self._look_at_random(dense, rows.first_row)

    @typed
    def finish(self, tokenizer: Any) -> SnippetCollection:
        """The snippets of everything that was taken in.

        Args:
            tokenizer: The tokenizer that made the ids.

        Returns:
            Snippets of each latent, and random ones.
        """
        found = {latent: self._latent(slot, tokenizer) for slot, latent in enumerate(self.latents)}
        silent_window = [0.0] * (self.options.n_before + 1 + self.options.n_after)
        random = [self._snippet(place, silent_window, tokenizer) for place in self._random.tolist()]
        return SnippetCollection(latents=found, random=tuple(random), silent=self._random_peak == 0)

    def _random_places(self, mask: Tensor) -> Tensor:
        places = mask.nonzero()
        if not len(places):
            raise ValueError(
                "SnippetCollector: the mask counts no token; give text with tokens to measure on."
            )
        order = torch.randperm(len(places), generator=self._generator)
        return places[order[: self.options.n_random]]

    def _offer_sample(self, dense: Tensor, at: tuple[Tensor, ...], first_row: int) -> None:
        if self.options.n_sampled == self.options.n_top:  # neither quantiles nor tests are wanted
            return
        priority = torch.zeros_like(dense)
        priority[at] = 1 - torch.rand(len(at[0]), generator=self._generator)
        n = min(self.options.n_sampled, priority[0].numel())
        best, flat = priority.flatten(1).topk(n, dim=1)
        row, position = flat // dense.shape[2], flat % dense.shape[2]
        self._sample.offer(best, row, position, dense=dense, first_row=first_row)

    def _look_at_random(self, dense: Tensor, first_row: int) -> None:
        row = self._random[:, 0] - first_row
        here = ((row >= 0) & (row < dense.shape[1])).nonzero().flatten()
        if len(here):
            slots = torch.arange(len(self.latents))[:, None]
            windows = _windows(
                dense, slots, row[here][None], self._random[here, 1][None], options=self.options
            )
            self._random_peak[:, here] = windows.amax(dim=2)

    def _latent(self, slot: int, tokenizer: Any) -> LatentSnippets:
        top, sample = self._top.entries(slot), self._sample.entries(slot)
        rows = {place[0] for place, _ in top}
        fresh: list[tuple[tuple[int, int], list[float]]] = []
        for place, window in sample:  # the highest random priority first
            if place[0] not in rows:
                rows.add(place[0])
                fresh.append((place, window))
        n_test = min(self.options.n_test, len(fresh) // 2) if self.options.n_quantile else self.options.n_test
        test, rest = fresh[:n_test], fresh[n_test:]
        rest.sort(key=lambda entry: -entry[1][self.options.n_before])
        quantile = [rest[middle] for middle in quantile_middles(len(rest), self.options.n_quantile)]
        kinds = [
            tuple(self._snippet(place, window, tokenizer) for place, window in kind)
            for kind in (top, quantile, test)
        ]
        return LatentSnippets(
            latent=self.latents[slot],
            n_fired=int(self._n_fired[slot]),
            top=kinds[0],
            quantile=kinds[1],
            test=kinds[2],
        )

    def _snippet(self, place: Sequence[int], window: Sequence[float], tokenizer: Any) -> Snippet:
        row, position = place
        before = min(position, self.options.n_before)
        ids = self.tokens[row, position - before : position + 1 + self.options.n_after].tolist()
        start = self.options.n_before - before
        return make_snippet(
            ids, window[start : start + len(ids)], at=before, place=(row, position), tokenizer=tokenizer
        )


class _Kept:
    """For each latent the places with the highest keys so far, and the activations around them."""

    def __init__(self, n: int, size: int, options: SnippetOptions) -> None:
        self.options = options
        self.key = torch.zeros(n, size)
        self.place = torch.zeros(n, size, 2, dtype=torch.int64)
        self.window = torch.zeros(n, size, options.n_before + 1 + options.n_after)

    def offer(self, key: Tensor, row: Tensor, position: Tensor, *, dense: Tensor, first_row: int) -> None:
        """Candidates [chosen, any] with their keys (zero: none) and places in `dense` [chosen row pos]."""
        slots = torch.arange(len(key))[:, None]
        windows = _windows(dense, slots, row, position, options=self.options)
        all_keys = torch.cat([self.key, key], dim=1)
        self.key, best = all_keys.topk(self.key.shape[1], dim=1)
        place = torch.stack([row + first_row, position], dim=2)
        self.place = torch.cat([self.place, place], dim=1)[slots, best]
        self.window = torch.cat([self.window, windows], dim=1)[slots, best]

    def entries(self, slot: int) -> list[tuple[tuple[int, int], list[float]]]:
        """Place and window of each one kept, the highest key first."""
        places, windows = self.place[slot].tolist(), self.window[slot].tolist()
        n = int((self.key[slot] > 0).sum())
        return [((row, position), window) for (row, position), window in zip(places[:n], windows[:n])]


def _windows(
    dense: Tensor, slots: Tensor, row: Tensor, position: Tensor, *, options: SnippetOptions
) -> Tensor:
    """Activations around places: [chosen, places, window], zero outside of the row."""
    padded = torch.nn.functional.pad(dense, (options.n_before, options.n_after))
    offsets = torch.arange(options.n_before + 1 + options.n_after)
    return padded[slots[..., None], row[..., None], position[..., None] + offsets]


def _shared(own: set[str], snippet: Snippet) -> int:
    return len(own & set(snippet.pieces))


def _checked(latents: list[int], n_latents: int) -> list[int]:
    if not latents or len(set(latents)) != len(latents):
        raise ValueError(f"SnippetCollector: latents must be some and no repeats, got {latents[:10]}.")
    outside = [latent for latent in latents if not 0 <= latent < n_latents]
    if outside:
        raise ValueError(f"SnippetCollector: latents {outside[:10]} are not among 0..{n_latents - 1}.")
    return latents
