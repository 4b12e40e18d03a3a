"""Swap readout: which model uses a latent, read with one model's activation in every slot."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.diffing.batches import MeasureBatch
from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.latents import nonzero_latents
from crosscoders.metrics import ExplainedVariance
from crosscoders.models.hooks import evaluation_mode
from crosscoders.sources import Source, column_slices, compared_pair, source_index

# A convention: below a tenth, what is left of a latent says more of the swap than of the model.
MIN_KEPT = 0.1


@dataclass(frozen=True, kw_only=True)
class SwapReadout:
    """Codes of each model on its own, counted latent by latent.

    Args:
        slots: Sources whose slots hold one model's activation at a time; one column of the tables each.
        pair: The two of them that `gained` and `lost` compare.
        n_tokens: Tokens read.
        n_joint: Tokens on which a latent fires as usual, with each source's own activation in its slot.
        n_swapped: Tokens on which it fires with this source's activation in every slot.
        n_kept: Those among them on which it fires as usual too.
        n_both: Tokens on which it fires under the swap of either of the pair.
        mean_joint: Mean activation as usual, over all tokens.
        mean_swapped: The same with this source's activation in every slot.
        explained_variance: Of each source as usual.
        explained_variance_swapped: Of each source, read from its own activation alone. Far below the other
            one, the readout says little: the crosscoder was never trained on such rows.
    """

    slots: tuple[str, ...]
    pair: tuple[str, str]
    n_tokens: int
    n_joint: Int[Tensor, " latent"]
    n_swapped: Int[Tensor, "latent source"]
    n_kept: Int[Tensor, "latent source"]
    n_both: Int[Tensor, " latent"]
    mean_joint: Float[Tensor, " latent"]
    mean_swapped: Float[Tensor, "latent source"]
    explained_variance: dict[str, float]
    explained_variance_swapped: dict[str, float]

    @property
    def kept(self) -> Float[Tensor, "latent source"]:
        """Share of a latent's usual tokens that each source's swap keeps; NaN for one that never fires."""
        return self.n_kept.double() / self.n_joint.double()[:, None]

    @property
    def is_readable(self) -> Bool[Tensor, " latent"]:
        """Whether the swap of at least one source keeps a tenth of the latent's tokens (`MIN_KEPT`).

        A latent that stops firing under every swap needs the activations of several sources together: the
        readout cannot say which of them uses it. Neither can it of one that never fires.
        """
        return (self.kept >= MIN_KEPT).any(dim=1)

    @property
    def gained(self) -> Float[Tensor, " latent"]:
        """Share of tokens on which only the second of the pair fires a latent, of those on which either does.

        NaN where the latent is not readable, or fires for neither.
        """
        return self._only(self.pair[1])

    @property
    def lost(self) -> Float[Tensor, " latent"]:
        """Share of tokens on which only the first of the pair fires a latent, of those on which either does.

        NaN where the latent is not readable, or fires for neither.
        """
        return self._only(self.pair[0])

    @property
    def rate_change(self) -> Float[Tensor, " latent"]:
        """(second - first) / larger of the firing rates under the pair's swaps; NaN as in `gained`."""
        first, second = (self._n(name) for name in self.pair)
        change = (second - first) / torch.maximum(first, second)
        return change.where(self.is_readable, torch.nan)

    @typed
    def explain(self, latent: int) -> str:
        """What the readout says of one latent, in a sentence.

        Args:
            latent: Index of the latent.

        Returns:
            One sentence.

        Raises:
            ValueError: No such latent.
        """
        if not 0 <= latent < len(self.n_joint):
            raise ValueError(f"SwapReadout.explain: latent {latent} is outside 0..{len(self.n_joint) - 1}.")
        joint = self._percent(self.n_joint[latent])
        alone = ", ".join(f"{n} {self._percent(k)}" for n, k in zip(self.slots, self.n_swapped[latent]))
        fires = f"latent {latent} fires on {joint} of tokens, and with one model in every slot on: {alone}"
        if self.n_joint[latent] == 0:
            return f"{fires}; it never fires as usual, so the swap says nothing of it"
        if not self.is_readable[latent]:
            return f"{fires}; it stops firing under every swap, so which model uses it cannot be read"
        gained, lost = float(self.gained[latent]), float(self.lost[latent])
        return f"{fires}; gained {gained:.0%}, lost {lost:.0%} from {self.pair[0]} to {self.pair[1]}"

    @typed
    def lines(self) -> list[str]:
        """How far to trust the readout: explained variance as usual and under swap, and readable latents."""
        live, readable = int((self.n_joint > 0).sum()), int(self.is_readable.sum())
        usual, swapped = self.explained_variance, self.explained_variance_swapped
        explained = [f"{n}: EV {usual[n]:.3f}, under swap {swapped[n]:.3f}" for n in self.slots]
        return [*explained, f"{readable} of {live} live latents are readable over {self.n_tokens} tokens"]

    def _n(self, name: str) -> Tensor:
        return self.n_swapped[:, self.slots.index(name)].double()

    def _only(self, name: str) -> Tensor:
        n_both = self.n_both.double()
        n_either = self._n(self.pair[0]) + self._n(self.pair[1]) - n_both
        return ((self._n(name) - n_both) / n_either).where(self.is_readable, torch.nan)

    def _percent(self, n: Tensor) -> str:
        return f"{int(n) / self.n_tokens:.2%}"


@torch.no_grad()
@typed
def swap_readout(
    crosscoder: Crosscoder,
    batches: Iterable[MeasureBatch],
    *,
    slots: Sequence[str] | None = None,
    pair: tuple[str, str] | None = None,
) -> SwapReadout:
    """Read each source on its own, by its activation in the slots of several sources.

    A joint code cannot say which model used a latent. So for each source s of `slots` the normalized
    activation of s stands in every slot t of them, x_t scale_t = x_s scale_s; the other sources keep their
    own. Codes are those of evaluation mode; the reconstruction of s is read from its own swap. Formula:
    Yu et al. 2026, arXiv 2609.35210, who keep a third model, the teacher, in its own slot.

    The crosscoder is left in the mode it had.

    Args:
        crosscoder: The crosscoder.
        batches: Held-out raw activations, read once.
        slots: Names of the sources, all of one width; None for all sources.
        pair: The two of `slots` that are compared; None for the first and the last.

    Returns:
        Counts and means per latent, and explained variance as usual and under swap.

    Raises:
        ValueError: Slots of unequal widths, fewer than two, repeated or unknown; a pair that is not in them;
            fewer than two tokens, or a source that does not vary.
    """
    chosen = _checked_slots(crosscoder.sources, slots)
    first, second = compared_pair(chosen, pair, where="swap_readout")
    counter = _Counter(crosscoder, chosen, (first.name, second.name))
    with evaluation_mode(crosscoder):
        for batch in batches:
            counter.update(batch.rows.to(crosscoder.W_enc.device))
    return counter.readout()


def _checked_slots(sources: Sequence[Source], slots: Sequence[str] | None) -> list[Source]:
    names = [source.name for source in sources] if slots is None else list(slots)
    chosen = [sources[source_index(sources, name)] for name in names]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"swap_readout: slots must name two or more different sources, got {names}.")
    widths = {source.name: source.d_model for source in chosen}
    if len(set(widths.values())) > 1:
        raise ValueError(
            f"swap_readout: one activation goes into every slot, but the widths differ: {widths}; name "
            "slots of one width, or take the free-direction fit, which needs no common space."
        )
    return chosen


class _Counter:
    """Counts as batches come in; sums of activations in float64."""

    def __init__(self, crosscoder: Crosscoder, slots: list[Source], pair: tuple[str, str]) -> None:
        n_latents, names = crosscoder.n_latents, [source.name for source in slots]
        self.crosscoder, self.slots, self.pair = crosscoder, slots, pair
        self.columns = column_slices(crosscoder.sources)
        self.usual, self.swapped = (ExplainedVariance(crosscoder.sources) for _ in range(2))
        self.n_tokens = 0
        self.n_joint, self.n_both = (torch.zeros(n_latents, dtype=torch.int64) for _ in range(2))
        self.n_swapped, self.n_kept = (
            {name: torch.zeros(n_latents, dtype=torch.int64) for name in names} for _ in range(2)
        )
        self.sum_joint = torch.zeros(n_latents, dtype=torch.float64)
        self.sum_swapped = {name: torch.zeros(n_latents, dtype=torch.float64) for name in names}

    def update(self, rows: Tensor) -> None:
        joint = self.crosscoder.encode(rows)
        usual = self.crosscoder.decode(joint)
        self.usual.update(rows, usual)
        joint_fires = _Fires(joint, n_rows=len(rows), n_latents=self.crosscoder.n_latents)
        self.n_joint += joint_fires.counts()
        self.sum_joint += joint_fires.sums()
        fires, alone = {}, usual.clone()
        for source in self.slots:
            latents = self.crosscoder.encode(self._with_own_in_every_slot(rows, source))
            columns = self.columns[source.name]
            alone[:, columns] = self.crosscoder.decode(latents)[:, columns]
            found = _Fires(latents, n_rows=len(rows), n_latents=self.crosscoder.n_latents)
            self.n_swapped[source.name] += found.counts()
            self.n_kept[source.name] += found.counts(among=joint_fires)
            self.sum_swapped[source.name] += found.sums()
            fires[source.name] = found
        self.n_both += fires[self.pair[0]].counts(among=fires[self.pair[1]])
        self.swapped.update(rows, alone)
        self.n_tokens += len(rows)

    def _with_own_in_every_slot(self, rows: Tensor, source: Source) -> Tensor:
        swapped, own = rows.clone(), rows[:, self.columns[source.name]]
        for slot in self.slots:
            swapped[:, self.columns[slot.name]] = own * (source.scale / slot.scale)
        return swapped

    def readout(self) -> SwapReadout:
        names = tuple(source.name for source in self.slots)
        usual, swapped = self.usual.compute(), self.swapped.compute()
        return SwapReadout(
            slots=names,
            pair=self.pair,
            n_tokens=self.n_tokens,
            n_joint=self.n_joint,
            n_swapped=torch.stack([self.n_swapped[name] for name in names], dim=1),
            n_kept=torch.stack([self.n_kept[name] for name in names], dim=1),
            n_both=self.n_both,
            mean_joint=self.sum_joint / self.n_tokens,
            mean_swapped=torch.stack([self.sum_swapped[name] / self.n_tokens for name in names], dim=1),
            explained_variance={name: usual[name] for name in names},
            explained_variance_swapped={name: swapped[name] for name in names},
        )


class _Fires:
    """Which latents fire on which tokens of a batch, and how much."""

    def __init__(self, latents: Tensor | SparseLatents, *, n_rows: int, n_latents: int) -> None:
        rows, self._latents, self._values = nonzero_latents(latents)
        is_active = self._values != 0
        rows, self._latents, self._values = rows[is_active], self._latents[is_active], self._values[is_active]
        self._places = rows * n_latents + self._latents
        self._n_latents, self._n_places = n_latents, n_rows * n_latents

    def counts(self, *, among: "_Fires | None" = None) -> Tensor:
        """Tokens on which each latent fires, perhaps only those on which it fires in `among` too."""
        latents = self._latents
        if among is not None:
            is_there = torch.zeros(self._n_places, dtype=torch.bool)
            is_there[among._places] = True
            latents = latents[is_there[self._places]]
        return torch.bincount(latents, minlength=self._n_latents)

    def sums(self) -> Tensor:
        """Sum of each latent's activations."""
        return torch.bincount(self._latents, weights=self._values.double(), minlength=self._n_latents)
