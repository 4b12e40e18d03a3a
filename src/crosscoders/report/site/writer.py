"""A report as one value, and writing it as a folder that is whole or not there."""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, final

import numpy as np
from torch import Tensor

from crosscoders._io import atomic_directory, check_replaceable, write_manifest
from crosscoders._typing import typed
from crosscoders.report.site.checks import check_range, json_ready
from crosscoders.report.site.columns import Column, table_file
from crosscoders.report.site.container import data_line
from crosscoders.report.site.latent_files import latent_files
from crosscoders.report.site.pages import LatentPages
from crosscoders.report.site.text import TokenText, text_file

MARKER = "report.json"
_FIGURE_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_FIGURE_TYPES = (".png", ".jpg", ".csv", ".txt", ".json")  # nothing that a browser would run


@final
@dataclass(frozen=True, kw_only=True)
class Site:
    """Everything that a report shows, as data.

    Args:
        overview: Content of the first page: strings, numbers (NaN for undefined), lists and mappings.
        columns: Columns of the latent browser, the first one named "latent".
        text: The text that the snippets are cut from; None where the models were not at hand.
        pages: What the latents' pages show; None where there is nothing beyond the table.
        experiments: Content of the page of experiments.
        figures: Files to copy, by their place below `figures/`, such as "norms/nrn.png".
        n_tokens: Tokens that the table's measures were taken on; None where unknown.
    """

    overview: Mapping[str, Any]
    columns: Sequence[Column]
    text: TokenText | None = None
    pages: LatentPages | None = None
    experiments: Mapping[str, Any] = field(default_factory=lambda: {"experiments": []})
    figures: Mapping[str, Path] = field(default_factory=dict)
    n_tokens: int | None = None

    def __post_init__(self) -> None:
        self._check_columns()
        self._check_pages()
        for name, path in self.figures.items():
            _check_figure(name, path)

    def _check_columns(self) -> None:
        names = [column.name for column in self.columns]
        if names[:1] != ["latent"] or len(set(names)) != len(names):
            raise ValueError(f"Site.columns: expected distinct names, the first one 'latent'; got {names}.")
        lengths = {column.name: len(column) for column in self.columns}
        n_latents = lengths["latent"]
        if set(lengths.values()) != {n_latents}:
            raise ValueError(f"Site.columns: expected {n_latents} entries in each, got {lengths}.")
        if self.pages is not None and self.pages.n_latents != n_latents:
            raise ValueError(f"Site: pages of {self.pages.n_latents} latents, a table of {n_latents}.")

    def _check_pages(self) -> None:
        """Snippets and lens point into the text."""
        if self.pages is None:
            return
        snippets, lens = self.pages.snippets, (self.pages.lens_top, self.pages.lens_bottom)
        if self.text is None and (snippets is not None or any(side is not None for side in lens)):
            raise ValueError("Site: pages with snippets or a logit lens need the text that they point into.")
        if self.text is None:
            return
        if snippets is not None:
            end = len(self.text.tokens)
            check_range("Snippets.start + length (tokens of text)", snippets.start + snippets.length, 0, end)
        for side in lens:
            if isinstance(side, Tensor):
                check_range("LatentPages.lens (indices of strings)", side, 0, len(self.text.strings) - 1)


def _check_figure(name: str, path: Path) -> None:
    parts = name.split("/")
    if not all(_FIGURE_PART.fullmatch(part) for part in parts) or not name.endswith(_FIGURE_TYPES):
        raise ValueError(
            f"Site.figures: {name!r} should be a place below figures/ such as 'norms/nrn.png', of letters, "
            f"digits, '_', '-' and '.', ending in one of {', '.join(_FIGURE_TYPES)}."
        )
    if not path.is_file():
        raise ValueError(f"Site.figures: {name!r} should be copied from {path}, which is no file.")


@typed
def check_folder(folder: Path) -> None:
    """Check that a report may be written to a folder, before the work of gathering it.

    Args:
        folder: The report's folder.

    Raises:
        FileExistsError: The folder holds something that is no report of this library.
    """
    check_replaceable(folder.resolve(), marker=MARKER)


@typed
def write_site(folder: Path, site: Site) -> None:
    """Write a report as a folder that opens from disk and from any static host.

    Everything is written into a fresh folder beside it, which then takes its place: a crash leaves an old
    report whole, and nothing of it in a new one.

    Args:
        folder: The report's folder; its parents are created. An older report of this library is replaced.
        site: What the report shows.

    Raises:
        FileExistsError: The folder holds something that is no report of this library.
        OSError: Writing or copying a figure failed; the old report is untouched.
    """
    with atomic_directory(folder.resolve(), marker=MARKER) as temporary:
        _copy_assets(files("crosscoders.report.site") / "assets", temporary)
        for name, content, arrays in _data_files(site):
            path = temporary / "data" / f"{name}.js"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data_line(name, content, arrays))
        for name, source in site.figures.items():
            path = temporary / "figures" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, path)
        write_manifest(temporary / MARKER, {"kind": "report"})


def _data_files(site: Site) -> Iterator[tuple[str, Any, dict[str, np.ndarray]]]:
    yield "overview", json_ready("Site.overview", site.overview), {}
    yield "experiments", json_ready("Site.experiments", site.experiments), {}
    has_text, has_pages = site.text is not None, site.pages is not None
    yield (
        "table",
        *table_file(site.columns, n_tokens=site.n_tokens, has_text=has_text, has_pages=has_pages),
    )
    if site.text is not None:
        yield "text", *text_file(site.text)
    if site.pages is not None:
        yield from latent_files(site.pages)


def _copy_assets(assets: Traversable, folder: Path) -> None:
    """The page into the report's own folder, everything else into `app/` below it."""
    (folder / "app").mkdir()
    for asset in assets.iterdir():
        if asset.is_file() and not asset.name.startswith((".", "_")):
            home = folder if asset.name == "index.html" else folder / "app"
            (home / asset.name).write_bytes(asset.read_bytes())
