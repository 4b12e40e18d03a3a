"""Data files of a report: what goes in comes out, in the stated layout, as one harmless line."""

import base64
import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from crosscoders.errors import CheckpointError
from crosscoders.report.site.container import (
    DTYPES,
    data_line,
    decode_container,
    encode_container,
    read_site_file,
)
from tests.report.hostile_text import HOSTILE

SHAPES = [(0,), (1,), (7,), (3, 5), (2, 3, 4), (0, 24), ()]


def sample(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Every bit pattern may occur, NaN among them."""
    raw = np.random.default_rng(len(shape)).bytes(int(np.prod(shape)) * int(dtype[1]))
    return np.frombuffer(raw, dtype=f"<{dtype}").reshape(shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_array_comes_back_to_the_bit(dtype: str, shape: tuple[int, ...]) -> None:
    array = sample(dtype, shape)
    _, arrays = decode_container(encode_container(None, {"before": np.zeros(3, "u1"), "x": array}))
    assert arrays["x"].shape == shape
    assert arrays["x"].dtype == np.dtype(f"<{dtype}")
    assert arrays["x"].tobytes() == array.tobytes()


@pytest.mark.parametrize("text", [*HOSTILE, "".join(HOSTILE)], ids=ascii)
def test_every_string_comes_back(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.js"
    path.write_bytes(data_line("x", {"text": [text], text: None}, {}))
    content, arrays = read_site_file(path)
    assert content == {"text": [text], text: None}
    assert arrays == {}


def test_the_layout_is_the_documented_one() -> None:
    raw = encode_container({"a": 1}, {"x": np.array([1, 2, 3], "<u2"), "y": np.array([0.5], "<f4")})
    (length,) = struct.unpack("<I", raw[:4])
    header = json.loads(raw[4 : 4 + length])
    start = (4 + length + 7) // 8 * 8
    assert raw[4 : 4 + length].isascii()
    assert header["json"] == {"a": 1}
    assert header["arrays"]["x"] == {"dtype": "u2", "shape": [3], "offset": 0}
    assert header["arrays"]["y"] == {"dtype": "f4", "shape": [1], "offset": 8}
    assert raw[start : start + 6] == struct.pack("<3H", 1, 2, 3)
    assert raw[start + 8 : start + 12] == struct.pack("<f", 0.5)
    assert raw[4 + length : start] == bytes(start - 4 - length)


def test_a_data_file_is_one_call_of_ascii_and_zlib() -> None:
    line = data_line("latents/000", list(HOSTILE), {"x": np.arange(5000, dtype="<u4")})
    found = re.fullmatch(rb'addData\("([a-z0-9/]+)", "([A-Za-z0-9+/=]+)"\);\n', line)
    assert found is not None
    assert found[1] == b"latents/000"
    raw = zlib.decompress(base64.b64decode(found[2]))
    assert decode_container(raw)[0] == list(HOSTILE)


def test_numbers_in_another_byte_order_or_memory_order_come_out_the_same() -> None:
    array = np.arange(12, dtype="<u4").reshape(3, 4)
    line = data_line("x", 0, {"x": array})
    assert data_line("x", 0, {"x": array.astype(">u4")}) == line
    assert data_line("x", 0, {"x": np.asfortranarray(array)}) == line
    assert data_line("x", 0, {"x": array + 1}) != line


def test_what_the_pages_could_not_read_is_refused() -> None:
    with pytest.raises(ValueError, match="array 'x' is float64; expected"):
        encode_container(None, {"x": np.zeros(3)})
    with pytest.raises(ValueError, match="JSON compliant"):
        encode_container(float("nan"), {})
    for name in ("", "a b", 'x");alert(1);("', "../x", "a//b", "x\n", "Table"):
        with pytest.raises(ValueError, match="expected a name such as"):
            data_line(name, None, {})


@pytest.mark.parametrize("cut", [0, 3, 10, 60, -1])
def test_a_cut_off_block_is_refused(cut: int) -> None:
    raw = encode_container({"a": "b"}, {"x": np.arange(100, dtype="<u4")})
    with pytest.raises(CheckpointError, match="no data of a report, or cut off"):
        decode_container(raw[:cut])


@pytest.mark.parametrize("entry", [
    {"dtype": "O", "shape": [1], "offset": 0}, {"dtype": "u4", "shape": [9], "offset": 0},
    {"dtype": "u4", "shape": [1], "offset": 4000}, {"shape": [1]}, 3,
])  # fmt: skip
def test_a_header_that_lies_is_refused(entry: object) -> None:
    header = json.dumps({"json": None, "arrays": {"x": entry}}).encode()
    with pytest.raises(CheckpointError, match="no data of a report"):
        decode_container(struct.pack("<I", len(header)) + header + bytes(16))


def test_another_or_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path, line = tmp_path / "x.js", data_line("x", "a", {})
    for other in (b"", b"addData();\n", line * 2, line.replace(b"\n", b""), b"x" + line):
        path.write_bytes(other)
        with pytest.raises(CheckpointError, match="expected one line addData"):
            read_site_file(path)
    path.write_bytes(line.replace(b'"eJ', b'"AA'))
    with pytest.raises(CheckpointError, match="damaged"):
        read_site_file(path)
