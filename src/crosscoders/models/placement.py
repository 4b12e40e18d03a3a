"""Weights that live in CPU memory and visit a device only while their model reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def weights_on(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Put the device's copies in the place of all parameters and buffers while the block runs.

    The tensors that were there come back themselves, also after an exception: nothing is copied back, so no
    bit of them can change. Tied weights are copied once and stay tied.

    Args:
        module: The model.
        device: Where its weights are needed.
    """
    places: list[tuple[dict[str, Any], str, Tensor]] = [
        (place, name, tensor)
        for part in module.modules()
        for place in (part._parameters, part._buffers)
        for name, tensor in place.items()
        if tensor is not None
    ]
    copies: dict[int, Tensor] = {}
    try:
        for place, name, tensor in places:
            if id(tensor) not in copies:
                copies[id(tensor)] = _copy_on(device, tensor)
            place[name] = copies[id(tensor)]
        yield
    finally:
        copies.clear()
        for place, name, tensor in places:
            place[name] = tensor


def _copy_on(device: torch.device, tensor: Tensor) -> Tensor:
    if not isinstance(tensor, nn.Parameter):
        return tensor.to(device)
    return nn.Parameter(tensor.detach().to(device), requires_grad=tensor.requires_grad)
