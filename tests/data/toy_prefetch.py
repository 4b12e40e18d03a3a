"""Factories that a harvest process can build; as a program, `FOLDER WHAT`, a consumer to be killed."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crosscoders.buffer import ActivationBuffer
from crosscoders.errors import CheckpointError
from crosscoders.prefetch import PrefetchedBatches
from tests.data.toy_harvester import ToyHarvester, toy_buffer


class FaultyHarvester(ToyHarvester):
    """Raises at one call, or sleeps at each."""

    def __init__(
        self, *, fail_at: int | None = None, error: Exception | None = None, pause: float = 0.0
    ) -> None:
        super().__init__()
        self.fail_at, self.error, self.pause = fail_at, error, pause

    def harvest(self, tokens: Tensor) -> Tensor:
        time.sleep(self.pause)
        if self.calls == self.fail_at:
            raise self.error or ValueError(f"toy harvest: call {self.calls} fails")
        return super().harvest(tokens)


def make_buffer(batches: Any = None, **changes: Any) -> ActivationBuffer:
    """Five windows of rows whose values bfloat16 holds exactly, two epochs."""
    return toy_buffer(batches, **{"epochs": 2, "dtype": torch.bfloat16, "max_bytes": 800, **changes})


def make_faulty(**changes: Any) -> ActivationBuffer:
    """A buffer over a harvest that fails at its sixth call, or each call of which takes long."""
    return make_buffer(harvester=FaultyHarvester(**{"fail_at": 5, **changes}))


def make_damaged() -> ActivationBuffer:
    """A buffer whose data turn out to be damaged."""
    return make_faulty(error=CheckpointError("shard-00003: bytes differ"))


def make_slow(pause: float, *, fail_at: int | None = None) -> ActivationBuffer:
    """A buffer over a slow harvest."""
    return make_faulty(fail_at=fail_at, pause=pause)


class Growing:
    """Batches of float64 that grow, and that know nothing but their position."""

    def __init__(self, n: int = 12) -> None:
        self.n, self.next_index = n, 0

    def __iter__(self) -> Iterator[Tensor]:
        while self.next_index < self.n:
            self.next_index += 1
            yield torch.full((self.next_index**3, 2), 1 / 3 + self.next_index, dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        return {"next_index": self.next_index}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next_index = state["next_index"]


def report_pids(folder: str) -> ActivationBuffer:
    """A buffer whose process leaves its id in a file."""
    (Path(folder) / "pid").write_text(str(os.getpid()))
    return make_slow(0.05)


def batches_and_states(batches: Any) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Every batch, and the state before the first and after each."""
    states, given = [batches.state_dict()], []
    for batch in batches:
        given.append(batch)
        states.append(batches.state_dict())
    return given, states


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two lists of batches agree in every bit, shape and dtype."""
    return len(one) == len(other) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )


def main(folder: Path, *, what: str) -> None:
    """Take a batch and wait to be killed; or be told to end, go on all the same and leave without closing."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    batches = PrefetchedBatches(partial(report_pids, str(folder)), where="process", n_batches=2)
    if what == "save":
        threading.Timer(0.3, os.killpg, (0, signal.SIGTERM)).start()  # while the process is still importing
    next(iter(batches))
    (folder / "served").touch()
    if what == "sleep":
        time.sleep(60)
    os.killpg(0, signal.SIGTERM)
    n_batches = 1 + sum(1 for _ in zip(range(25), batches))
    print(f"{n_batches} batches, told {len(told)} times")


if __name__ == "__main__":
    main(Path(sys.argv[1]), what=sys.argv[2])
