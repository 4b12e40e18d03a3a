"""Checks and conversions that the parts of a report share."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_UNSIGNED = {"u1": 2**8 - 1, "u2": 2**16 - 1, "u4": 2**32 - 1}


def check_shape(where: str, values: Any, shape: tuple[int | None, ...], *, is_float: bool) -> None:
    """Raise ValueError unless `values` is a tensor of this shape and kind of number.

    Args:
        where: Class and field, for the message.
        values: What was given.
        shape: Length of each axis; None where any will do.
        is_float: Whether it holds real numbers; otherwise whole ones.
    """
    kind = "floating-point" if is_float else "integer"
    expected = f"a {kind} tensor of shape [{', '.join('any' if n is None else str(n) for n in shape)}]"
    if not isinstance(values, Tensor):
        raise ValueError(f"{where}: expected {expected}, got {type(values).__name__}.")
    is_right = values.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, values.shape))
    is_whole = not values.is_floating_point() and not values.is_complex() and values.dtype != torch.bool
    if not is_right or values.is_complex() or (not values.is_floating_point() if is_float else not is_whole):
        raise ValueError(f"{where}: expected {expected}, got {values.dtype} of shape {list(values.shape)}.")


def check_range(where: str, values: Tensor, low: int, high: int) -> None:
    """Raise ValueError unless every whole number lies in low .. high, both included.

    Args:
        where: Class and field, for the message.
        values: Any shape.
        low: The least that may be.
        high: The most.
    """
    if values.numel() == 0:
        return
    least, most = int(values.min()), int(values.max())
    if least < low or most > high:
        raise ValueError(f"{where}: expected numbers from {low} to {high}, got {least} to {most}.")


def check_pointers(where: str, values: Tensor, *, end: int) -> None:
    """Raise ValueError unless `values` rises from 0 to `end`.

    Args:
        where: Class and field, for the message.
        values: Where each of several pieces starts, and last where all end.
        end: Length of what they point into.
    """
    is_rising = bool((values[1:] >= values[:-1]).all())
    if len(values) == 0 or int(values[0]) != 0 or int(values[-1]) != end or not is_rising:
        shown = values[:4].tolist()
        raise ValueError(f"{where}: expected pointers that rise from 0 to {end}, got {shown} and so on.")


def unsigned(where: str, values: Tensor, dtype: str) -> np.ndarray:
    """Whole numbers as an unsigned array.

    Args:
        where: What they are, for the message.
        values: Any shape.
        dtype: "u1", "u2" or "u4".

    Raises:
        ValueError: A number is negative or too large for the type.
    """
    check_range(where, values, 0, _UNSIGNED[dtype])
    return values.detach().cpu().numpy().astype(f"<{dtype}")


def real(values: Tensor) -> np.ndarray:
    """Numbers as float32, NaN as it is.

    Args:
        values: Any shape, device and type.
    """
    return values.detach().to(device="cpu", dtype=torch.float32).numpy().astype("<f4")


def json_ready(where: str, value: Any) -> Any:
    """A value as JSON can say it: NaN becomes null, tuples lists; anything else that JSON lacks is refused.

    Args:
        where: Path of the value, for the message.
        value: Nested mappings, sequences, strings, numbers, booleans and None.

    Raises:
        ValueError: An infinite number, a key that is no string, or another type.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and not math.isinf(value):
        return None if math.isnan(value) else value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: json_ready(f"{where}.{key}", inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(f"{where}[{at}]", inner) for at, inner in enumerate(value)]
    raise ValueError(
        f"{where}: expected strings, finite numbers or NaN, booleans, None, and lists and mappings "
        f"by string of these; got {type(value).__name__} {value!r:.80}."
    )
