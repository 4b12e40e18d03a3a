"""Stores of toy harvests, buffers over them, and everything that such a buffer serves."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crosscoders.buffer import ActivationBuffer
from crosscoders.store import ActivationStore
from tests.data.toy_harvester import ToyHarvester, toy_batches

ROW_BYTES = 4 * 4 + 8  # of the toy harvest in float32, with the id
HARVEST = ("dtype", "exclude_token_ids", "skip_positions")  # settings that the store has too


class Restartable:
    """Token batches that start anew on each iteration but have no length."""

    def __init__(self, batches: list[Tensor]) -> None:
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def toy_store(folder: Path, batches: Iterable[Tensor] | None = None, **changes: Any) -> ActivationStore:
    """An empty store of a toy harvest, by default with two token batches of 21 rows in a shard."""
    harvester = changes.pop("harvester", None) or ToyHarvester()
    settings = {"dtype": torch.float32, "shard_bytes": 2 * (21 * ROW_BYTES + 8), **changes}
    return ActivationStore.create(
        folder, harvester, toy_batches() if batches is None else batches, **settings
    )


def filled_store(folder: Path, batches: Iterable[Tensor] | None = None, **changes: Any) -> ActivationStore:
    """A complete store of a toy harvest."""
    batches = toy_batches() if batches is None else batches
    store = toy_store(folder, batches, **changes)
    store.fill(changes.get("harvester") or ToyHarvester(), batches)
    return store


def store_files(folder: Path) -> dict[str, bytes]:
    """The content of every file that makes a store, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "writer.lock"}


def buffer_from(store: ActivationStore, *, seed: int = 0, **changes: Any) -> ActivationBuffer:
    """What `toy_buffer` is over a live harvest."""
    settings = {"max_bytes": 1200, "batch_tokens": 8, **changes}
    served = {name: value for name, value in settings.items() if name not in HARVEST}
    return ActivationBuffer.from_store(store, generator=torch.Generator().manual_seed(seed), **served)


def course(buffer: ActivationBuffer) -> tuple[list[Tensor], list[dict[str, Any]], list[Any]]:
    """All batches, the state before the first and after each, and the counters after each."""
    batches, states, counters = [], [buffer.state_dict()], [(buffer.n_tokens, buffer.sources)]
    for batch in buffer:
        batches.append(batch)
        states.append(buffer.state_dict())
        counters.append((buffer.tokens_served, buffer.unique_tokens_served, buffer.n_dropped_outliers))
    return batches, states, counters


def assert_same_course(one: Any, other: Any) -> None:
    """Batches to the last bit, states and counters."""
    assert len(one[0]) == len(other[0])
    assert all(torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True))
    assert one[1:] == other[1:]
