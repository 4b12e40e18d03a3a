"""Notes on latents from CSV files: the user's own, and what annotation experiments said."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from crosscoders._typing import typed

_OWN = "annotation"  # column of a user's file
_EXPLAINED = "_explanation"  # an annotator NAME leaves the columns NAME and NAME_explanation


@typed
def annotations_of(folder: Path, *, n_latents: int, extra: Path | None = None) -> tuple[str, ...]:
    """The annotation of each latent; empty where there is none.

    The first file that has something to say about a latent says it: `extra`, then `annotations.csv` of the
    run, then `experiments/annotation*/annotation.csv` in the order of their names. A file has a column
    `latent` and a column `annotation`, or the annotators' columns of an annotation experiment, of which those
    that name a category are joined: "self-reflection (label)".

    Args:
        folder: The run's folder.
        n_latents: Latents of its crosscoder.
        extra: A file to read first.

    Raises:
        FileNotFoundError: There is no such `extra`.
        ValueError: A file lacks these columns, or names a latent that the crosscoder does not have.
    """
    files = [] if extra is None else [extra]
    files += [file for file in [folder / "annotations.csv"] if file.is_file()]
    files += sorted(folder.glob("experiments/annotation*/annotation.csv"))
    found = [""] * n_latents
    for file in reversed(files):
        for latent, said in _read(file, n_latents).items():
            found[latent] = said
    return tuple(found)


def _read(file: Path, n_latents: int) -> dict[int, str]:
    with file.open(encoding="utf-8", newline="") as opened:
        reader = csv.DictReader(opened)
        names = list(reader.fieldnames or ())
        annotators = [name for name in names if name + _EXPLAINED in names]
        if "latent" not in names or not (_OWN in names or annotators):
            raise ValueError(
                f"{file}: annotations need the columns 'latent' and 'annotation', got {names[:10]}."
            )
        said = {_latent(file, row, n_latents): _said(row, annotators) for row in reader}
    return {latent: text for latent, text in said.items() if text}


def _latent(file: Path, row: Mapping[str, str | None], n_latents: int) -> int:
    written = (row["latent"] or "").strip()
    if not (written.isascii() and written.isdigit() and int(written) < n_latents):
        raise ValueError(
            f"{file}: latent {written!r} is not a whole number from 0 to {n_latents - 1}; "
            "are these annotations of another crosscoder?"
        )
    return int(written)


def _said(row: Mapping[str, str | None], annotators: Sequence[str]) -> str:
    if _OWN in row:
        return row[_OWN] or ""
    return ", ".join(f"{row[name]} ({name})" for name in annotators if row[name])
