"""`Logger`: what all loggers have in common, above all that none can end or change a run."""

import functools
import importlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, final

import torch.distributed

from crosscoders._typing import typed
from crosscoders.training.callbacks import Callback
from crosscoders.training.loggers.worker import Worker
from crosscoders.training.report import StepReport

if TYPE_CHECKING:
    from crosscoders.training.trainer import Trainer

log = logging.getLogger(__name__)

# How long the end of a run waits for a backend: a scheduler that preempts gives 10 seconds for everything.
_SECONDS_AT_THE_END = 30.0
_SECONDS_AFTER_AN_ERROR = 2.0


class Logger(Callback, ABC):
    """A callback that carries metrics elsewhere; whatever its backend does, training goes on unchanged.

    An exception of the backend is logged once as a warning, and this logger is silent from then on. Under
    `torchrun` only the first rank logs. A subclass says how to `start`, `write` and `close`; with
    `in_background = True` these run in a thread of their own, and a backend that hangs holds up nothing.
    """

    in_background: ClassVar[bool] = False

    _is_on: bool = False
    _worker: Worker | None = None

    @abstractmethod
    def start(self, *, step: int) -> None:
        """Open the backend.

        Args:
            step: Steps that the run has behind it; what was written about later ones did not happen.
        """

    @abstractmethod
    def write(self, values: dict[str, int | float], *, step: int) -> None:
        """Take the numbers of a step; called twice for a step that is evaluated.

        Args:
            values: Metrics by name, "tokens" among them; those of an evaluation begin with "evaluate/".
            step: Steps done.
        """

    @abstractmethod
    def close(self) -> None:
        """Flush and close the backend; may come without `start` having succeeded."""

    @final
    def on_fit_start(self, trainer: "Trainer") -> None:
        """Open the backend, on the first rank."""
        self._is_on = _is_first_rank()
        if self._is_on and self.in_background:
            self._worker = Worker(type(self).__name__)
        self._do(functools.partial(self.start, step=trainer.step))

    @final
    def on_step_end(self, trainer: "Trainer", report: StepReport) -> None:
        """Pass on the metrics of a logging step."""
        if report.metrics is not None:
            values = {"tokens": report.tokens_seen, **report.metrics}
            self._do(functools.partial(self.write, values, step=report.step))

    @final
    def on_evaluate(self, trainer: "Trainer", metrics: dict[str, float]) -> None:
        """Pass on an evaluation, its names prefixed."""
        values = {"tokens": trainer.tokens_seen, **{f"evaluate/{n}": v for n, v in metrics.items()}}
        self._do(functools.partial(self.write, values, step=trainer.step))

    @final
    def on_fit_end(self, trainer: "Trainer") -> None:
        """Close the backend, which has half a minute to finish."""
        self._end(timeout_seconds=_SECONDS_AT_THE_END)

    @final
    def on_exception(self, trainer: "Trainer", error: BaseException) -> None:
        """Close the backend, which has two seconds to finish."""
        self._end(timeout_seconds=_SECONDS_AFTER_AN_ERROR)

    def _do(self, work: Callable[[], None]) -> None:
        if not self._is_on:
            return
        if self._worker is None:
            self._guarded(work)
        elif not self._worker.submit(functools.partial(self._guarded, work)):
            self._fail("its backend does not keep up")

    def _guarded(self, work: Callable[[], None]) -> None:
        if not self._is_on:
            return
        try:
            work()
        except (Exception, SystemExit) as err:  # a backend may raise anything, and none of it is the run's
            self._fail(f"{type(err).__name__}: {err}")

    def _end(self, *, timeout_seconds: float) -> None:
        worker = self._worker
        self._do(self.close)
        if worker is not None and not worker.close(timeout_seconds=timeout_seconds):
            self._fail(f"its backend did not finish within {timeout_seconds:.0f} s")
        self._worker, self._is_on = None, False

    def _fail(self, reason: str) -> None:
        if self._is_on:
            self._is_on = False
            log.warning(
                "%s: %s. Training goes on unchanged; this logger is silent for the rest of the run.",
                type(self).__name__,
                reason,
            )


@typed
def import_backend(module: str, *, extra: str) -> ModuleType:
    """Import a logger's optional package when the logger is made, so that its lack shows before training.

    Args:
        module: Module to import.
        extra: Name of the extra that brings it, which is also the logger's name.

    Raises:
        ImportError: It is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except Exception as err:
        raise ImportError(
            f"loggers: {extra!r} was asked for, but importing {module} failed ({type(err).__name__}: {err}); "
            f'install it with pip install "crosscoders[{extra}]", or leave this logger out.'
        ) from err


def _is_first_rank() -> bool:
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return True
    return distributed.get_rank() == 0
