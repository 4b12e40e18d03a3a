"""Callbacks observe a training run; they cannot change it."""

import csv
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from tqdm import tqdm

from crosscoders._io import atomic_write
from crosscoders._typing import typed
from crosscoders.training.report import StepReport

if TYPE_CHECKING:
    from crosscoders.training.trainer import Trainer


class Callback:
    """Base of all callbacks: every hook does nothing.

    A hook may read everything and call `trainer.request_stop`. It runs without gradient and in eval mode, and
    one that changes a parameter or buffer makes `fit` raise; to change training, override a method of
    `Trainer`.
    """

    def on_fit_start(self, trainer: "Trainer") -> None:
        """Before the first step.

        Args:
            trainer: The trainer, to read.
        """

    def on_step_end(self, trainer: "Trainer", report: StepReport) -> None:
        """After each step; `report.metrics` is there at logging steps only.

        Args:
            trainer: The trainer, to read.
            report: Losses and counters of the step.
        """

    def on_evaluate(self, trainer: "Trainer", metrics: dict[str, float]) -> None:
        """After each evaluation.

        Args:
            trainer: The trainer, to read.
            metrics: Value of each metric by its name.
        """

    def on_checkpoint(self, trainer: "Trainer", path: Path) -> None:
        """After each checkpoint.

        Args:
            trainer: The trainer, to read.
            path: Folder of the checkpoint.
        """

    def on_fit_end(self, trainer: "Trainer") -> None:
        """After the last step, the calibration and the last evaluation.

        Args:
            trainer: The trainer, to read.
        """

    def on_exception(self, trainer: "Trainer", error: BaseException) -> None:
        """When `fit` fails, before the error is raised again.

        Args:
            trainer: The trainer, to read.
            error: What was raised.
        """

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this callback; plain data and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave.

        Args:
            state: A value of `state_dict`.
        """


@final
class ProgressBar(Callback):
    """A tqdm bar with loss, EV per source, L0 and the fraction of dead latents, renewed at logging steps.

    Where the batches come from the background it also says who waited for whom since the last renewal, as
    shares of the time: "waiting: trainer 12%, harvest 40%". The one that waits less is what to make faster.
    """

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._waited = (0.0, 0.0, 0.0)

    def on_fit_start(self, trainer: "Trainer") -> None:
        """Open the bar at the tokens already seen."""
        self._waited = _waited(trainer)
        self._bar = tqdm(
            total=trainer.total_tokens,
            initial=trainer.tokens_seen,
            unit="tok",
            unit_scale=True,
            mininterval=0.5,
        )

    def on_step_end(self, trainer: "Trainer", report: StepReport) -> None:
        """Advance; renew the numbers if this step has them."""
        if self._bar is None:
            return
        self._bar.update(report.n_tokens)
        if report.metrics is not None:
            text = _summary(report.metrics) + self._waiting(trainer)
            self._bar.set_postfix_str(text, refresh=False)

    def on_fit_end(self, trainer: "Trainer") -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: "Trainer", error: BaseException) -> None:
        """Close the bar."""
        self._close()

    def _waiting(self, trainer: "Trainer") -> str:
        before, self._waited = self._waited, _waited(trainer)
        seconds, by_trainer, by_harvest = (now - then for now, then in zip(self._waited, before))
        if trainer.waits is None or seconds <= 0:
            return ""
        return f", waiting: trainer {by_trainer / seconds:.0%}, harvest {by_harvest / seconds:.0%}"

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@final
class History(Callback):
    """Collects the metrics of logging steps and evaluations as rows; survives resuming.

    Args:
        path: CSV file to write when training ends; None to keep the rows in memory only.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.rows: list[dict[str, float]] = []

    def on_step_end(self, trainer: "Trainer", report: StepReport) -> None:
        """Add a row at logging steps."""
        if report.metrics is not None:
            self.rows.append({"step": report.step, "tokens": report.tokens_seen, **report.metrics})

    def on_evaluate(self, trainer: "Trainer", metrics: dict[str, float]) -> None:
        """Add a row with the evaluation's values, their names prefixed."""
        named = {f"evaluate/{name}": value for name, value in metrics.items()}
        self.rows.append({"step": trainer.step, "tokens": trainer.tokens_seen, **named})

    def on_fit_end(self, trainer: "Trainer") -> None:
        """Write the file."""
        if self.path is not None:
            self.to_csv(self.path)

    @typed
    def to_csv(self, path: Path | str) -> None:
        """Write all rows, with the union of their columns.

        Args:
            path: File to write.
        """
        columns = list(dict.fromkeys(name for row in self.rows for name in row))

        def write(temporary: Path) -> None:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, fieldnames=columns)
                writer.writeheader()
                writer.writerows(self.rows)

        atomic_write(Path(path), write)

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the rows."""
        self.rows = [dict(row) for row in state["rows"]]


def _summary(metrics: dict[str, float]) -> str:
    shown = {"loss": "loss", "l0": "L0", "dead_fraction": "dead"}
    parts = [f"{label} {metrics[name]:.3g}" for name, label in shown.items()]
    parts += [f"EV {name[3:]} {value:.4f}" for name, value in metrics.items() if name.startswith("ev/")]
    return ", ".join(parts)


def _waited(trainer: "Trainer") -> tuple[float, float, float]:
    """Seconds on the clock, and seconds that the trainer and the harvest have waited for each other."""
    waits, now = trainer.waits, time.monotonic()
    return (now, 0.0, 0.0) if waits is None else (now, waits.trainer_seconds, waits.harvest_seconds)
