"""The functions that the rest of the library calls, and which backend runs them."""

import logging

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.errors import KernelUnavailableError
from crosscoders.kernels import cpu, reference
from crosscoders.kernels.sparse_latents import SparseLatents

BACKENDS = ("auto", "reference", "triton")

_logger = logging.getLogger(__name__)
_announced: set[str] = set()
_REASON = "this version holds no Triton kernels"


@typed
def choose_backend(backend: str = "auto") -> str:
    """Name the backend that a request leads to.

    Args:
        backend: "auto" takes the best one available and logs why once; any other name is a demand.

    Returns:
        The backend's name.

    Raises:
        ValueError: No backend has this name.
        KernelUnavailableError: The named backend cannot run here.
    """
    if backend not in BACKENDS:
        raise ValueError(f"kernels: no backend is named {backend!r}; the backends are {list(BACKENDS)}.")
    if backend == "triton":
        raise KernelUnavailableError(
            f"kernels: backend 'triton' was asked for, but {_REASON}; use backend='auto' or 'reference'."
        )
    if backend == "auto" and backend not in _announced:
        _announced.add(backend)
        _logger.info("kernels: %s", explain())
    return "reference"


@typed
def explain() -> str:
    """Say in one sentence which kernels run and why."""
    return (
        f"backend 'reference' (dense PyTorch matrix products, embedding_bag for sparse decoding), because "
        f"{_REASON}; selections on CPU tensors go through numpy.partition, with the same result."
    )


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
        return cpu.row_topk_indices(scores, k)
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
        return cpu.batch_topk_indices(scores, k)
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
        return cpu.threshold_indices(scores, threshold)
    return _flat(reference.threshold_mask(scores, threshold))


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
    kept = row_topk_indices(pre_acts.detach() * selection_scale, k)
    mask = torch.zeros(pre_acts.numel(), dtype=pre_acts.dtype, device=pre_acts.device)
    return decode(pre_acts * mask.index_fill_(0, kept, 1.0).view_as(pre_acts), W_dec)


def _runs_on_cpu(scores: Tensor) -> bool:
    return scores.device.type == "cpu" and not torch.compiler.is_compiling()


def _flat(mask: Tensor) -> Tensor:
    return mask.flatten().nonzero().squeeze(1)
