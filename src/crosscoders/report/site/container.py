"""One data file of a report: JSON and arrays in one compressed block, carried by a line of JavaScript.

A page opened from disk may load scripts but not data, so a data file is the one line
`addData("NAME", "BASE64");`. The base64 holds a zlib stream (RFC 1950) of: the length H of the header as a
little-endian uint32; H bytes of ASCII JSON, `{"json": any, "arrays": {name: {"dtype", "shape", "offset"}}}`;
zeros up to a multiple of 8 bytes; the arrays, little-endian, each starting at a multiple of 8 bytes. An
offset counts from the start of the first array; a dtype is one of u1, u2, u4, i1, i2 and f4.
"""

import base64
import binascii
import json
import math
import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from crosscoders._typing import typed
from crosscoders.errors import CheckpointError

DTYPES = ("u1", "u2", "u4", "i1", "i2", "f4")
_ALIGNMENT = 8
_LEVEL = 6  # 32,768 latents, one core, 2026-11: 52.0 MB; 1 gives 2% more, 9 1% less in thrice the time
_NAME = re.compile(r"[a-z0-9_]+(/[a-z0-9_]+)*")
_LINE = re.compile(rb'addData\("([a-z0-9_/]+)", "([A-Za-z0-9+/]*={0,2})"\);\n')


@typed
def encode_container(content: Any, arrays: Mapping[str, np.ndarray]) -> bytes:
    """JSON and arrays as one block of bytes, equal for equal arguments.

    Args:
        content: Anything that JSON can say; no NaN.
        arrays: Arrays by name, of the types in `DTYPES`.

    Raises:
        ValueError: Another type of array, or NaN in the content.
    """
    entries, blocks, offset = {}, [], 0
    for name, array in arrays.items():
        dtype = f"{array.dtype.kind}{array.dtype.itemsize}"
        if dtype not in DTYPES:
            raise ValueError(f"encode_container: array {name!r} is {array.dtype}; expected {DTYPES}.")
        block = np.ascontiguousarray(array, dtype=f"<{dtype}").tobytes()
        entries[name] = {"dtype": dtype, "shape": list(array.shape), "offset": offset}
        blocks += [block, _padding(len(block))]
        offset += len(block) + len(blocks[-1])
    whole = {"json": content, "arrays": entries}
    header = json.dumps(whole, separators=(",", ":"), allow_nan=False).encode("ascii")
    return b"".join([struct.pack("<I", len(header)), header, _padding(4 + len(header)), *blocks])


def _padding(n_bytes: int) -> bytes:
    return bytes(-n_bytes % _ALIGNMENT)


@typed
def decode_container(raw: bytes) -> tuple[Any, dict[str, np.ndarray]]:
    """What `encode_container` was given.

    Args:
        raw: The block.

    Returns:
        The JSON part and the arrays (read-only).

    Raises:
        CheckpointError: The block is cut off or is no such block.
    """
    try:
        (length,) = struct.unpack_from("<I", raw)
        whole = json.loads(raw[4 : 4 + length])
        start = 4 + length + len(_padding(4 + length))
        arrays = {name: _array(raw, start, entry) for name, entry in whole["arrays"].items()}
        return whole["json"], arrays
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as err:
        raise CheckpointError(f"decode_container: this is no data of a report, or cut off ({err}).") from err


def _array(raw: bytes, start: int, entry: Mapping[str, Any]) -> np.ndarray:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"unknown dtype {entry['dtype']!r}")
    shape, at = entry["shape"], start + entry["offset"]
    flat = np.frombuffer(raw, dtype=f"<{entry['dtype']}", count=math.prod(shape), offset=at)
    return flat.reshape(shape)


@typed
def data_line(name: str, content: Any, arrays: Mapping[str, np.ndarray]) -> bytes:
    """A data file: one call of `addData` with the compressed container.

    Args:
        name: Name of the data, such as "latents/000".
        content: The JSON part.
        arrays: The arrays.

    Raises:
        ValueError: A name with other characters than lower-case letters, digits, "_" and "/", or content
            that `encode_container` refuses.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"data_line: expected a name such as 'latents/000', got {name!r}.")
    packed = zlib.compress(encode_container(content, arrays), _LEVEL)
    return b'addData("%s", "%s");\n' % (name.encode("ascii"), base64.b64encode(packed))


@typed
def read_site_file(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """Read one data file of a report, such as `report/data/table.js`.

    Args:
        path: The file.

    Returns:
        The JSON part and the arrays (read-only) by name.

    Raises:
        CheckpointError: The file is not one of a report, or is damaged.
    """
    line = _LINE.fullmatch(path.read_bytes())
    if line is None:
        raise CheckpointError(f'{path}: expected one line addData("NAME", "BASE64"); this is another file.')
    try:
        raw = zlib.decompress(base64.b64decode(line[2], validate=True))
    except (binascii.Error, zlib.error) as err:
        raise CheckpointError(f"{path}: damaged ({err}); write the report again.") from err
    return decode_container(raw)
