"""Read a crosscoder of another library: detect its format by keys and shapes, then translate it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from crosscoders._typing import typed
from crosscoders.errors import CheckpointError
from crosscoders.hub.formats import (
    ckkissane,
    crosscode,
    dfc,
    dictionary_learning,
    dictionary_learning_sae,
    jnward,
    llamascopium,
    saelens,
    sparsify,
)
from crosscoders.hub.formats.assemble import assemble
from crosscoders.hub.formats.dictionary_learning import PARTITION
from crosscoders.hub.formats.files import ForeignFile, read_weights_file, weights_files
from crosscoders.hub.formats.result import Foreign, Given
from crosscoders.sources import Source

FORMATS = {
    "ckkissane": ckkissane,
    "dictionary_learning": dictionary_learning,
    "dictionary_learning_sae": dictionary_learning_sae,
    "dfc": dfc,
    "crosscode": crosscode,
    "jnward": jnward,
    "llamascopium": llamascopium,
    "saelens": saelens,
    "sparsify": sparsify,
}


@typed
def read_foreign(
    folder_or_file: Path,
    *,
    sources: Sequence[Source | str] | None = None,
    scale: Sequence[float | int] | Mapping[str, float | int] | None = None,
    k: int | None = None,
    allow_pickle_files: bool = False,
) -> Foreign:
    """Read a crosscoder that another library wrote; it selects and reconstructs as its own library does.

    The format is told by the names and shapes of the tensors, never by file names.

    Args:
        folder_or_file: The weights file, or the folder that holds it and its config.
        sources: The sources in the file's order (scale 1.0), or their names alone; None for the file's own.
        scale: `normalized = raw * scale` for each source, in order or by name: required where the file lacks
            it, an error where the file carries it.
        k: Latents per token, for a top-k file that does not say; an error for a file without one.
        allow_pickle_files: Whether to read `.pt` files, through torch's restricted unpickler.

    Returns:
        The crosscoder in eval mode, the format's name, and notes.

    Raises:
        CheckpointError: A file is missing, damaged, of no known format, contradicts its config, or computes
            something that a crosscoder cannot.
        ValueError: More than one file or format fits, or sources, scale or k are missing or do not fit.
    """
    if isinstance(sources, str):
        raise ValueError(f"sources: expected one entry per source, got the text {sources!r}.")
    file, name = _the_one(weights_files(folder_or_file, allow_pickle_files=allow_pickle_files))
    given = Given(sources=None if sources is None else tuple(sources), scale=scale, k=k)
    parts = FORMATS[name].read(file, given)
    if k is not None and not hasattr(parts.activation_fn, "k"):
        kind = parts.activation_fn.kind
        raise ValueError(
            f"{file.path}: its activation function {kind!r} keeps no fixed number; leave out k=."
        )
    unused = sorted(set(file.extras) - {"k", PARTITION})
    ignored = (f"Entries of the file that are no tensors were not used: {unused}.",) if unused else ()
    return Foreign(
        crosscoder=assemble(parts, given, format_name=name),
        format_name=name,
        notes=parts.notes + ignored,
    )


def read_files(path: Path) -> ForeignFile:
    """The files that `read_foreign` reads, pickles included."""
    return _the_one(weights_files(path, allow_pickle_files=True))[0]


def _the_one(paths: list[Path]) -> tuple[ForeignFile, str]:
    """The only file that has a known format, with that format's name."""
    files = [read_weights_file(path) for path in paths]
    known = [(file, names) for file in files if (names := _names_of(file))]
    if not known:
        seen = "; ".join(f"{file.path.name}: {_show(file)}" for file in files[:3])
        raise CheckpointError(
            f"{paths[0].parent}: no tensors of a known format ({', '.join(FORMATS)}); found {seen}."
        )
    if len(known) > 1:
        listed = ", ".join(f"{file.path.name} ({'/'.join(names)})" for file, names in known)
        raise ValueError(f"{paths[0].parent}: several files hold a crosscoder: {listed}; name one of them.")
    file, names = known[0]
    if len(names) > 1:
        raise ValueError(f"{file.path}: its tensors fit more than one format: {names}; {_show(file)}.")
    return file, names[0]


def _names_of(file: ForeignFile) -> list[str]:
    return [name for name, module in FORMATS.items() if module.matches(file)]


def _show(file: ForeignFile) -> str:
    shown = [f"{key} {list(shape)}" for key, shape in sorted(file.shapes.items())[:8]]
    return ", ".join(shown) or "no tensors"
