"""Whether the rows of two sources belong to the same tokens: the trap that voids every other measure."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.diffing.batches import MeasureBatch
from crosscoders.sources import Source, check_activations, column_slices, compared_pair

# Ridge penalty per row on standardized columns: the share of a column's variance that is treated as noise.
_PENALTY = 0.01
# Share of the variance that right pairs must explain beyond wrong ones. Rows in random order reach a gain of
# 0.07 at most over 60 draws of 400 rows (sd 0.02 or less for widths 2 to 256), and less with more rows.
_MIN_GAIN = 0.1
_MIN_ROWS_PER_HALF = 200
_PAIRINGS = ("paired", "permuted", "next", "previous")


@final
@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How well each of two sources is predicted from the other, beside rows that are paired wrongly.

    Each pair of numbers is (second source from the first, first from the second).

    Args:
        pair: Names of the two sources.
        n_rows: Rows that were used.
        r_squared: Held-out R^2 of the rows as they were given.
        permuted: The same with the second source's rows permuted within their batch.
        shifted: The same with each row paired to its neighbor in the sequence, before or after, whichever
            explains more; NaN if no sequence has two rows.
        min_gain: By how much `r_squared` must exceed the other two.
    """

    pair: tuple[str, str]
    n_rows: int
    r_squared: tuple[float, float]
    permuted: tuple[float, float]
    shifted: tuple[float, float]
    min_gain: float

    @property
    def gain(self) -> tuple[float, float]:
        """`r_squared` minus the larger of `permuted` and `shifted` (where defined), in each direction."""
        first, second = (
            paired - (permuted if math.isnan(shifted) else max(permuted, shifted))
            for paired, permuted, shifted in zip(self.r_squared, self.permuted, self.shifted)
        )
        return first, second

    @property
    def is_aligned(self) -> bool:
        """Whether the rows as given explain `min_gain` more than wrong pairs do, in both directions."""
        return all(gain >= self.min_gain for gain in self.gain)

    @property
    def message(self) -> str:
        """One line with the finding and its figures; what to look for where the sources are not aligned."""
        first, second = self.pair
        figures = "; ".join(
            f"{start} to {end}: held-out R^2 {paired:.3f}, permuted rows {permuted:.3f}, "
            f"neighboring rows {shifted:.3f}"
            for (start, end), paired, permuted, shifted in zip(
                ((first, second), (second, first)), self.r_squared, self.permuted, self.shifted
            )
        )
        if self.is_aligned:
            return f"sources aligned: {figures} ({self.n_rows} rows)."
        return (
            f"sources not aligned: {figures} ({self.n_rows} rows); the right pairs must explain "
            f"{self.min_gain:g} more than wrong ones. Check that every source read the same tokens in the "
            "same order and that nothing shuffled one of them alone; or they have nothing linear in common."
        )


@typed
def alignment(
    batches: Iterable[MeasureBatch],
    sources: Sequence[Source],
    *,
    generator: torch.Generator,
    pair: tuple[str, str] | None = None,
    min_gain: float = _MIN_GAIN,
) -> Alignment:
    """Check that two sources' rows are of the same tokens, before anything else is believed.

    Crosscoders, latent scaling and every measure built on them compare what two models do on one token. If
    the rows of one source are out of order, by one token or altogether, each source gets latents of its own,
    which pass the gates for model-specific latents like true ones. A linear map sees it at once: right pairs
    are predictable from each other, wrong ones much less. Needs no common space, so widths may differ.

    Ridge regression of all columns, standardized to unit variance, W = (X'X + 0.01 n I)^-1 X'Y, fitted on
    even sequences and scored on odd ones and the other way round; R^2 = 1 - sum |y - yhat|^2 /
    sum |y - mean|^2 with both halves in both sums (Hoerl & Kennard 1970, two-fold cross-validation). Columns
    that are constant are left out. Memory is 8 matrices [d, d] in float64, d the sum of both widths.

    Args:
        batches: Raw activations with the sequence of each row, its rows in the order of the text. A row that
            is alone among the even or the odd sequences of its batch cannot be permuted and is left out.
        sources: Sources in the order of the columns.
        generator: Draws the permutations, on the CPU.
        pair: Names of the sources to compare; None for the first and the last.
        min_gain: What right pairs must explain beyond wrong ones, as a share of the variance.

    Returns:
        The figures; `is_aligned` and `message` say what they mean.

    Raises:
        ValueError: An unknown source, a source against itself, fewer than 200 rows in the even or in the odd
            sequences, values that are not finite, or a source that is constant.
    """
    first, second = compared_pair(sources, pair, where="alignment")
    slices = column_slices(sources)
    columns = (slices[first.name], slices[second.name])
    grams = _Grams(first.d_model + second.d_model)
    for batch in batches:
        rows = check_activations(batch.rows, sources, where="alignment").double()
        for half in (0, 1):
            chosen = (batch.sequence % 2 == half).nonzero().squeeze(1)
            pairings = _pairings(rows[chosen], batch.sequence[chosen], columns=columns, generator=generator)
            for pairing, pairs in pairings:
                grams.add(pairs, pairing=pairing, half=half)
    grams.check()
    found = {pairing: grams.r_squared(pairing, width=first.d_model) for pairing in _PAIRINGS}
    shifted = [max(ends) for ends in zip(found["next"], found["previous"])]
    return Alignment(
        pair=(first.name, second.name),
        n_rows=grams.n_rows,
        r_squared=found["paired"],
        permuted=found["permuted"],
        shifted=(shifted[0], shifted[1]),
        min_gain=min_gain,
    )


def _pairings(
    rows: Tensor, sequence: Tensor, *, columns: tuple[slice, slice], generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    """Both sources side by side, row by row: as given, permuted without a fixed point, and shifted by one."""
    if len(rows) < 2:
        return
    x, y = rows[:, columns[0]], rows[:, columns[1]]
    cycle = torch.randperm(len(rows), generator=generator).to(rows.device)
    yield "paired", torch.cat([x, y], dim=1)
    yield "permuted", torch.cat([x[cycle], y[cycle.roll(1)]], dim=1)
    is_inside = sequence[1:] == sequence[:-1]
    yield "next", torch.cat([x[:-1], y[1:]], dim=1)[is_inside]
    yield "previous", torch.cat([x[1:], y[:-1]], dim=1)[is_inside]


class _Grams:
    """Sums of products [1 x y]'[1 x y] per pairing and half: all that a ridge regression needs."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._sums: dict[tuple[str, int], Tensor] = {}

    @property
    def n_rows(self) -> int:
        return sum(self._n("paired", half) for half in (0, 1))

    def add(self, pairs: Tensor, *, pairing: str, half: int) -> None:
        z = torch.cat([pairs.new_ones(len(pairs), 1), pairs], dim=1)
        key = (pairing, half)
        if key not in self._sums:
            self._sums[key] = pairs.new_zeros(self._width + 1, self._width + 1)
        self._sums[key].addmm_(z.T, z)

    def check(self) -> None:
        counts = [self._n("paired", half) for half in (0, 1)]
        if min(counts) < _MIN_ROWS_PER_HALF:
            raise ValueError(
                f"alignment: needs {_MIN_ROWS_PER_HALF} rows or more in the even and in the odd sequences, "
                f"got {counts[0]} and {counts[1]}; pass more sequences."
            )
        if not all(bool(total.isfinite().all()) for total in self._sums.values()):
            raise ValueError("alignment: the activations hold NaN or infinity, or overflow float64 squared.")

    def r_squared(self, pairing: str, *, width: int) -> tuple[float, float]:
        """Second source from the first, and first from the second; NaN without enough pairs."""
        if min(self._n(pairing, half) for half in (0, 1)) < 2:
            return math.nan, math.nan
        n, moments = self._standardized_by()
        use = moments > 1e-12 * (self._total().diagonal()[1:] / n)
        if not bool(use[:width].any() and use[width:].any()):
            raise ValueError("alignment: a source is constant over all rows, so nothing can be predicted.")
        std, n_first = moments[use].sqrt(), int(use[:width].sum())
        first, second = slice(0, n_first), slice(n_first, None)
        kept = torch.cat([use.new_ones(1), use]).nonzero().squeeze(1)
        halves = [self._sums[pairing, half][kept][:, kept] for half in (0, 1)]
        return _ridge(halves, std, inputs=first, targets=second), _ridge(
            halves, std, inputs=second, targets=first
        )

    def _n(self, pairing: str, half: int) -> int:
        return int(self._sums[pairing, half][0, 0]) if (pairing, half) in self._sums else 0

    def _total(self) -> Tensor:
        return self._sums["paired", 0] + self._sums["paired", 1]

    def _standardized_by(self) -> tuple[float, Tensor]:
        """Number of rows and variance of each column over all rows as given."""
        total = self._total()
        n = float(total[0, 0])
        return n, total.diagonal()[1:] / n - (total[0, 1:] / n).square()


def _ridge(halves: Sequence[Tensor], std: Tensor, *, inputs: slice, targets: slice) -> float:
    """Two-fold cross-validated R^2 from the sums of products of each half."""
    errors = variances = 0.0
    for fit, test in (halves, halves[::-1]):
        n = float(fit[0, 0])
        mean = fit[0, 1:] / n
        products = _centered(fit, mean) / std / std[:, None]
        penalized = products[inputs, inputs].clone()
        penalized.diagonal().add_(_PENALTY * n)
        weights = torch.linalg.solve(penalized, products[inputs, targets])
        held_out = _centered(test, mean) / std / std[:, None]
        # |y - W'x|^2 summed over rows and columns, from the sums of products alone.
        explained = 2 * weights * held_out[inputs, targets] - weights * (held_out[inputs, inputs] @ weights)
        errors += float(held_out[targets, targets].trace() - explained.sum())
        about_own_mean = _centered(test, test[0, 1:] / float(test[0, 0])) / std / std[:, None]
        variances += float(about_own_mean[targets, targets].trace())
    return 1.0 - errors / variances


def _centered(gram: Tensor, mean: Tensor) -> Tensor:
    """Sums of products of the columns about `mean`."""
    shift = torch.outer(mean, gram[0, 1:])
    return gram[1:, 1:] - shift - shift.T + gram[0, 0] * torch.outer(mean, mean)
