"""A crosscoder's weights with everything that can go wrong in them, and the step through float64 autograd."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from crosscoders.kernels import reference
from crosscoders.kernels.adam import AdamMatrix, AdamStep
from crosscoders.kernels.step import Encoded, ExtraRows, Selection, StepKernels, StepWeights, UpdatePlan

BACKENDS = ["cpu", "dense"]
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")
BOUNDARIES = [(0, 7), (0, 4, 9), (0, 3, 4, 11), (0, 2, 7, 8, 15)]
N_LATENTS, N_ROWS, FIRST_STEP = 24, 10, 5
SELECTIONS = [
    Selection(k=1, per_row=True),
    Selection(k=3, per_row=True),
    Selection(k=3, per_row=False),
    Selection(k=N_LATENTS, per_row=True),
    Selection(k=N_LATENTS, per_row=False),
]
NUMBERS = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8}


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """PyTorch fills new memory with NaN, so that nothing can rely on what it held."""
    torch.use_deterministic_algorithms(True)
    try:
        assert bool(torch.empty(3).isnan().all())
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def unchecked(norm: Tensor) -> None:
    """Accept every norm."""


def make_weights(boundaries: tuple[int, ...] = (0, 4, 9), *, seed: int = 0) -> StepWeights:
    """Weights in the middle of training: a latent that every token hits, one that none does, a silent row.

    The first column of W_enc is positive and the biases of most latents are small, so that a token far on its
    negative side has no positive pre-activation.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def matrix(weight: Tensor) -> AdamMatrix:
        return AdamMatrix(
            weight=weight,
            exp_avg=0.1 * draw(*weight.shape),
            exp_avg_sq=0.1 * draw(*weight.shape).square() + 0.01,
            boundaries=boundaries if len(weight) > 1 else (),
        )

    W_enc, b_enc = draw(N_LATENTS, boundaries[-1]), 0.1 * draw(1, N_LATENTS)
    W_enc[:, 0] = W_enc[:, 0].abs() + 0.5
    b_enc[0, 2], b_enc[0, 5] = 30.0, -1000.0
    return StepWeights(
        W_enc=matrix(W_enc),
        b_enc=matrix(b_enc),
        W_dec=matrix(draw(N_LATENTS, boundaries[-1])),
        b_dec=matrix(draw(1, boundaries[-1])),
    )


def make_batch(width: int, *, seed: int, n_rows: int = N_ROWS) -> Tensor:
    """Rows of inputs; the second and the last are on the silent side."""
    x = torch.randn(n_rows, width, generator=torch.Generator().manual_seed(100 + seed))
    if n_rows > 2:
        x[[1, -1]] = 0.0
        x[[1, -1], 0] = -200.0
    return x


def tensors_of(weights: StepWeights) -> dict[str, Tensor]:
    """Every tensor of a step's weights, and what was derived from them."""
    fields = ("weight", "exp_avg", "exp_avg_sq", "shadow", "norms")
    everything = {f"{n}.{f}": getattr(getattr(weights, n), f) for n, f in itertools.product(NAMES, fields)}
    return {name: tensor for name, tensor in everything.items() if tensor is not None}


def copied(weights: StepWeights) -> StepWeights:
    def copy(matrix: AdamMatrix) -> AdamMatrix:
        fields = {f.name: getattr(matrix, f.name) for f in dataclasses.fields(matrix)}
        return AdamMatrix(**{k: v.clone() if isinstance(v, Tensor) else v for k, v in fields.items()})

    return StepWeights(**{name: copy(getattr(weights, name)) for name in NAMES})


@dataclass(frozen=True, kw_only=True)
class Autograd:
    """The same step through float64 autograd and PyTorch's Adam."""

    parameters: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    boundaries: tuple[int, ...]

    @classmethod
    def of(cls, weights: StepWeights) -> "Autograd":
        parameters = {n: getattr(weights, n).weight.double().clone().requires_grad_() for n in NAMES}
        optimizer = torch.optim.Adam(
            parameters.values(),
            lr=NUMBERS["lr"],
            betas=(NUMBERS["beta1"], NUMBERS["beta2"]),
            eps=NUMBERS["eps"],
        )
        for name, parameter in parameters.items():
            matrix = getattr(weights, name)
            optimizer.state[parameter] = {
                "step": torch.tensor(FIRST_STEP - 1.0),
                "exp_avg": matrix.exp_avg.double().clone(),
                "exp_avg_sq": matrix.exp_avg_sq.double().clone(),
            }
        return cls(parameters=parameters, optimizer=optimizer, boundaries=weights.W_dec.boundaries)

    def scores(self, x: Tensor) -> Tensor:
        p = {name: parameter.detach() for name, parameter in self.parameters.items()}
        parts = itertools.pairwise(self.boundaries)
        scale = torch.stack([p["W_dec"][:, a:b].norm(dim=1) for a, b in parts]).sum(dim=0)
        return (x.double() @ p["W_enc"].T + p["b_enc"]) * scale

    def step(
        self, x: Tensor, mask: Tensor, *, max_norm: float | None = None, extra: ExtraRows | None = None
    ) -> tuple[Tensor, Tensor]:
        """Residual and gradient norm of the mean squared error; the weights move."""
        p, x = self.parameters, x.double()
        residual = ((x @ p["W_enc"].T + p["b_enc"]) * mask) @ p["W_dec"] + p["b_dec"] - x
        self.optimizer.zero_grad()
        (residual.square().sum() / len(x)).backward()
        if extra is not None:
            for name in ("W_enc", "W_dec", "b_enc"):
                gradient = p[name].grad
                assert gradient is not None
                gradient = gradient[0] if name == "b_enc" else gradient
                gradient.index_add_(0, extra.rows, getattr(extra, name).double())
        limit = torch.inf if max_norm is None else max_norm
        norm = torch.nn.utils.clip_grad_norm_(list(p.values()), limit)
        self.optimizer.step()
        return residual.detach(), norm


def mask_of(scores: Tensor, selection: Selection) -> Tensor:
    choose = reference.row_topk_mask if selection.per_row else reference.batch_topk_mask
    return choose(scores, selection.k)


def train_step(
    kernels: StepKernels,
    x: Tensor,
    selection: Selection,
    *,
    n: int,
    max_norm: float | None = None,
    extra: ExtraRows | None = None,
    check: Callable[[Tensor], None] = unchecked,
) -> tuple[Encoded, Tensor, Tensor, Tensor]:
    """Latents, residual, its sum of squares and the gradient norm."""
    encoded = kernels.encode(x, selection)
    residual, squares = kernels.residual(encoded.latents, x)
    norm = kernels.update(
        2 / len(x) * residual,
        encoded,
        x,
        step=AdamStep(**NUMBERS, n=n),
        plan=UpdatePlan(max_norm=max_norm, extra=extra, check=check),
    )
    return encoded, residual, squares, norm


def make_extra(width: int, *, seed: int, rows: list[int]) -> ExtraRows:
    generator = torch.Generator().manual_seed(seed)
    W_enc, W_dec = torch.randn(2, len(rows), width, generator=generator)
    b_enc = torch.randn(len(rows), generator=generator)
    return ExtraRows(rows=torch.tensor(rows), W_enc=W_enc, b_enc=b_enc, W_dec=W_dec)
