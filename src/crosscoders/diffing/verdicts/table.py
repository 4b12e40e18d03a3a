"""`Verdicts`: one verdict per latent beside its evidence, what a null expects, and what could be found."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscoders._io import atomic_write_text
from crosscoders._typing import typed
from crosscoders.diffing.measures.alignment import Alignment
from crosscoders.diffing.verdicts.judge import SPECIFIC, VERDICTS, Judgement, judge
from crosscoders.diffing.verdicts.nulls import BENIGN_DRIFT, NullReference
from crosscoders.diffing.verdicts.power import Power, power_lines
from crosscoders.diffing.verdicts.thresholds import Thresholds
from crosscoders.latents import LatentTable


@final
@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """What verification says about every latent of a crosscoder.

    Args:
        pair: Names of the two sources compared.
        evidence: One row per latent; None if the sources are not aligned.
        judgements: One per latent, in the order of the evidence; none if the sources are not aligned.
        thresholds: Where the lines were.
        alignment: Whether the rows of both sources belong to the same tokens.
        nulls: What null pairs say of false-exclusive latents; the first is the one that the summary quotes.
        power: What could have been found; None if nothing was planted.
    """

    pair: tuple[str, str]
    evidence: LatentTable | None
    judgements: tuple[Judgement, ...]
    thresholds: Thresholds
    alignment: Alignment
    nulls: tuple[NullReference, ...] = ()
    power: Power | None = None

    @typed
    def latents(self, verdict: str = SPECIFIC) -> Int[Tensor, " chosen"]:
        """Numbers of the latents with this verdict, ascending.

        Args:
            verdict: One of `crosscoders.diffing.verdicts.VERDICTS`.

        Returns:
            Latent numbers; empty where none has it.

        Raises:
            ValueError: No such verdict, or there are no verdicts.
        """
        return self.is_called(verdict).nonzero().flatten()

    @typed
    def is_called(self, verdict: str = SPECIFIC) -> Bool[Tensor, " latent"]:
        """Whether each latent has this verdict.

        Args:
            verdict: One of `crosscoders.diffing.verdicts.VERDICTS`.

        Returns:
            One entry per latent; those that never fire are undecided.

        Raises:
            ValueError: No such verdict, or there are no verdicts.
        """
        self._measured()
        if verdict not in VERDICTS:
            raise ValueError(f"Verdicts: verdict must be one of {VERDICTS}, got {verdict!r}.")
        return torch.tensor([found.verdict == verdict for found in self.judgements], dtype=torch.bool)

    def counts(self) -> dict[str, int]:
        """Latents of each verdict that fire at all, in the order of `VERDICTS`.

        Raises:
            ValueError: There are no verdicts.
        """
        return count_verdicts(self.judgements, self._live())

    @typed
    def explain(self, latent: int) -> str:
        """The verdict on one latent, the test that decided, and every figure of its evidence.

        Args:
            latent: Number of the latent.

        Returns:
            Several lines of text.

        Raises:
            ValueError: No such latent, or there are no verdicts.
        """
        evidence = self._measured()
        if not 0 <= latent < len(self.judgements):
            raise ValueError(f"Verdicts.explain: latent {latent} is outside 0..{len(self.judgements) - 1}.")
        found, row = self.judgements[latent], row_of(evidence, latent)
        width = max(len(name) for name in row)
        figures = [
            f"  {name:<{width}}  {_plain(value) or 'undefined or not measured'}"
            for name, value in row.items()
        ]
        return "\n".join([f"latent {latent}: {found.verdict}", f"  because {found.reason}", *figures])

    def summary(self) -> str:
        """What survives, what chance would leave, what could have been found, and the counts of verdicts."""
        first, second = self.pair
        if self.evidence is None:
            return f"{first} against {second}: {self.alignment.message}\nNo verdict is given."
        screened, survivors = self.n_screened(), self.latents()
        head = f"{len(survivors)} of {screened} survive" if len(survivors) else f"none of {screened} survives"
        if screened == 0 and not len(survivors):
            head = "none: no latent passes the screen"
        lines = [
            f"{first} against {second}: {head}; {self._null_clause()}; {self._power_clause()}.",
            f"Screened: latents of one source by decoder norms, or by what each source writes when they fire "
            f"(squared ratio below {self.thresholds.absent:g}).",
            "Verdicts on the latents that fire:",
            *(f"  {verdict}: {n}" for verdict, n in self.counts().items() if n),
        ]
        if len(survivors):
            lines.append("Model-specific: " + ", ".join(self._named(j) for j in survivors.tolist()) + ".")
        return "\n".join([*lines, *self._null_lines(), *self._power_lines(), *self._missing()])

    def n_screened(self) -> int:
        """Latents that a screen would report: one-sided by decoder norms, or silent in one source.

        Raises:
            ValueError: There are no verdicts.
        """
        evidence = self._measured()
        share, ratio = evidence["norm_share"], evidence["ratio"]
        edge = self.thresholds.one_sided
        is_hit = (share > edge) | (share < 1 - edge) | (ratio < self.thresholds.absent)
        return int((is_hit & self._live()).sum())

    @typed
    def to_csv(self, path: str | Path) -> None:
        """Write one row per latent: verdict, reason, then the evidence; undefined figures are empty.

        Args:
            path: File to write; its folder must exist.

        Raises:
            ValueError: There are no verdicts.
        """
        evidence = self._measured()
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        names = list(evidence.columns)
        writer.writerow(["latent", "verdict", *names[1:], "reason"])
        for at, found in enumerate(self.judgements):
            row = row_of(evidence, at)
            writer.writerow([at, found.verdict, *(_plain(row[name]) for name in names[1:]), found.reason])
        atomic_write_text(Path(path), out.getvalue())

    @typed
    def frequency(self) -> Float[Tensor, " latent"]:
        """Share of tokens on which each latent fires.

        Raises:
            ValueError: There are no verdicts.
        """
        evidence = self._measured()
        return evidence["n_firings"].double() / evidence.n_tokens

    def _measured(self) -> LatentTable:
        if self.evidence is None:
            raise ValueError(f"Verdicts: there are no verdicts; {self.alignment.message}")
        return self.evidence

    def _live(self) -> Tensor:
        return self._measured()["n_firings"] > 0

    def _named(self, latent: int) -> str:
        return f"{latent} ({self.pair[int(self._measured()['stronger'][latent])]})"

    def _null_clause(self) -> str:
        if not self.nulls:
            return "chance not measured (name a null pair)"
        frequency = self.frequency()
        expected, at_most = self.nulls[0].expected(frequency[frequency > 0])
        name = self.nulls[0].name
        said = "the null" if name == BENIGN_DRIFT else f"the null ({name})"
        return f"{said} expects {expected:.1f} (at most {at_most:.1f})"

    def _power_clause(self) -> str:
        return "power not measured (nothing planted)" if self.power is None else self.power.sentence()

    def _null_lines(self) -> list[str]:
        return [
            f"{null.name} ({null.n_crosscoders} crosscoders): {null.total_false} of {null.total_live} live "
            f"latents called model-specific ({100 * null.rate()[0]:.2f}%, 95% {100 * null.rate()[1]:.2f}% to "
            f"{100 * null.rate()[2]:.2f}%)."
            for null in self.nulls
        ]

    def _power_lines(self) -> list[str]:
        return [] if self.power is None else power_lines(self.power)

    def _missing(self) -> list[str]:
        evidence, lines = self._measured(), []
        if bool(evidence["stability"].isnan().all()):
            lines.append("Stability over seeds: not measured.")
        if bool(evidence["kappa"].isnan().all()):
            lines.append("Direction between the models: not measured (no common space).")
        return lines


@typed
def judge_all(evidence: LatentTable, thresholds: Thresholds) -> tuple[Judgement, ...]:
    """The verdict on every row of a table of evidence.

    Args:
        evidence: Columns as `judge` reads them.
        thresholds: Where the lines are.

    Returns:
        One judgement per row, in the order of the rows.

    Raises:
        KeyError: A column is missing.
    """
    columns = {name: column.tolist() for name, column in evidence.columns.items()}
    return tuple(
        judge(dict(zip(columns, values, strict=True)), thresholds)
        for values in zip(*columns.values(), strict=True)
    )


@typed
def count_verdicts(judgements: Sequence[Judgement], is_live: Bool[Tensor, " latent"]) -> dict[str, int]:
    """Live latents of each verdict, in the order of `VERDICTS`.

    Args:
        judgements: One per latent.
        is_live: Which latents count.
    """
    found = Counter(j.verdict for j, live in zip(judgements, is_live.tolist(), strict=True) if live)
    return {verdict: found[verdict] for verdict in VERDICTS}


def row_of(evidence: LatentTable, latent: int) -> dict[str, float | int]:
    """One row of a table as plain numbers."""
    return {name: column[latent].item() for name, column in evidence.columns.items()}


def _plain(value: float | int) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.6g}"
    return str(value)
