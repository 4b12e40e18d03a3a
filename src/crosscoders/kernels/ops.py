"""Selecting, decoding and AuxK for the rest of the library, on whatever kernels fit the tensors' device.

`reference` says what each computes. CPU tensors go to `cpu`, CUDA tensors to `triton` where it is installed,
other devices and `torch.compile` to `reference` itself.
"""

import dataclasses
import importlib
import importlib.util
from types import ModuleType

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.kernels import reference
from crosscoders.kernels.autograd import Encode, encode_product
from crosscoders.kernels.cpu import selection as on_cpu
from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.kernels.step import Encoded, Selection


def select(pre_acts: Tensor, scale: Tensor, *, selection: Selection) -> Encoded:
    """Latents of a training step from all pre-activations; see `Selection` for the rule.

    On CUDA with Triton there is no host synchronization: `k * batch` entries are stored, with 0 as the value
    of those whose score is not positive.

    Args:
        pre_acts: Pre-activations, in the dtype of the matrix product.
        scale: Factor of each latent in the ranking, float32.
        selection: How many, and over what.

    Returns:
        The latents, with float32 values, and the smallest positive score among them.
    """
    if _has_triton(pre_acts):
        if not selection.per_row:
            return Encoded(*_triton("selection").batch_topk(pre_acts, selection.k, scale=scale))
        latents = _triton("selection").row_topk(pre_acts, selection.k, scale=scale)
        return Encoded(latents, smallest_score(latents, scale))
    choose = row_topk_indices if selection.per_row else batch_topk_indices
    latents = SparseLatents.gather(pre_acts, choose(pre_acts.float() * scale, selection.k))
    latents = dataclasses.replace(latents, values=latents.values.float())
    return Encoded(latents, smallest_score(latents, scale))


def smallest_score(latents: SparseLatents, scale: Tensor) -> Tensor:
    """Smallest positive score among stored latents, infinite if there is none."""
    scores = latents.values * scale[latents.indices]
    scores = torch.cat([scores.where(scores > 0, torch.inf), scores.new_full((1,), torch.inf)])
    return scores.min()


@typed
def row_topk_indices(scores: Float[Tensor, "batch latent"], k: int) -> Int[Tensor, " nnz"]:
    """Ascending flat indices of the `k` largest positive scores of each row.

    Args:
        scores: Scores to rank; no gradient flows through a selection.
        k: Entries to keep in a row.

    Returns:
        The entries that `reference.row_topk_mask` marks.
    """
    if _runs_on_cpu(scores):
        return on_cpu.row_topk_indices(scores, k)
    if _has_triton(scores):
        return _places(_triton("selection").row_topk(scores.detach(), min(k, scores.shape[1]), scale=None))
    return _flat(reference.row_topk_mask(scores, k))


@typed
def batch_topk_indices(scores: Float[Tensor, "batch latent"], k: int) -> Int[Tensor, " nnz"]:
    """Ascending flat indices of the `k * batch` largest positive scores of the batch.

    Args:
        scores: Scores to rank; no gradient flows through a selection.
        k: Mean number of entries to keep per row.

    Returns:
        The entries that `reference.batch_topk_mask` marks.
    """
    if _runs_on_cpu(scores):
        return on_cpu.batch_topk_indices(scores, k)
    if _has_triton(scores):
        return _places(
            _triton("selection").batch_topk(scores.detach(), min(k, scores.shape[1]), scale=None)[0]
        )
    return _flat(reference.batch_topk_mask(scores, k))


@typed
def threshold_indices(
    scores: Float[Tensor, "batch latent"], threshold: Float[Tensor, ""] | Float[Tensor, " latent"]
) -> Int[Tensor, " nnz"]:
    """Ascending flat indices of the positive scores above a threshold.

    Args:
        scores: Scores to compare; no gradient flows through a selection.
        threshold: One threshold, or one per latent.

    Returns:
        The entries that `reference.threshold_mask` marks.
    """
    if _runs_on_cpu(scores):
        return on_cpu.threshold_indices(scores, threshold)
    if _has_triton(scores):
        return _places(_triton("selection").threshold(scores.detach(), threshold.float(), scale=None))
    return _flat(reference.threshold_mask(scores, threshold))


@typed
def encode(
    x: Float[Tensor, "batch width"], W_enc: Float[Tensor, "latent width"], b_enc: Float[Tensor, " latent"]
) -> Float[Tensor, "batch latent"]:
    """Pre-activations `x W_enc^T + b_enc`.

    Where only entries taken by `SparseLatents.gather` receive a gradient, the backward pass costs as much as
    those entries; a hook on the result may then see a sparse gradient.

    Args:
        x: What to encode.
        W_enc: Encoder rows.
        b_enc: Encoder bias.

    Returns:
        Pre-activations in the dtype of `W_enc`; under autocast the product is bfloat16.
    """
    if torch.compiler.is_compiling():
        return F.linear(x, W_enc, b_enc).to(W_enc.dtype)
    if not torch.is_grad_enabled():
        return encode_product(x, W_enc, b_enc).to(W_enc.dtype)
    return Encode.apply(x, W_enc, b_enc)


@typed
def decode(
    latents: Float[Tensor, "batch latent"] | SparseLatents, W_dec: Float[Tensor, "latent width"]
) -> Float[Tensor, "batch width"]:
    """Sum of decoder rows weighted by the latents, without bias.

    Args:
        latents: Dense or sparse latents.
        W_dec: Decoder rows.

    Returns:
        One row per token, in the dtype of `W_dec`.
    """
    if isinstance(latents, SparseLatents):
        wants_gradient = torch.is_grad_enabled() and (latents.values.requires_grad or W_dec.requires_grad)
        if _has_triton(W_dec) and not wants_gradient:
            return _triton("decode").decode(latents, W_dec, out_dtype=W_dec.dtype)
        return reference.decode_sparse(latents, W_dec)
    return reference.decode_dense(latents, W_dec).to(W_dec.dtype)


@typed
def auxk(
    pre_acts: Float[Tensor, "batch latent"],
    W_dec: Float[Tensor, "latent width"],
    *,
    selection_scale: Float[Tensor, " latent"],
    k: int,
) -> Float[Tensor, "batch width"]:
    """Decode the `k` largest positive pre-activations of each token, ranked by scaled value.

    The caller passes the dead latents only. Dense: the dead are a small part, or nearly all of them are kept.

    Args:
        pre_acts: Pre-activations of the candidate latents.
        W_dec: Their decoder rows.
        selection_scale: Their factor in the ranking.
        k: Latents to keep per token.

    Returns:
        The sum of the kept latents' decoder rows, without bias (Gao et al. 2406.04093, formula for e-hat).
    """
    if pre_acts.shape[1] <= k:
        return decode(pre_acts.relu(), W_dec)
    return decode_kept(pre_acts, W_dec, kept=row_topk_indices(pre_acts.detach() * selection_scale, k))


@typed
def decode_kept(
    pre_acts: Float[Tensor, "batch latent"],
    W_dec: Float[Tensor, "latent width"],
    *,
    kept: Int[Tensor, " nnz"],
) -> Float[Tensor, "batch width"]:
    """Decode some entries of dense pre-activations, by a dense product.

    Args:
        pre_acts: Pre-activations.
        W_dec: Decoder rows.
        kept: Flat indices of the entries to decode.

    Returns:
        The sum of the decoder rows, each times its entry, without bias.
    """
    mask = torch.zeros(pre_acts.numel(), dtype=pre_acts.dtype, device=pre_acts.device)
    return decode(pre_acts * mask.index_fill_(0, kept, 1.0).view_as(pre_acts), W_dec)


def _has_triton(tensor: Tensor) -> bool:
    is_taken = tensor.dtype in (torch.float32, torch.bfloat16, torch.float16)
    if not (tensor.is_cuda and is_taken) or torch.compiler.is_compiling():
        return False
    return importlib.util.find_spec("triton") is not None


def _triton(name: str) -> ModuleType:
    return importlib.import_module(f"crosscoders.kernels.triton.{name}")


def _places(latents: SparseLatents) -> Tensor:
    """Ascending flat indices of the entries that were selected, without those that only fill up."""
    return (latents.rows() * latents.n_latents + latents.indices)[latents.values > 0]


def _runs_on_cpu(scores: Tensor) -> bool:
    return scores.device.type == "cpu" and not torch.compiler.is_compiling()


def _flat(mask: Tensor) -> Tensor:
    return mask.flatten().nonzero().squeeze(1)
