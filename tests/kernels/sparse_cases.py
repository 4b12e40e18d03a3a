"""Small sparse problems with all that can go wrong in them, and dense float64 forms to compare with."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from crosscoders.kernels.adam import AdamMatrix
from crosscoders.kernels.sparse_latents import LatentMajor, SparseLatents, latent_major
from crosscoders.kernels.triton.tiles import Tiles

DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")
# At toy sizes: several chunks of columns, several tiles of entries, and latents that are split.
SMALL = Tiles(columns=8, entries=2, split=3)
N_ROWS = 7
PATTERNS = "mixed single all no_rows no_latents hot hot_neighbors none one_token".split()


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sparse latents, the matrices they meet, and their dense float64 form."""

    latents: SparseLatents
    by_latent: LatentMajor
    weight: Tensor
    x: Tensor
    bias: Tensor
    dense: Tensor


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """PyTorch fills new memory with NaN, so nothing can rely on what it held."""
    torch.use_deterministic_algorithms(True)
    assert bool(torch.ones(1).new_empty(3).isnan().all())
    yield
    torch.use_deterministic_algorithms(False)


def make_case(
    pattern: str, *, width: int = 11, dtype: torch.dtype = torch.float32, seed: int = 0, n_latents: int = 9
) -> Case:
    """Draw a case; a tenth of the stored entries have the value 0, as fixed capacity leaves them."""
    generator = torch.Generator().manual_seed(seed)
    mask = _mask(pattern, n_latents, generator)
    values = torch.randn(mask.shape, generator=generator)
    values = values * (torch.rand(mask.shape, generator=generator) > 0.1)
    latents = SparseLatents.gather(values.to(DEVICE), mask.to(DEVICE).flatten().nonzero().squeeze(1))
    return Case(
        latents=latents,
        by_latent=latent_major(latents),
        weight=_draw(n_latents, width, generator=generator).to(dtype),
        x=_draw(mask.shape[0], width, generator=generator).to(dtype),
        bias=_draw(width, generator=generator),
        dense=(values * mask).double().to(DEVICE),
    )


def _mask(pattern: str, n_latents: int, generator: torch.Generator) -> Tensor:
    mask = torch.rand(1 if pattern == "one_token" else N_ROWS, n_latents, generator=generator) < 0.4
    if pattern == "single":
        mask = torch.zeros_like(mask).scatter(
            1, torch.randint(n_latents, (N_ROWS, 1), generator=generator), True
        )
    elif pattern in ("all", "none"):
        mask[:] = pattern == "all"
    elif pattern == "no_rows":
        mask[[0, 3, N_ROWS - 1]] = False
    elif pattern == "no_latents":
        mask[:, [0, 4, 5, n_latents - 1]] = False
    elif pattern == "hot":
        mask[:, 4] = True
    elif pattern == "hot_neighbors":
        mask[:, [0, 3, 4, n_latents - 1]] = True
    return mask


def _draw(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator).to(DEVICE)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """`|got - expected| / |expected|`, and infinite where a number is missing or the shapes differ."""
    if got.shape != expected.shape or not bool(got.isfinite().all()):
        return float("inf")
    scale = expected.double().norm().clamp(min=1e-12)
    return float((got.double() - expected.double()).norm() / scale)


def make_matrix(n_latents: int, boundaries: tuple[int, ...] | None, *, width: int = 11) -> AdamMatrix:
    """A matrix in the middle of its training; without boundaries it has neither norms nor a bfloat16 copy."""
    generator = torch.Generator().manual_seed(1)
    norms = None if boundaries is None else torch.full((n_latents, len(boundaries) - 1), -1.0, device=DEVICE)
    shape = (n_latents, width if boundaries is None else boundaries[-1])
    return AdamMatrix(
        weight=_draw(*shape, generator=generator),
        exp_avg=0.1 * _draw(*shape, generator=generator),
        exp_avg_sq=0.1 * _draw(*shape, generator=generator).square(),
        shadow=None if norms is None else torch.zeros(shape, dtype=torch.bfloat16, device=DEVICE),
        norms=norms,
        boundaries=boundaries or (),
    )


def tensors_of(matrix: AdamMatrix) -> list[Tensor]:
    """Every tensor that an update writes."""
    written = (matrix.weight, matrix.exp_avg, matrix.exp_avg_sq, matrix.shadow, matrix.norms)
    return [tensor for tensor in written if tensor is not None]


def copy_of(matrix: AdamMatrix) -> AdamMatrix:
    """The same matrix in memory of its own."""
    fields = ("weight", "exp_avg", "exp_avg_sq", "shadow", "norms")
    copies = {name: None if (tensor := getattr(matrix, name)) is None else tensor.clone() for name in fields}
    return replace(matrix, **copies)
