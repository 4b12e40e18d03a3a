"""The same pieces in dense PyTorch: torch.topk, matrix products, torch.optim.Adam."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.data import Weights
from benchmarks.kernels.ops import Calls
from benchmarks.kernels.problem import BETAS, EPS, LR, Problem


class DensePieces:
    """Dense latents in the precision of the products, float32 weights."""

    def __init__(self, problem: Problem, weights: Weights, x: Tensor) -> None:
        self.problem, self.x = problem, x
        self.dtype = getattr(torch, problem.precision)
        parameters = [weights.dictionary.clone().requires_grad_() for _ in range(2)]
        self.W_enc, self.W_dec = parameters
        self.b_enc = weights.dictionary.new_zeros(problem.shape.n_latents)
        self.optimizer = torch.optim.Adam(parameters, lr=LR, betas=BETAS, eps=EPS)
        with torch.no_grad():
            self.latents = self.encode(per_row=True)
            self.grad = (self.residual() * (2 / x.shape[0])).to(self.dtype)

    def encode(self, *, per_row: bool) -> Tensor:
        """Product, torch.topk, scatter."""
        rows = self.W_enc.detach().to(self.dtype)
        pre = F.linear(self.x.to(self.dtype), rows, self.b_enc.to(self.dtype)).relu()
        scores, k = (
            (pre, self.problem.shape.k) if per_row else (pre.view(1, -1), self.problem.shape.k * len(pre))
        )
        kept = scores.topk(k, dim=1, sorted=False)
        return torch.zeros_like(scores).scatter(1, kept.indices, kept.values).view_as(pre)

    def residual(self) -> Tensor:
        """Product and difference."""
        return (self.latents @ self.W_dec.detach().to(self.dtype)).float() - self.x

    def update(self, max_norm: float | None) -> None:
        """Three products, clipping, Adam."""
        rows = self.W_dec.detach().to(self.dtype)
        grad_pre = torch.where(self.latents > 0, self.grad @ rows.T, 0.0)
        self.W_dec.grad = (self.latents.T @ self.grad).float()
        self.W_enc.grad = (grad_pre.T @ self.x.to(self.dtype)).float()
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_([self.W_enc, self.W_dec], max_norm)
        self.optimizer.step()


def build(problem: Problem, weights: Weights, batches: list[Tensor], *, option: str) -> Calls:
    """No options."""
    pieces = DensePieces(problem, weights, batches[0])
    calls: dict[str, Callable[[], object]] = {
        "encode, TopK": lambda: pieces.encode(per_row=True),
        "encode, BatchTopK": lambda: pieces.encode(per_row=False),
        "decode, residual": pieces.residual,
        "backward, Adam": lambda: pieces.update(None),
        "backward, clip, Adam": lambda: pieces.update(1.0),
    }
    return Calls(calls, device=problem.device)
