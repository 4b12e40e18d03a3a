"""One shard on disk: a safetensors file written as it is harvested, read through a shared memory map.

The file holds `batch_rows` (kept rows of each token batch), `token_ids` (of each row) and `rows`. What is
known from the ids alone stands first, so that rows are written as they come.
"""

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosscoders._io import atomic_write, check_file

_NAMES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64"}
_ALIGNMENT = 8
_LENGTH = struct.Struct("<Q")  # of the header, in front of it


def write_shard(
    path: Path,
    rows: Iterable[Tensor],
    *,
    batch_rows: Sequence[int],
    token_ids: Tensor,
    width: int,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Write a shard under a temporary name, one token batch at a time, and rename it when it is complete.

    Args:
        path: Final name.
        rows: Rows [batch width] of each token batch, in CPU memory.
        batch_rows: How many rows each token batch has.
        token_ids: Id of each row.
        width: Columns of the rows.
        dtype: Their dtype.

    Returns:
        What a manifest says about the file: its SHA-256 and its bytes.

    Raises:
        ValueError: The rows are not what `batch_rows`, `width` and `dtype` say.
        OSError: Writing failed; nothing new stands under `path`.
    """
    counts = torch.tensor(batch_rows, dtype=torch.int64)
    shapes = {
        "batch_rows": (torch.int64, (len(batch_rows),)),
        "token_ids": (torch.int64, (len(token_ids),)),
        "rows": (dtype, (len(token_ids), width)),
    }
    digest = hashlib.sha256()
    n_bytes = 0

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:

            def put(data: Any) -> None:
                nonlocal n_bytes
                digest.update(data)
                n_bytes += file.write(data)

            put(_header(shapes))
            put(_bytes_of(counts))
            put(_bytes_of(token_ids.to(torch.int64)))
            _put_rows(put, rows, batch_rows=batch_rows, width=width, dtype=dtype, where=path)

    atomic_write(path, write)
    return {"sha256": digest.hexdigest(), "bytes": n_bytes}


def shard_bytes(*, n_rows: int, n_batches: int, width: int, dtype: torch.dtype) -> int:
    """Bytes of a shard's file.

    Args:
        n_rows: Its rows.
        n_batches: Its token batches.
        width: Columns of the rows.
        dtype: Their dtype.

    Returns:
        Header, counts, ids and rows together.
    """
    shapes = {
        "batch_rows": (torch.int64, (n_batches,)),
        "token_ids": (torch.int64, (n_rows,)),
        "rows": (dtype, (n_rows, width)),
    }
    return len(_header(shapes)) + 8 * (n_batches + n_rows) + n_rows * width * dtype.itemsize


class ShardFile:
    """A shard that was checked, byte for byte, and is open for reading.

    Only the pages that are read come into memory, and they belong to the file: they are shared, and the
    system takes them back when it needs them.

    Args:
        path: The file.
        entry: What its manifest says: SHA-256 and bytes.

    Raises:
        CheckpointError: The file is missing or differs in any byte.
    """

    def __init__(self, path: Path, *, entry: dict[str, Any]) -> None:
        check_file(path, entry)
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r")
        (length,) = _LENGTH.unpack(self._bytes[: _LENGTH.size].tobytes())
        self._data_start = _LENGTH.size + length
        self._tensors = json.loads(self._bytes[_LENGTH.size : self._data_start].tobytes())
        counts = self._read("batch_rows", 0, self._tensors["batch_rows"]["shape"][0])
        self._starts = [0, *counts.cumsum(0).tolist()]

    @property
    def n_batches(self) -> int:
        """Token batches."""
        return len(self._starts) - 1

    def rows(self, batch: int) -> Tensor:
        """A copy of the rows [batch width] of one token batch.

        Args:
            batch: Its index within the shard.

        Returns:
            Rows in the dtype of the store.
        """
        return self._read("rows", *self._starts[batch : batch + 2])

    def token_ids(self, batch: int) -> Tensor:
        """The token ids of the rows of one token batch.

        Args:
            batch: Its index within the shard.

        Returns:
            One id per row.
        """
        return self._read("token_ids", *self._starts[batch : batch + 2])

    def _read(self, name: str, first: int, last: int) -> Tensor:
        """A copy of some entries, so that nothing holds on to the map."""
        entry = self._tensors[name]
        dtype = next(dtype for dtype, known in _NAMES.items() if known == entry["dtype"])
        shape = entry["shape"][1:]
        start = self._data_start + entry["data_offsets"][0]
        stride = dtype.itemsize * (shape[0] if shape else 1)
        copy = torch.empty(last - first, *shape, dtype=dtype)
        if copy.numel():
            _bytes_of(copy)[:] = self._bytes[start + first * stride : start + last * stride]
        return copy


def _header(shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> bytes:
    """The length of a safetensors header and the header itself, padded so that the data are aligned."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in shapes.items():
        end = at + dtype.itemsize * int(np.prod(shape, dtype=object))
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % _ALIGNMENT)
    return _LENGTH.pack(len(text)) + text


def _put_rows(
    put: Callable[[Any], None],
    rows: Iterable[Tensor],
    *,
    batch_rows: Sequence[int],
    width: int,
    dtype: torch.dtype,
    where: Path,
) -> None:
    for wanted, given in zip(batch_rows, rows, strict=True):
        if tuple(given.shape) != (wanted, width) or given.dtype != dtype:
            raise ValueError(
                f"{where}: expected {dtype} rows of shape {(wanted, width)}, got {given.dtype} of "
                f"{tuple(given.shape)}; does the harvester give [batch, pos, width] for every token batch?"
            )
        put(_bytes_of(given))


def _bytes_of(tensor: Tensor) -> Any:
    """The memory of a contiguous tensor as an array of bytes; a copy's where it is not contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
