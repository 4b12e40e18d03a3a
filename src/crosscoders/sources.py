"""Sources, the column slices of the flat width, and the per-source scale.

A source is one (model, hook name) pair. The activations of all sources of one token lie side by side in one
vector of `width = sum(d_model)`; a source is a column slice of it.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._io import check_field_types, check_keys
from crosscoders._typing import typed


@dataclass(frozen=True, kw_only=True)
class Source:
    """One (model, hook name) pair that a crosscoder reads and writes.

    Args:
        name: Short unique name by which the source is addressed, such as "base".
        d_model: Width of its activations.
        hook_name: TransformerLens hook, such as "blocks.14.hook_resid_pre"; empty for own tensors.
        model_id: Directory or Hub id of the model; empty for own tensors.
        revision: Hub revision that was loaded, if any.
        scale: `normalized = raw * scale`; 1.0 until it is estimated.
        tokenizer_fingerprint: Hash of the vocabulary that the model was read with, if known; absent from
            files written before it was recorded.

    Raises:
        ValueError: An empty name, `d_model` below 1, or a scale that is not finite and positive.
    """

    name: str
    d_model: int
    hook_name: str = ""
    model_id: str = ""
    revision: str | None = None
    scale: float = 1.0
    tokenizer_fingerprint: str | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("Source: name is empty; give each source a short name such as 'base'.")
        if self.d_model < 1:
            raise ValueError(f"Source {self.name!r}: d_model must be at least 1, got {self.d_model}.")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"Source {self.name!r}: scale must be finite and positive, got {self.scale}.")

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON-ready dict."""
        return asdict(self)

    @classmethod
    @typed
    def from_dict(cls, data: dict[str, Any]) -> "Source":
        """Build a source from `to_dict`'s result.

        Args:
            data: One entry per field; fields with a default may be missing.

        Raises:
            ValueError: A key is unknown, a required one is missing, or a value has another type.
        """
        known = [field.name for field in fields(cls)]
        check_keys("Source", data, known=known, required=("name", "d_model"))
        check_field_types("Source", data, cls)
        return cls(**data)


@typed
def check_sources(sources: Sequence[Source]) -> None:
    """Check that there is at least one source and that their names are unique.

    Args:
        sources: Sources in the order of their columns.

    Raises:
        ValueError: No source, or a repeated name.
    """
    if not sources:
        raise ValueError("sources: expected at least one Source, got none.")
    names = [source.name for source in sources]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"sources: names must be unique, got {names} with {repeated} repeated.")


def width(sources: Sequence[Source]) -> int:
    """Width of one token's activations over all sources: the sum of their `d_model`.

    Args:
        sources: Sources in the order of their columns.

    Returns:
        The number of columns.
    """
    return sum(source.d_model for source in sources)


def check_activations(x: object, sources: Sequence[Source], *, where: str) -> Tensor:
    """Give back `x` if it has the shape and a dtype of activations of these sources.

    Args:
        x: What came in.
        sources: Sources in the order of their columns.
        where: Start of the message.

    Raises:
        ValueError: Not a tensor, not floating point, or not `[batch, width]`.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"{where}: activations must be a floating-point tensor, got {got}; token ids are no activations."
        )
    if x.ndim != 2 or x.shape[1] != width(sources):
        widths = ", ".join(f"{source.name}: {source.d_model}" for source in sources)
        raise ValueError(
            f"{where}: activations have shape {tuple(x.shape)}, but these sources need "
            f"[batch, {width(sources)}] ({widths})."
        )
    return x


def check_models_read(sources: Sequence[Source], models: Sequence[Source], *, where: str) -> None:
    """Check that models are those that a crosscoder reads.

    Args:
        sources: The crosscoder's sources.
        models: Sources of the models.
        where: Start of the message.

    Raises:
        ValueError: They differ in name, order, width or hook.
    """
    wanted, got = ([(s.name, s.d_model, s.hook_name) for s in group] for group in (sources, models))
    if wanted != got:
        raise ValueError(
            f"{where}: the crosscoder reads {wanted} (name, d_model, hook_name), but the models are {got}."
        )


def column_slices(sources: Sequence[Source]) -> dict[str, slice]:
    """Columns of the flat width that belong to each source, by name and in order.

    Args:
        sources: Sources in the order of their columns.

    Returns:
        One slice per source name; together they cover `0..width` without overlap.
    """
    slices: dict[str, slice] = {}
    start = 0
    for source in sources:
        slices[source.name] = slice(start, start + source.d_model)
        start += source.d_model
    return slices


@typed
def scale_vector(
    sources: Sequence[Source], *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Float[Tensor, " width"]:
    """Each column's scale, so that `normalized = raw * scale_vector`.

    Args:
        sources: Sources in the order of their columns.
        dtype: Floating dtype of the result.
        device: Device of the result; None is the default device.

    Returns:
        Every source's scale repeated over its columns.
    """
    scales = [source.scale for source in sources for _ in range(source.d_model)]
    return torch.tensor(scales, dtype=dtype, device=device)


@typed
def scale_from_mean_norm(mean_norm: float, d_model: int) -> float:
    """Scale that brings a source's mean activation norm to `sqrt(d_model)`.

    With it every coordinate is of order one in every source, so that one learning rate and one sparsity
    weight suit all widths (formula: scale = sqrt(d_model) / mean_norm; Lindsey et al. 2024).

    Args:
        mean_norm: Mean Euclidean norm of the raw activations.
        d_model: Width of the source.

    Returns:
        The factor on raw activations.

    Raises:
        ValueError: `mean_norm` is zero, negative, NaN or infinite.
    """
    if not (math.isfinite(mean_norm) and mean_norm > 0):
        raise ValueError(
            f"scale_from_mean_norm: the mean norm must be finite and positive, got {mean_norm}; "
            "are the activations all zero or non-finite?"
        )
    return math.sqrt(d_model) / mean_norm


@typed
def source_index(sources: Sequence[Source], name: str) -> int:
    """Position of the source with this name.

    Args:
        sources: Sources in the order of their columns.
        name: Name to look up.

    Returns:
        Its index.

    Raises:
        ValueError: No source has this name; the message lists those that exist.
    """
    names = [source.name for source in sources]
    if name not in names:
        raise ValueError(f"no source is named {name!r}; the sources are {names}.")
    return names.index(name)


@typed
def compared_pair(
    sources: Sequence[Source], pair: tuple[str, str] | None, *, where: str, one_width: bool = False
) -> tuple[Source, Source]:
    """The sources that are compared: those named, or the first and the last.

    Args:
        sources: All sources.
        pair: Names of two of them, or None.
        where: Start of the message.
        one_width: Whether the two must have one width, as a common space wants it.

    Returns:
        First and second.

    Raises:
        ValueError: A name that no source has, one source twice, or unequal widths where these are refused.
    """
    names = pair or (sources[0].name, sources[-1].name)
    if names[0] == names[1]:
        raise ValueError(
            f"{where}: needs two different sources, got {names} of {[source.name for source in sources]}."
        )
    first, second = (sources[source_index(sources, name)] for name in names)
    if one_width and first.d_model != second.d_model:
        raise ValueError(
            f"{where}: a difference of activations needs one width, but {first.name!r} has {first.d_model} "
            f"and {second.name!r} has {second.d_model}."
        )
    return first, second
