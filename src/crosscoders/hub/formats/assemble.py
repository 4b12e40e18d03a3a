"""Name the sources of a foreign crosscoder, give them their scales, and build it."""

import dataclasses
from collections.abc import Mapping, Sequence

from torch import Tensor

from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.errors import CheckpointError
from crosscoders.hub.formats.result import Given, Parts
from crosscoders.metrics import decoder_norms
from crosscoders.sources import Source, check_sources, scale_vector


def assemble(parts: Parts, given: Given, *, format_name: str) -> Crosscoder:
    """Build the crosscoder, folded where its ranking is not the sum of its decoder norms.

    Args:
        parts: What the format's reader found.
        given: What the caller says.
        format_name: For messages.

    Returns:
        The crosscoder, in eval mode.

    Raises:
        ValueError: Sources or scales that do not fit, or a scale that neither the files nor the caller give.
        CheckpointError: The activation function does not fit the number of latents.
    """
    sources = _scaled(_named(parts, given), parts, given, format_name=format_name)
    is_folded = parts.is_raw or parts.selection_weight is not None
    config = CrosscoderConfig(
        sources=sources,
        n_latents=parts.W_enc.shape[0],
        activation_fn=parts.activation_fn,
        is_folded=is_folded,
    )
    try:
        crosscoder = Crosscoder(config).to(parts.W_enc.dtype)
    except ValueError as err:
        raise CheckpointError(
            f"{format_name}: the file describes no crosscoder that can be built: {err}"
        ) from err
    crosscoder.load_state_dict(_state(parts, sources, is_folded=is_folded), strict=True)
    return crosscoder.eval()


def _state(parts: Parts, sources: tuple[Source, ...], *, is_folded: bool) -> dict[str, Tensor]:
    scale = scale_vector(sources, dtype=parts.W_enc.dtype)
    fold_now = is_folded and not parts.is_raw
    in_normalized = parts.W_dec * scale if parts.is_raw else parts.W_dec
    weight = parts.selection_weight
    return {
        "W_enc": parts.W_enc * scale if fold_now else parts.W_enc,
        "b_enc": parts.b_enc,
        "W_dec": parts.W_dec / scale if fold_now else parts.W_dec,
        "b_dec": parts.b_dec / scale if fold_now else parts.b_dec,
        "selection_weight": decoder_norms(in_normalized, sources).sum(dim=1) if weight is None else weight,
        **{f"activation.{name}": tensor for name, tensor in parts.activation_state.items()},
    }


def _named(parts: Parts, given: Given) -> tuple[Source, ...]:
    own = parts.sources
    if given.sources is None:
        return own
    widths = [source.d_model for source in own]
    got = [s.d_model if isinstance(s, Source) else w for s, w in zip(given.sources, widths, strict=False)]
    if len(given.sources) != len(own) or got != widths:
        said = [s if isinstance(s, str) else f"{s.name}: {s.d_model}" for s in given.sources]
        raise ValueError(f"sources: the file has {len(own)} sources of widths {widths}, got {said}.")
    for source in given.sources:
        if isinstance(source, Source) and source.scale != 1.0:
            raise ValueError(f"sources: {source.name!r} states scale {source.scale}; give it through scale=.")
    named = tuple(
        dataclasses.replace(mine, name=theirs) if isinstance(theirs, str) else theirs
        for mine, theirs in zip(own, given.sources, strict=True)
    )
    check_sources(named)
    return named


def _scaled(
    sources: tuple[Source, ...], parts: Parts, given: Given, *, format_name: str
) -> tuple[Source, ...]:
    scale = _scale(parts, given, [source.name for source in sources], format_name=format_name)
    return tuple(
        dataclasses.replace(source, scale=value) for source, value in zip(sources, scale, strict=True)
    )


def _scale(parts: Parts, given: Given, names: list[str], *, format_name: str) -> tuple[float, ...]:
    """The scale that the files carry or else that the caller gives; never both, never neither."""
    if parts.scale is None and given.scale is None:
        raise ValueError(
            f"{format_name}: the file does not say by what its activations were scaled, and it is "
            f"not guessed; give scale= (on the command line --scale), one number for each of {names}: what "
            "training multiplied raw activations by, mostly sqrt(d_model) / mean norm, which estimate_scale "
            "measures; 1.0 for raw activations."
        )
    if parts.scale is None or given.scale is None:
        return _in_order(given.scale, names) if given.scale is not None else parts.scale or ()
    raise ValueError(
        f"{format_name}: this file says how its activations are scaled ({list(parts.scale)}); "
        "leave out scale=."
    )


def _in_order(
    scale: Sequence[float | int] | Mapping[str, float | int], names: list[str]
) -> tuple[float, ...]:
    if isinstance(scale, Mapping):
        if set(scale) != set(names):
            raise ValueError(f"scale: expected one entry for each of {names}, got {sorted(scale)}.")
        return _in_order([scale[name] for name in names], names)
    if len(scale) != len(names):
        raise ValueError(f"scale: expected {len(names)} numbers, for {names}, got {len(scale)}.")
    try:
        return tuple(float(value) for value in scale)
    except OverflowError as err:
        raise ValueError(f"scale: a number for {names} is too large.") from err
