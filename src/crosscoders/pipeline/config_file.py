"""A run's configuration from a TOML file whose values the command line may override."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crosscoders._typing import typed
from crosscoders.pipeline.config import RunConfig


@typed
def toml_values(path: Path | None) -> dict[str, Any]:
    """What a TOML file says, as plain values; nothing without a file.

    Args:
        path: The file, or None.

    Returns:
        A new dictionary.

    Raises:
        ValueError: Not TOML; the message names the file.
    """
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise ValueError(f"{path}: {err}") from err


@typed
def config_of(values: Mapping[str, Any], *, path: Path | None) -> RunConfig:
    """The configuration that plain values mean.

    Args:
        values: Of the file and of the command line together.
        path: The file that messages name; None names the command line.

    Raises:
        ValueError: The configuration of a sweep, or as for `RunConfig.from_dict`.
    """
    if "sweep" in values:
        raise ValueError(
            f"{path or 'command line'}: has a table [sweep], which `crosscoders sweep` reads; for one of its "
            "members leave the table out and give each axis a value."
        )
    try:
        return RunConfig.from_dict(values)
    except (TypeError, ValueError) as err:
        raise ValueError(f"{path or 'command line'}: {err}") from err
