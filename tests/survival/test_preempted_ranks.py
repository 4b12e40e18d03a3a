"""On several ranks one that gets SIGTERM is enough: all of them save the same step, and end."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from crosscoders.training import Callback, Preempted, Preemption, StepReport, Trainer
from tests.parallel.checkpoint_run import N_STEPS, batches, mesh_of, trainer_on
from tests.parallel.rank_pool import on_ranks
from tests.survival.signals import terminate

STRUCK = 4


class TerminateOneRank(Callback):
    """Rank 1 gets the signal after a step."""

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        if report.step == STRUCK and dist.get_rank() == 1:
            terminate()


def struck_then_resumed(folder: str) -> dict[str, Any]:
    """What a rank sees of a run that is struck, and of the one that goes on."""
    mesh = mesh_of({"data": 2})
    first = trainer_on(mesh, folder)
    first.callbacks = (TerminateOneRank(),)
    try:
        with Preemption():
            first.fit(batches())
        saved = []
    except Preempted as preempted:
        saved = [path.name for path in preempted.checkpoints]
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    second = trainer_on(mesh, folder)
    second.resume(folder)
    second.fit(batches())
    return {"saved": saved, "steps": (first.step, second.step), "W_dec": second.crosscoder.W_dec.detach()}


def undisturbed() -> Tensor:
    trainer = trainer_on(mesh_of({"data": 2}), None)
    trainer.fit(batches())
    return trainer.crosscoder.W_dec.detach()


@pytest.mark.slow
def test_all_ranks_save_one_step_and_the_run_resumes_exactly(tmp_path: Path) -> None:
    expected = on_ranks(2, undisturbed)
    for found, weights in zip(on_ranks(2, struck_then_resumed, folder=str(tmp_path)), expected, strict=True):
        assert found["saved"] == [f"step-{STRUCK:09d}"]
        assert found["steps"] == (STRUCK, N_STEPS)
        assert torch.equal(found["W_dec"], weights)
