"""`StoreLayout`: what an activation store holds, and how it is cut into files."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from crosscoders._typing import typed
from crosscoders.row_stream import SupportsHarvest
from crosscoders.sources import Source, check_sources, width
from crosscoders.token_batches import TokenBatches, ids_sha256

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
ID_BYTES = 8  # a token id, and the number of rows of a token batch


@dataclass(frozen=True, kw_only=True)
class StoreLayout:
    """What the rows of a store are, and how many token batches make a shard.

    It is a pure function of the harvest's settings and tokens, so that a shard can be harvested again at any
    time and comes out the same.

    Args:
        sources: Whose activations, in the order of the columns; scale 1.0.
        dtype: "bfloat16" or "float32".
        batches_per_shard: Token batches of each shard; the last one may have fewer.
        n_batches: Token batches in all; None where the harvest was given no sequence of them.
        n_rows: Rows in all; None likewise.
        largest_batch: Most tokens that a token batch has.
        first_batch_sha256: SHA-256 of the first token batch.
        tokens_sha256: SHA-256 of all token batches; None where they were no sequence.
        exclude_token_ids: Positions with these ids were left out.
        skip_positions: Leading positions of each sequence that were left out.

    Raises:
        ValueError: An unknown dtype, a count out of range, or no sources.
    """

    sources: tuple[Source, ...]
    dtype: str
    batches_per_shard: int
    n_batches: int | None
    n_rows: int | None
    largest_batch: int
    first_batch_sha256: str
    tokens_sha256: str | None
    exclude_token_ids: tuple[int, ...]
    skip_positions: int

    def __post_init__(self) -> None:
        check_sources(self.sources)
        if self.dtype not in DTYPES:
            raise ValueError(f"ActivationStore: dtype must be one of {sorted(DTYPES)}, got {self.dtype!r}.")
        if self.batches_per_shard < 1:
            raise ValueError(
                f"ActivationStore: a shard needs at least one token batch, got {self.batches_per_shard}."
            )

    @property
    def torch_dtype(self) -> torch.dtype:
        """Dtype of the rows."""
        return DTYPES[self.dtype]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row on disk, its token id included."""
        return width(self.sources) * self.torch_dtype.itemsize + ID_BYTES

    @property
    def n_shards(self) -> int | None:
        """Shards in all; None where the number of token batches is not known beforehand."""
        return None if self.n_batches is None else -(-self.n_batches // self.batches_per_shard)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values; `from_dict` inverts it."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        sources = [{k: v for k, v in source.to_dict().items() if k != "scale"} for source in self.sources]
        return {**plain, "sources": sources, "exclude_token_ids": list(self.exclude_token_ids)}

    @classmethod
    @typed
    def from_dict(cls, data: Mapping[str, Any]) -> "StoreLayout":
        """Build a layout from `to_dict`'s result.

        Args:
            data: One entry per field.

        Raises:
            ValueError: A value that cannot be.
        """
        sources = tuple(Source.from_dict(dict(entry)) for entry in data["sources"])
        excluded = tuple(int(index) for index in data["exclude_token_ids"])
        return cls(**{**data, "sources": sources, "exclude_token_ids": excluded})

    def sha256(self) -> str:
        """Hex SHA-256 by which a shard knows its store."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode("ascii")).hexdigest()

    @typed
    def differences(self, other: "StoreLayout") -> dict[str, tuple[Any, Any]]:
        """What differs between two layouts but for the size of the shards: (here, there) by field.

        Args:
            other: The layout to compare with.

        Returns:
            Nothing where the two describe the same rows.
        """
        mine, theirs = self.to_dict(), other.to_dict()
        free = ("batches_per_shard",)
        return {key: (mine[key], theirs[key]) for key in mine if key not in free and mine[key] != theirs[key]}


@typed
def layout_of(
    harvester: SupportsHarvest,
    tokens: TokenBatches,
    *,
    dtype: torch.dtype,
    shard_bytes: int,
) -> StoreLayout:
    """The layout of a harvest.

    A shard gets as many token batches as fit into `shard_bytes` if each were as large as the largest, and at
    least one.

    Args:
        harvester: Sources and their activations; nothing is harvested.
        tokens: What is read.
        dtype: Dtype of the rows.
        shard_bytes: Size that one shard aims at.

    Returns:
        The layout.

    Raises:
        ValueError: A dtype that is not stored, or `shard_bytes` below 1.
    """
    names = {known: name for name, known in DTYPES.items()}
    if dtype not in names or shard_bytes < 1:
        raise ValueError(
            f"ActivationStore: dtype must be one of {sorted(names.values())} (got {dtype}) and shard_bytes "
            f"at least 1 (got {shard_bytes})."
        )
    sources = tuple(harvester.sources)
    row_bytes = width(sources) * dtype.itemsize + ID_BYTES
    batch_bytes = max(1, tokens.largest_batch) * row_bytes + ID_BYTES
    return StoreLayout(
        sources=sources,
        dtype=names[dtype],
        batches_per_shard=max(1, shard_bytes // batch_bytes),
        n_batches=None if tokens.sequence is None else len(tokens.sequence),
        n_rows=tokens.n_rows(),
        largest_batch=tokens.largest_batch,
        first_batch_sha256=tokens.first_sha256,
        tokens_sha256=None if tokens.sequence is None else ids_sha256(tokens.sequence),
        exclude_token_ids=tokens.exclude_token_ids,
        skip_positions=tokens.skip_positions,
    )
