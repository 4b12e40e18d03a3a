"""One progress bar for all members of a sweep."""

from collections.abc import Iterable
from typing import final

from tqdm import tqdm

from crosscoders.training import Callback, StepReport, Trainer


@final
class SweepBar:
    """A tqdm bar over the tokens of all members; each gets an observer of its own from `observer`.

    Args:
        n_members: Members that are trained.
    """

    def __init__(self, n_members: int) -> None:
        self._bar: tqdm | None = None
        self._n_members = n_members
        self._n_ended = 0

    def observer(self) -> Callback:
        """The callback that moves the bar on for one more member."""
        return _Observer(self)

    def open_for(self, trainers: Iterable[Trainer], *, n_tokens: int | None) -> None:
        """Open the bar at the tokens already seen.

        Args:
            trainers: All that are about to train.
            n_tokens: Length of a run whose configuration does not say; None where only running tells.
        """
        trainers = list(trainers)
        totals = [trainer.config.total_tokens or n_tokens for trainer in trainers]
        total = None if None in totals else sum(n for n in totals if n is not None)
        seen = sum(trainer.tokens_seen for trainer in trainers)
        self._bar = tqdm(total=total, initial=seen, unit="tok", unit_scale=True, mininterval=0.5)

    def advance(self, n_tokens: int) -> None:
        """Move on.

        Args:
            n_tokens: Rows that a member was just trained on.
        """
        if self._bar is not None:
            self._bar.update(n_tokens)

    def end_one(self) -> None:
        """Say that one member less is training."""
        self._n_ended += 1
        if self._bar is not None:
            left = self._n_members - self._n_ended
            self._bar.set_postfix_str(f"{left} of {self._n_members} training", refresh=False)

    def close(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@final
class _Observer(Callback):
    def __init__(self, bar: SweepBar) -> None:
        self._shown = bar

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        self._shown.advance(report.n_tokens)

    def on_fit_end(self, trainer: Trainer) -> None:
        self._shown.end_one()

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        self._shown.end_one()
