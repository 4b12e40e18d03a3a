"""Turn a crosscoder of another library into an artifact of this one; the one place that reads `.pt` files."""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crosscoders._io import FORMAT_NAME, parse_json, sha256_file
from crosscoders._typing import typed
from crosscoders.errors import CheckpointError
from crosscoders.hub.formats.files import read_config
from crosscoders.hub.formats.read import read_files, read_foreign
from crosscoders.hub.formats.result import Foreign
from crosscoders.sources import Source


@typed
def convert(
    path: Path | str,
    out: Path | str,
    *,
    sources: Sequence[Source | str] | None = None,
    scale: Sequence[float | int] | Mapping[str, float | int] | None = None,
    k: int | None = None,
) -> Foreign:
    """Read a foreign crosscoder, pickled or not, and write it as a native artifact, all or nothing.

    The artifact's training summary says where it came from: the format, the original config and the SHA-256
    of each original file.

    Args:
        path: The weights file, or the folder that holds it and its config.
        out: Folder of the artifact; replaced only if this library wrote it.
        sources: The sources in the file's order (scale 1.0), or their names alone; None for the file's own.
        scale: `normalized = raw * scale` for each source, in order or by name, where the file lacks it.
        k: Latents per token, for a top-k file that does not say.

    Returns:
        The crosscoder, the format's name and notes.

    Raises:
        CheckpointError: A file is missing, damaged, of no known format, or cannot be represented.
        ValueError: `path` is an artifact of this library, several files fit, or something has to be given.
        OSError: Writing failed, or `out` holds something that this library did not write.
    """
    path = Path(path)
    _check_foreign(path)
    foreign = read_foreign(path, sources=sources, scale=scale, k=k, allow_pickle_files=True)
    file = read_files(path)
    origin = {
        "format": foreign.format_name,
        "files": {used.name: sha256_file(used) for used in file.files},
        "config": _json_ready(dict(file.config)),
        "trainer_config": _json_ready(dict(file.trainer)),
        "notes": list(foreign.notes),
    }
    foreign.crosscoder.save_pretrained(out, training_summary={"converted_from": origin})
    return foreign


@typed
def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `crosscoders convert`.

    Args:
        parser: The command's parser.
    """
    parser.add_argument("path", type=Path, help="weights file, or folder that holds it and its config")
    parser.add_argument("out", type=Path, help="folder of the artifact")
    parser.add_argument("--scale", help="scale of each source where the file lacks it, such as 0.28,0.25")
    parser.add_argument(
        "--scale-file", type=Path, help="the same from JSON: a list, or numbers by source name"
    )
    parser.add_argument("--source", action="append", help="name of a source, in the file's order; repeat it")
    parser.add_argument("--k", type=int, help="latents per token, where the file does not say")


@typed
def convert_command(arguments: argparse.Namespace) -> str:
    """Do what `crosscoders convert` asks.

    Args:
        arguments: As `add_convert_arguments` declares them.

    Returns:
        What to print.

    Raises:
        CheckpointError: As `convert`.
        ValueError: As `convert`, or both or neither form of a scale can be read.
        OSError: As `convert`.
    """
    if arguments.scale is not None and arguments.scale_file is not None:
        raise ValueError("convert: give --scale or --scale-file, not both.")
    foreign = convert(
        arguments.path, arguments.out, sources=arguments.source, scale=_scale(arguments), k=arguments.k
    )
    crosscoder = foreign.crosscoder
    sources = ", ".join(f"{s.name} (width {s.d_model}, scale {s.scale:.6g})" for s in crosscoder.sources)
    lines = [
        f"{arguments.out}: {crosscoder.n_latents} latents from format {foreign.format_name}; "
        f"sources {sources}.",
        *(f"note: {note}" for note in foreign.notes),
    ]
    return "\n".join(lines)


def _scale(arguments: argparse.Namespace) -> list[float] | dict[str, float] | None:
    if arguments.scale is not None:
        try:
            return [float(part) for part in arguments.scale.split(",")]
        except ValueError as err:
            raise ValueError(
                f"--scale: expected numbers such as 0.28,0.25, got {arguments.scale!r}."
            ) from err
    if arguments.scale_file is None:
        return None
    content = parse_json(arguments.scale_file, arguments.scale_file.read_bytes())
    values = (
        content
        if isinstance(content, list)
        else list(content.values())
        if isinstance(content, dict)
        else [None]
    )
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise ValueError(f"{arguments.scale_file}: expected a list of numbers, or numbers by source name.")
    return content


def _check_foreign(path: Path) -> None:
    """Raise ValueError if this is an artifact of this library."""
    config = path / "config.json"
    if not config.is_file():
        return
    try:
        is_ours = read_config(config).get("format") == FORMAT_NAME
    except CheckpointError:
        return  # whoever reads the config says what is wrong with it
    if is_ours:
        raise ValueError(f"{path}: is an artifact of this library already; read it with from_pretrained.")


def _json_ready(value: Any) -> Any:
    """The value in what JSON can say: numbers that are not finite, dates and the like become text."""
    if isinstance(value, dict):
        return {str(key): _json_ready(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_json_ready(entry) for entry in value]
    is_plain = value is None or isinstance(value, str | bool | int)
    return value if is_plain or (isinstance(value, float) and math.isfinite(value)) else str(value)
