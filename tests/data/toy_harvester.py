"""A source without a language model: each activation encodes its own (sequence, position)."""

from collections.abc import Iterable

import torch
from torch import Tensor

from crosscoders.buffer import ActivationBuffer
from crosscoders.sources import Source

SEQUENCE, POSITION = 0, 1  # columns of source "a" that hold a row's identity


class ToyHarvester:
    """Token (s, p) is id `1000 * s + p`; source "a" is [s, p, 1], source "b" is 2 or, for outliers, 200."""

    def __init__(self, *, outliers: Iterable[int] = ()) -> None:
        self.sources = (Source(name="a", d_model=3), Source(name="b", d_model=1))
        self.outliers = torch.tensor(list(outliers), dtype=torch.int64)
        self.calls = 0

    def harvest(self, tokens: Tensor) -> Tensor:
        self.calls += 1
        big = torch.isin(tokens, self.outliers)
        columns = [tokens // 1000, tokens % 1000, torch.ones_like(tokens), torch.where(big, 200, 2)]
        return torch.stack(columns, dim=-1).float()


def toy_batches(*, n_sequences: int = 20, length: int = 7, per_batch: int = 3) -> list[Tensor]:
    tokens = 1000 * torch.arange(n_sequences)[:, None] + torch.arange(length)
    return list(tokens.split(per_batch))


def toy_buffer(
    batches: Iterable[Tensor] | None = None, *, seed: int = 0, **changes: object
) -> ActivationBuffer:
    harvester = changes.pop("harvester", None) or ToyHarvester()
    settings = {"max_bytes": 1200, "batch_tokens": 8, "dtype": torch.float32, **changes}
    generator = torch.Generator().manual_seed(seed)
    return ActivationBuffer(
        harvester, toy_batches() if batches is None else batches, generator=generator, **settings
    )


def served_ids(batches: Iterable[Tensor]) -> list[int]:
    return [int(1000 * row[SEQUENCE] + row[POSITION]) for batch in batches for row in batch]
