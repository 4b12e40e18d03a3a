"""Small reports and their parts for the tests of `report/site`."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from crosscoders.report.site.container import read_site_file


def parts(item: Any, **changes: Any) -> dict[str, Any]:
    """The fields of a dataclass as keyword arguments, some of them changed."""
    return {field.name: getattr(item, field.name) for field in fields(item)} | changes


def changed(item: Any, **changes: Any) -> Any:
    """The same thing with some fields changed, checked anew."""
    return type(item)(**parts(item, **changes))


def data_of(folder: Path, name: str) -> tuple[Any, dict[str, np.ndarray]]:
    """One data file of a written report."""
    return read_site_file(folder / "data" / f"{name}.js")


def read_latents(folder: Path) -> Iterator[tuple[int, Any, dict[str, np.ndarray], int]]:
    """Latent, its file's JSON and arrays, and its place in them, for every latent of a written report."""
    for path in sorted((folder / "data" / "latents").iterdir()):
        content, arrays = read_site_file(path)
        assert int(path.stem) * 64 == content["first"]
        for at in range(content["n"]):
            yield content["first"] + at, content, arrays, at


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its relative name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
