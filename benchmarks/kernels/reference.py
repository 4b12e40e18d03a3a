"""The correctness gate: what a training step computes, plainly and in float64, and whether a peer agrees."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.data import Weights, read_batches, read_weights
from benchmarks.kernels.problem import AUXK_WEIGHT, BETAS, EPS, LR, Problem, Variant

# Relative error of the loss, and of L0, at every step of the gate. bfloat16 rounds pre-activations to 8 bits,
# which moves what is selected; whoever computes something else is off by far more.
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}
GATE_STEPS = 4  # losses before the first update, and after 1, 2 and 3


@dataclass(frozen=True)
class Trajectory:
    """Loss and L0 before each of the first updates."""

    losses: list[float]
    l0s: list[float]


@dataclass(frozen=True)
class Verdict:
    """Largest relative errors of an implementation, and why it may not be timed (empty if it may)."""

    loss_error: float
    l0_error: float
    reason: str


def judge(got: Trajectory, wanted: Trajectory, *, precision: str) -> Verdict:
    """Compare an implementation with the float64 computation of its variant.

    Args:
        got: What the implementation gave.
        wanted: What it should give.
        precision: Chooses the tolerance.

    Returns:
        The errors and the verdict.
    """
    loss_error, l0_error = (
        max(relative_error(a, b) for a, b in zip(pair[0], pair[1], strict=True))
        for pair in ((got.losses, wanted.losses), (got.l0s, wanted.l0s))
    )
    tolerance, faults = TOLERANCE[precision], []
    for name, error, ours, theirs in (
        ("loss", loss_error, got.losses, wanted.losses),
        ("L0", l0_error, got.l0s, wanted.l0s),
    ):
        if not error <= tolerance:
            faults.append(f"{name} {_shown(ours)} instead of {_shown(theirs)}, off by {error:.1e}")
    reason = f"gate: {'; '.join(faults)} (tolerance {tolerance:g})" if faults else ""
    return Verdict(loss_error=loss_error, l0_error=l0_error, reason=reason)


def relative_error(got: float, wanted: float) -> float:
    """|got - wanted| / |wanted|; NaN counts as infinite."""
    error = abs(got - wanted) / abs(wanted)
    return error if error == error else float("inf")


def _shown(values: list[float]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"


class Reference:
    """A crosscoder of any variant in float64, with autograd and `torch.optim.Adam`."""

    def __init__(self, problem: Problem, weights: Weights, *, variant: Variant) -> None:
        self.problem, self.variant = problem, variant
        dictionary = weights.dictionary.double()
        n_latents, width = dictionary.shape
        self.W_enc = dictionary.clone().requires_grad_()
        self.W_dec = dictionary.clone().requires_grad_()
        self.b_enc = dictionary.new_zeros(n_latents).requires_grad_()
        self.b_dec = dictionary.new_zeros(width).requires_grad_()
        self.tokens_since_fired = weights.tokens_since_fired.clone()
        self.parameters = [self.W_enc, self.W_dec, self.b_enc, self.b_dec]
        self.optimizer = torch.optim.Adam(self.parameters, lr=LR, betas=BETAS, eps=EPS)

    def step(self, x: Tensor) -> tuple[float, float]:
        """One update; loss and L0 before it."""
        x = x.double()
        pre = F.linear(x - self.b_dec if self.variant.pre_bias else x, self.W_enc, self.b_enc)
        scores = [pre.detach() * scale for scale in self._scales()]
        chosen = self._select_all(scores)
        reconstruction = self._decode(pre, chosen)
        loss = (x - reconstruction).square().sum() / x.shape[0]
        if self.problem.case.auxk and self.variant.auxk:
            loss = loss + AUXK_WEIGHT * self._auxk(
                pre, (x - reconstruction).detach(), scale=self._scales()[0]
            )
        self.optimizer.zero_grad()
        loss.backward()
        if self.problem.case.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.problem.case.max_grad_norm)
        self.optimizer.step()
        self._track(chosen, n_tokens=x.shape[0])
        l0 = sum(flat.numel() for flat in chosen) / len(chosen) / x.shape[0]
        return float(loss.detach()), l0

    def _scales(self) -> list[Tensor | float]:
        norms = (
            self.W_dec.detach().view(-1, self.problem.shape.n_sources, self.problem.shape.d_model).norm(dim=2)
        )
        return {
            "sum": lambda: [norms.sum(dim=1)],
            "joint": lambda: [norms.square().sum(dim=1).sqrt()],
            "per_source": lambda: list(norms.unbind(1)),
            "none": lambda: [1.0],
        }[self.variant.selection]()

    def _select_all(self, scores: list[Tensor]) -> list[Tensor]:
        """Entries kept, per copy of the latents; copies share the k * batch entries that each would have."""
        if self.problem.case.activation == "topk" or len(scores) == 1:
            return [self._select(part) for part in scores]
        n_rows, n_latents = scores[0].shape
        flat = self._select(torch.cat(scores))
        copies = flat // (n_rows * n_latents)
        return [flat[copies == i] - i * n_rows * n_latents for i in range(len(scores))]

    def _select(self, scores: Tensor) -> Tensor:
        """Ascending flat indices of the entries kept."""
        n_kept, rows = self.problem.shape.k, scores
        if self.problem.case.activation == "batch_topk":
            n_kept, rows = n_kept * scores.shape[0], scores.reshape(1, -1)
        kept = rows.topk(n_kept, dim=1).indices
        flat = (kept + torch.arange(rows.shape[0], device=kept.device)[:, None] * rows.shape[1]).flatten()
        return flat[scores.flatten()[flat] > 0].sort().values

    def _decode(self, pre: Tensor, chosen: list[Tensor]) -> Tensor:
        """Decoder rows weighted by the entries kept; each source has its own if `chosen` has several."""
        parts, n_rows, n_latents = [], *pre.shape
        for flat, columns in zip(chosen, self.W_dec.chunk(len(chosen), dim=1), strict=True):
            starts = torch.arange(n_rows + 1, device=pre.device) * n_latents
            bag = F.embedding_bag(
                flat % n_latents,
                columns.contiguous(),
                torch.searchsorted(flat, starts),
                mode="sum",
                per_sample_weights=pre.flatten().index_select(0, flat),
                include_last_offset=True,
            )
            parts.append(bag)
        return torch.cat(parts, dim=1) + self.b_dec

    def _auxk(self, pre: Tensor, residual: Tensor, *, scale: Tensor | float) -> Tensor:
        """|e - ehat|^2 / |e - mean(e)|^2, ehat from the k_aux best dead latents of each token."""
        dead = self.tokens_since_fired >= self.problem.dead_after_tokens
        if not bool(dead.any()):
            return pre.new_zeros(())
        candidates, scores = pre[:, dead], (pre.detach() * scale)[:, dead]
        kept = scores.topk(min(self.problem.k_aux, scores.shape[1]), dim=1).indices
        sparse = torch.zeros_like(candidates).scatter(1, kept, candidates.gather(1, kept).relu())
        error = (residual - sparse @ self.W_dec[dead]).square().sum()
        return error / (residual - residual.mean(dim=0)).square().sum()

    def _track(self, chosen: list[Tensor], *, n_tokens: int) -> None:
        self.tokens_since_fired += n_tokens
        for flat in chosen:
            self.tokens_since_fired[flat % self.problem.shape.n_latents] = 0


def reference_trajectory(problem: Problem, folder: Path, *, variant: Variant) -> Trajectory:
    """Loss and L0 of the first steps of a variant, in float64.

    Args:
        problem: Shape and case; its precision does not matter.
        folder: Data, from `write_data`.
        variant: Which function.
    """
    reference = Reference(problem, read_weights(folder, device=problem.device), variant=variant)
    batches = read_batches(folder, device=problem.device)
    steps = [reference.step(batches[i % len(batches)]) for i in range(GATE_STEPS)]
    return Trajectory(losses=[loss for loss, _ in steps], l0s=[l0 for _, l0 in steps])
