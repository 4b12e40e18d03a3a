"""What a user would write: dense PyTorch with autograd and torch.optim.Adam, eager or compiled.

Selection by the plain pre-activation: ranking by decoder norm would only make it slower.
"""

import torch
from torch import Tensor, nn

from benchmarks.kernels.data import Weights
from benchmarks.kernels.implementation import AutogradImplementation, Implementation
from benchmarks.kernels.problem import AUXK_WEIGHT, Problem, Variant


class PlainCrosscoder(nn.Module):
    """Dense latents, `[width, latent]` encoder, `[latent, width]` decoder."""

    tokens_since_fired: Tensor

    def __init__(self, problem: Problem, weights: Weights) -> None:
        super().__init__()
        self.problem = problem
        dictionary = weights.dictionary
        self.W_enc = nn.Parameter(dictionary.T.contiguous())
        self.W_dec = nn.Parameter(dictionary.clone())
        self.b_enc = nn.Parameter(dictionary.new_zeros(dictionary.shape[0]))
        self.b_dec = nn.Parameter(dictionary.new_zeros(dictionary.shape[1]))
        self.register_buffer("tokens_since_fired", weights.tokens_since_fired.clone())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Dense latents and pre-activations."""
        pre = x @ self.W_enc + self.b_enc
        acts, k = pre.relu(), self.problem.shape.k
        if self.problem.case.activation == "batch_topk":
            flat = acts.flatten()
            kept = flat.topk(k * x.shape[0], sorted=False)
            return torch.zeros_like(flat).scatter(0, kept.indices, kept.values).view_as(acts), pre
        kept = acts.topk(k, dim=1, sorted=False)
        return torch.zeros_like(acts).scatter(1, kept.indices, kept.values), pre

    def forward(self, x: Tensor) -> Tensor:
        """The loss."""
        latents, pre = self.encode(x)
        reconstruction = latents @ self.W_dec + self.b_dec
        loss = (x - reconstruction).pow(2).sum(dim=1).mean()
        if self.problem.case.auxk:
            loss = loss + AUXK_WEIGHT * self.auxk(pre, (x - reconstruction).detach())
            self.tokens_since_fired += x.shape[0]
            self.tokens_since_fired[(latents > 0).any(dim=0)] = 0
        return loss

    def auxk(self, pre: Tensor, residual: Tensor) -> Tensor:
        """Residual error of the best dead latents over the residual's variance."""
        dead = self.tokens_since_fired >= self.problem.dead_after_tokens
        n_dead = int(dead.sum())
        if n_dead == 0:
            return residual.new_zeros(())
        kept = torch.where(dead, pre, -torch.inf).topk(min(self.problem.k_aux, n_dead), dim=1, sorted=False)
        latents = torch.zeros_like(pre).scatter(1, kept.indices, kept.values.relu())
        error = (residual - latents @ self.W_dec).pow(2).sum()
        return error / (residual - residual.mean(dim=0)).pow(2).sum()


def build(problem: Problem, weights: Weights, batches: list[Tensor], *, option: str) -> Implementation:
    """Option "eager" or "compile"."""
    model = PlainCrosscoder(problem, weights)
    return AutogradImplementation(
        problem,
        batches,
        variant=Variant(selection="none"),
        loss=torch.compile(model) if option == "compile" else model,
        count=lambda x: float((model.encode(x)[0] > 0).sum() / x.shape[0]),
        parameters=model.parameters(),
    )
