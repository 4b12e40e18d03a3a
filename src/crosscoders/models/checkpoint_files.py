"""Reading Hugging Face safetensors checkpoints, one tensor at a time and trusting nothing in them.

The format (https://huggingface.co/docs/safetensors): eight bytes with the length of the header
(little-endian), the header as JSON (for each tensor its dtype, shape and byte offsets), then the tensors'
bytes without gaps. A sharded checkpoint has `model.safetensors.index.json`, whose `weight_map` says which
file holds which tensor. All of it is parsed and checked here, so a damaged or hostile file ends in a
`CheckpointError` before a byte of it becomes a tensor, and nothing in it is ever executed.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crosscoders._io import member_path
from crosscoders._typing import typed
from crosscoders.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_MAX_JSON_BYTES = 100_000_000  # the format's own limit for a header
_MAX_DIMENSIONS = 64  # torch's own limit
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
}  # fmt: skip
_ADVICE = "It is damaged or was edited; copy it again from its source."


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """What a safetensors header says about one tensor.

    Args:
        path: File that holds it.
        dtype: Stored dtype.
        shape: Stored shape.
        start: Offset of its first byte from the start of the file.
        n_bytes: Its length in bytes.
    """

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    n_bytes: int


class CheckpointReader:
    """The tensors of a checkpoint folder by name, each read when asked for.

    A shard is opened only when one of its tensors is asked for. `bytes_read` counts the bytes of the tensors
    that were read, headers and index not included.

    Args:
        folder: Folder with `model.safetensors`, or with `model.safetensors.index.json` and its shards.
        fetch: Called with the name of a file of the folder before it is first opened, to download it; None
            if the folder is complete.

    Raises:
        CheckpointError: There is no safetensors checkpoint, or its index is not usable.
    """

    def __init__(self, folder: Path, *, fetch: Callable[[str], bool] | None = None) -> None:
        self.folder = Path(folder)
        self._fetch = fetch
        self._headers: dict[str, dict[str, StoredTensor]] = {}
        self._n_read = 0
        self._shard_of = self._find_tensors()

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every tensor of the checkpoint."""
        return tuple(self._shard_of)

    @property
    def shards(self) -> tuple[str, ...]:
        """Name of every file that holds tensors."""
        return tuple(dict.fromkeys(self._shard_of.values()))

    @property
    def opened(self) -> tuple[str, ...]:
        """Name of every shard that was opened so far."""
        return tuple(self._headers)

    @property
    def bytes_read(self) -> int:
        """Bytes of all tensors that were read so far."""
        return self._n_read

    @typed
    def stored(self, name: str) -> StoredTensor:
        """What the checkpoint says about a tensor, without reading it.

        Args:
            name: A tensor's name.

        Raises:
            CheckpointError: There is no such tensor, or its shard is missing, damaged or lacks it.
        """
        shard = self._shard_of.get(name)
        if shard is None:
            raise CheckpointError(f"{self.folder}: the checkpoint has no tensor {name!r}.")
        header = self._header(shard)
        if name not in header:
            raise CheckpointError(
                f"{self.folder / shard}: the index places tensor {name!r} in this file, which lacks it. "
                f"{_ADVICE}"
            )
        return header[name]

    @typed
    def read(self, name: str) -> Tensor:
        """Read one tensor to the CPU, in the dtype it is stored in.

        Args:
            name: A tensor's name.

        Raises:
            CheckpointError: As for `stored`, or the file ends too early.
        """
        stored = self.stored(name)
        raw = torch.empty(stored.n_bytes, dtype=torch.uint8)
        memory: Any = raw.numpy()
        with stored.path.open("rb") as file:
            file.seek(stored.start)
            n_got = file.readinto(memory)
        if n_got != stored.n_bytes:
            raise CheckpointError(
                f"{stored.path}: tensor {name!r} should have {stored.n_bytes} bytes, got {n_got}. {_ADVICE}"
            )
        self._n_read += stored.n_bytes
        try:
            return raw.view(stored.dtype).reshape(stored.shape)
        except RuntimeError as err:  # an empty tensor whose other axes overflow
            raise CheckpointError(
                f"{stored.path}: tensor {name!r} has shape {stored.shape} ({err})."
            ) from err

    @typed
    def check_all(self) -> None:
        """Open every shard and check that it is whole and agrees with the index; reads no tensor.

        Raises:
            CheckpointError: A shard is missing or damaged, lacks a tensor, or holds one that the index
                places in another shard.
        """
        for name in self.names:
            self.stored(name)
        for shard in self.shards:
            elsewhere = [name for name in self._header(shard) if self._shard_of.get(name, shard) != shard]
            if elsewhere:
                raise CheckpointError(
                    f"{self.folder / shard}: holds {elsewhere[:3]}, which the index places in another file. "
                    f"{_ADVICE}"
                )

    def _find_tensors(self) -> dict[str, str]:
        if self._has(SINGLE_FILE):
            return dict.fromkeys(self._header(SINGLE_FILE), SINGLE_FILE)
        if self._has(INDEX_FILE):
            return read_index(self.folder / INDEX_FILE)
        _refuse_other_formats(self.folder)
        raise CheckpointError(
            f"{self.folder}: neither {SINGLE_FILE} nor {INDEX_FILE} is there; only safetensors are read, so "
            "a model that has other files alone must be converted first."
        )

    def _has(self, name: str) -> bool:
        # Names from the index were checked when it was read; what now lies there may still be a link.
        if self._fetch is not None and not self._fetch(name):
            return False
        return _is_file(member_path(self.folder, name))

    def _header(self, shard: str) -> dict[str, StoredTensor]:
        if shard not in self._headers:
            if not self._has(shard):
                raise CheckpointError(
                    f"{self.folder / shard}: the index names this file, but it is missing; "
                    "the download or copy of the model is incomplete."
                )
            self._headers[shard] = read_header(self.folder / shard)
        return self._headers[shard]


@typed
def read_json(path: Path) -> Any:
    """The content of a JSON file, in which no table may name a key twice.

    Args:
        path: The file.

    Raises:
        CheckpointError: It is not JSON in UTF-8, repeats a key, nests too deeply or is unreasonably large.
    """
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise CheckpointError(f"{path}: more than {_MAX_JSON_BYTES} bytes of JSON are not read. {_ADVICE}")
    return _parse_json(path, path.read_bytes())


@typed
def read_index(path: Path) -> dict[str, str]:
    """The shard of each tensor, from a `model.safetensors.index.json`.

    Args:
        path: The index file.

    Raises:
        CheckpointError: It is not JSON of the documented form, repeats a key, or names something that is not
            a safetensors file inside its folder.
    """
    content = read_json(path)
    shard_of = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shard_of, dict) or not shard_of:
        raise CheckpointError(f"{path}: expected a 'weight_map' of tensor names to file names. {_ADVICE}")
    for name, shard in shard_of.items():
        if not isinstance(shard, str):
            raise CheckpointError(f"{path}: tensor {name!r} should name a file, got {shard!r}. {_ADVICE}")
    for shard in sorted(set(shard_of.values())):
        if not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{path}: names {shard!r}; only safetensors files are read. "
                "Convert the model first (save_pretrained of transformers writes safetensors)."
            )
        member_path(path.parent, shard)
    if not isinstance(content.get("metadata"), dict):
        raise CheckpointError(f"{path}: expected a table of 'metadata' beside the 'weight_map'. {_ADVICE}")
    return shard_of


@typed
def read_header(path: Path) -> dict[str, StoredTensor]:
    """What a safetensors file holds, from its header alone.

    Args:
        path: The file.

    Raises:
        CheckpointError: The header is not of the documented form, or the file has more or fewer bytes than
            its tensors.
    """
    n_file = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        n_header = int.from_bytes(start, "little")
        if start.startswith(_PICKLE_STARTS):
            raise CheckpointError(
                f"{path}: this is a pickle (or zip) file under a safetensors name. Nothing in it was "
                "executed; get the model as safetensors."
            )
        if len(start) < 8 or n_header > min(n_file - 8, _MAX_JSON_BYTES):
            raise CheckpointError(
                f"{path}: a header of {n_header} bytes does not fit a file of {n_file} bytes. {_ADVICE}"
            )
        content = _parse_json(path, file.read(n_header))
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: the header is not a table of tensors. {_ADVICE}")
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: the header's __metadata__ is not a table of texts. {_ADVICE}")
    tensors = {name: _stored(path, name, entry, base=8 + n_header) for name, entry in content.items()}
    _check_layout(path, tensors.values(), start=8 + n_header, end=n_file)
    return tensors


def _stored(path: Path, name: str, entry: Any, *, base: int) -> StoredTensor:
    where = f"{path}: tensor {name!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(
            f"{where}: expected dtype, shape and data_offsets, got {_brief(entry)}. {_ADVICE}"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise CheckpointError(f"{where}: unknown dtype {_brief(dtype)}; known are {sorted(_DTYPES)}.")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(
            f"{where}: shape {_brief(shape)} and offsets {_brief(offsets)} are not lists of sizes. {_ADVICE}"
        )
    n_bytes = _DTYPES[dtype].itemsize
    for size in shape:
        n_bytes *= size
    if offsets[1] - offsets[0] != n_bytes:
        raise CheckpointError(
            f"{where}: {dtype} of shape {shape} takes {n_bytes} bytes, but its offsets {offsets} span "
            f"{offsets[1] - offsets[0]}. {_ADVICE}"
        )
    return StoredTensor(
        path=path, dtype=_DTYPES[dtype], shape=tuple(shape), start=base + offsets[0], n_bytes=n_bytes
    )


def _check_layout(path: Path, tensors: Iterable[StoredTensor], *, start: int, end: int) -> None:
    for tensor in sorted(tensors, key=lambda t: (t.start, t.n_bytes)):
        if tensor.start != start:
            raise CheckpointError(f"{path}: its tensors overlap or leave gaps at byte {start}. {_ADVICE}")
        start += tensor.n_bytes
    if start != end:
        raise CheckpointError(f"{path}: expected {start} bytes, got {end}. {_ADVICE}")


def _are_sizes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= _MAX_DIMENSIONS
        and all(type(size) is int and 0 <= size < 2**63 for size in value)
    )


def _parse_json(path: Path, raw: bytes) -> Any:
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as err:
        raise CheckpointError(f"{path}: not readable as JSON ({err}). {_ADVICE}") from err


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise ValueError(f"the key {name!r} appears twice")
        table[name] = value
    return table


def _refuse_other_formats(folder: Path) -> None:
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLE_SUFFIXES)
    if pickles:
        raise CheckpointError(
            f"{folder}: holds only pickle files ({pickles[:3]}), which can run code and are not read. "
            "Convert the model to safetensors first (save_pretrained of transformers writes them)."
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the file system
        return False


def _brief(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:  # nested as deeply as the parser allows
        text = type(value).__name__
    return text if len(text) <= 80 else f"{text[:80]}..."
