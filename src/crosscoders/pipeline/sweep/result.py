"""What a sweep found: one row per member, the Pareto front, a figure, and the folder that holds them."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from crosscoders._io import atomic_write_json, atomic_write_text
from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.pipeline.sweep.axes import short_names, value_text
from crosscoders.pipeline.sweep.front import pareto_front
from crosscoders.pipeline.sweep.measuring import MemberScores
from crosscoders.pipeline.sweep.member import FINISHED, Member, Outcome, read_member_crosscoder
from crosscoders.provenance import write_manifest
from crosscoders.report.figures.pareto import ParetoPoint, pareto_figure
from crosscoders.report.tables import aligned, write_csv

log = logging.getLogger(__name__)
DIFFERENCE = "difference"
_NAN = float("nan")


@final
@dataclass(frozen=True, kw_only=True)
class MemberResult:
    """One member of a sweep: what was varied, how far it came and what it does.

    Args:
        member: Its name, values and configuration.
        outcome: Whether it finished, and why not.
        scores: Held-out figures; None for one that did not finish or could not be measured.
    """

    member: Member
    outcome: Outcome
    scores: MemberScores | None = None

    @property
    def l0(self) -> float:
        """Mean number of latents that fire on a held-out token; NaN without figures."""
        return _NAN if self.scores is None else self.scores.reconstruction.l0

    @typed
    def explained_variance(self, of: str) -> float:
        """Held-out explained variance; NaN without figures.

        Args:
            of: Name of a source, or "difference".
        """
        if self.scores is None:
            return _NAN
        reconstruction = self.scores.reconstruction
        value = reconstruction.difference if of == DIFFERENCE else reconstruction.explained_variance[of]
        return _NAN if value is None else value


@final
@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """All members of a sweep, in the order of the configuration, and the folder that holds them.

    Args:
        out: Folder of the sweep.
        axes: Names of what varied.
        sources: Names of the sources.
        members: One result each.
    """

    out: Path
    axes: tuple[str, ...]
    sources: tuple[str, ...]
    members: tuple[MemberResult, ...]

    @property
    def measures(self) -> tuple[str, ...]:
        """Of what explained variance is known: every source, and the difference where there is one."""
        values = [result.explained_variance(DIFFERENCE) for result in self.members]
        has_difference = any(value == value for value in values)
        return (*self.sources, *((DIFFERENCE,) if has_difference else ()))

    @typed
    def front(self, of: str) -> list[str]:
        """Names of the members on the Pareto front of explained variance against L0, by growing L0.

        Args:
            of: Name of a source, or "difference".

        Returns:
            Those that no other member beats in both.
        """
        chosen = [result for result, is_on in zip(self.members, self._is_on_front(of)) if is_on]
        return [result.member.name for result in sorted(chosen, key=lambda result: result.l0)]

    @typed
    def crosscoder(self, name: str) -> Crosscoder:
        """The crosscoder of a finished member, from its folder.

        Args:
            name: Its name.

        Returns:
            It, in evaluation mode.

        Raises:
            ValueError: No such member, or it did not finish.
            CheckpointError: Its files were changed.
        """
        known = {r.member.name: r.member for r in self.members if r.outcome.state == FINISHED}
        if name not in known:
            raise ValueError(f"sweep: no finished member {name!r}; finished are {list(known)}.")
        return read_member_crosscoder(known[name])

    def rows(self) -> list[dict[str, Any]]:
        """The table: one row per member with its values, state, figures and reason; NaN where undefined."""
        fronts = {of: self._is_on_front(of) for of in self.measures}
        return [
            {
                "member": result.member.name,
                **{axis: _cell(result.member.values[axis]) for axis in self.axes},
                "state": result.outcome.state,
                "steps": result.outcome.steps,
                "tokens_seen": result.outcome.tokens_seen,
                "held_out_tokens": 0 if result.scores is None else result.scores.reconstruction.n_tokens,
                "l0": result.l0,
                **{f"ev/{of}": result.explained_variance(of) for of in self.measures},
                "dead_fraction": _NAN if result.scores is None else result.scores.dead_fraction,
                **{f"pareto/{of}": int(fronts[of][at]) for of in self.measures},
                "reason": result.outcome.reason,
            }
            for at, result in enumerate(self.members)
        ]

    @typed
    def summary(self) -> str:
        """The table as text, with a star where a member is on a Pareto front, and why members stopped."""
        n_finished = sum(result.outcome.state == FINISHED for result in self.members)
        lines = [
            f"{n_finished} of {len(self.members)} members finished. Explained variance (EV) of held-out "
            "text; * = on the Pareto front, none has as much at no more L0:"
        ]
        lines += aligned([self._head(), *map(self._line, range(len(self.members))), *self._baseline()])
        reasons = [f"{r.member.name} {r.outcome.state}: {r.outcome.reason}" for r in self._unfinished()]
        return "\n".join([*lines, *([""] if reasons else []), *reasons])

    def _unfinished(self) -> list[MemberResult]:
        return [result for result in self.members if result.outcome.reason]

    def _is_on_front(self, of: str) -> list[bool]:
        gains = [result.explained_variance(of) for result in self.members]
        return pareto_front([result.l0 for result in self.members], gains)

    def _head(self) -> list[str]:
        return ["member", "state", "L0", *(f"EV {of}  " for of in self.measures), "dead"]

    def _line(self, at: int) -> list[str]:
        result = self.members[at]
        if result.scores is None:
            return [result.member.name, result.outcome.state, "", *("" for _ in self.measures), ""]
        marks = ["*" if self._is_on_front(of)[at] else " " for of in self.measures]
        values = [f"{result.explained_variance(of):.4f} {m}" for of, m in zip(self.measures, marks)]
        dead = f"{100 * result.scores.dead_fraction:.1f}%"
        return [result.member.name, result.outcome.state, f"{result.l0:.1f}", *values, dead]

    def _baseline(self) -> list[list[str]]:
        """One row for the table of token means, which is the same for all."""
        for result in self.members:
            if result.scores is not None and result.scores.reconstruction.token_means is not None:
                found = result.scores.reconstruction
                table = {**(found.token_means or {}), DIFFERENCE: found.token_means_difference}
                values = [table[of] for of in self.measures]
                shown = ["" if value is None else f"{value:.4f}  " for value in values]
                return [["(token means)", "", "", *shown, ""]]
        return []


def _cell(value: Any) -> Any:
    """A value of an axis as one cell."""
    return value if isinstance(value, int | float | str) else json.dumps(value)


@typed
def write_result(result: SweepResult, record: Mapping[str, Any]) -> None:
    """Write `sweep.csv`, `sweep.json`, `summary.txt`, `figures/pareto.png` and `manifest.json`.

    Args:
        result: What was found.
        record: What `sweep.json` says besides the table: versions, configuration, axes, data.

    Raises:
        OSError: Writing failed.
    """
    rows = result.rows()
    write_csv(result.out / "sweep.csv", rows)
    plain = [{k: None if v != v else v for k, v in row.items()} for row in rows]
    atomic_write_json(result.out / "sweep.json", {**record, "members": plain})
    atomic_write_text(result.out / "summary.txt", result.summary() + "\n")
    _figure(result)
    write_manifest(result.out)


def _figure(result: SweepResult) -> None:
    measured = [r for r in result.members if r.scores is not None]
    if not measured:
        return
    (result.out / "figures").mkdir(exist_ok=True)
    grouped = _grouping_axis(result.axes, [r.member.values for r in measured])
    panels = {}
    for of in result.measures:
        flags = dict(zip((r.member.name for r in result.members), result._is_on_front(of)))
        panels[of if of == DIFFERENCE else f"source {of}"] = [
            ParetoPoint(
                l0=r.l0,
                explained_variance=r.explained_variance(of),
                is_on_front=flags[r.member.name],
                group="" if grouped is None else _named(grouped, r.member.values),
                label=", ".join(
                    _named(axis, r.member.values, among=result.axes)
                    for axis in result.axes
                    if axis != grouped
                ),
            )
            for r in measured
        ]
    n_left_out = len(result.members) - len(measured)
    note = f"; {n_left_out} without figures left out" if n_left_out else ""
    title = f"Sweep of {len(result.members)} crosscoders on one harvest{note}"
    try:
        pareto_figure(panels, result.out / "figures" / "pareto.png", title=title)
    except ImportError as err:
        log.warning("No figures: %s", err)


def _named(axis: str, values: Mapping[str, Any], among: Sequence[str] = ()) -> str:
    short = short_names(list(among))[axis] if among else axis.rsplit(".", 1)[-1]
    text = value_text(values[axis])
    return text if isinstance(values[axis], Mapping) else f"{short}={text}"


def _grouping_axis(axes: Sequence[str], values: Sequence[Mapping[str, Any]]) -> str | None:
    """The axis that colors the points: whole settings first, none that sets the sparsity or repeats."""
    preferred = sorted(axes, key=lambda axis: "." in axis)
    for axis in preferred:
        n_values = len({value_text(each[axis]) for each in values})
        if 2 <= n_values <= 6 and axis != "seed" and not axis.startswith(("activation_fn.", "objective.")):
            return axis
    return None
