"""What the selections demand of their arguments, and what they derive from the types."""

import torch
from torch import Tensor

# Low bits of a float32 score that are 0 where it is a pre-activation of this type.
_FREE_BITS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}


def check_pre_acts(op: str, pre: Tensor, scale: Tensor | None) -> None:
    """Raise unless a kernel can read the pre-activations and their scale.

    Args:
        op: Name of the function that asks, for the message.
        pre: Pre-activations.
        scale: Factor of each latent, or None.

    Raises:
        ValueError: A tensor has the wrong type, shape, device or layout.
    """
    if pre.ndim != 2 or pre.dtype not in _FREE_BITS or pre.stride(1) != 1:
        raise ValueError(
            f"{op}: pre-activations must be [batch, latent] in float32, float16 or bfloat16 with contiguous "
            f"rows, got {tuple(pre.shape)} in {pre.dtype} with strides {pre.stride()}."
        )
    if scale is not None and not _is_per_latent(scale, pre):
        raise ValueError(
            f"{op}: scale must be {pre.shape[1]} contiguous float32 numbers on {pre.device}, "
            f"got {tuple(scale.shape)} in {scale.dtype} on {scale.device} with strides {scale.stride()}."
        )


def check_k(op: str, pre: Tensor, k: int) -> None:
    """Raise unless every row can hold `k` entries.

    Args:
        op: Name of the function that asks, for the message.
        pre: Pre-activations.
        k: Entries to keep per row.

    Raises:
        ValueError: `k` is not between 1 and the number of latents.
    """
    if not 1 <= k <= pre.shape[1]:
        raise ValueError(f"{op}: k must be between 1 and the {pre.shape[1]} latents of a row, got {k}.")


def check_threshold(pre: Tensor, threshold: Tensor) -> None:
    """Raise unless the threshold is one number, or one per latent.

    Args:
        pre: Pre-activations.
        threshold: The threshold.

    Raises:
        ValueError: It has the wrong type, shape, device or layout.
    """
    is_scalar = threshold.ndim == 0 and threshold.dtype == torch.float32 and threshold.device == pre.device
    if not is_scalar and not _is_per_latent(threshold, pre):
        raise ValueError(
            f"threshold: expected one float32 number or {pre.shape[1]} contiguous ones on {pre.device}, "
            f"got {tuple(threshold.shape)} in {threshold.dtype} on {threshold.device}."
        )


def _is_per_latent(tensor: Tensor, pre: Tensor) -> bool:
    fits = tensor.shape == pre.shape[1:] and tensor.dtype == torch.float32 and tensor.device == pre.device
    return fits and tensor.is_contiguous()


def free_bits(pre: Tensor, scale: Tensor | None) -> int:
    """Low bits that are 0 in every key: a bfloat16 or float16 score has fewer digits than a float32 one.

    Args:
        pre: Pre-activations.
        scale: Factor of each latent, or None; the product of two numbers has all digits.

    Returns:
        A number of bits.
    """
    return 0 if scale is not None else _FREE_BITS[pre.dtype]
