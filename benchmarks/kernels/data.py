"""Data with latent frequencies as skewed as real ones, and the proof that they are.

A planted dictionary whose latents fire at log-normal rates: x = codes @ dictionary + noise. The encoder and
the decoder start as that dictionary, so the top-k of the encoder inherits the skew. Uniform frequencies would
hide hot latents and flatter every gather, so data that come out uniform are refused.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.problem import Shape

# Of the planted rates. The encoder also selects latents by chance, which evens the rates out: a selection has
# 0.5 to 0.65, within the 0.5 to 1.0 of real dictionaries.
SIGMA_LOG10 = 1.0
MAX_RATE = 0.9
NOISE = 0.1
N_BATCHES = 8
MIN_GINI = 0.4
MIN_HOTTEST = 4.0


@dataclass(frozen=True)
class Skew:
    """How unequal the latents of a selection are; rates are events per token.

    Args:
        touched: Mean part of the latents that fire in one batch.
        hottest: Rate of the most frequent latent.
        gini: Gini coefficient of the rates: 0 if all are equal.
        sigma_log10: Standard deviation of log10 of the rates of latents that fired.
        mean_rate: k / n_latents.
    """

    touched: float
    hottest: float
    gini: float
    sigma_log10: float
    mean_rate: float


@dataclass(frozen=True)
class Weights:
    """Initial weights: encoder and decoder are both `dictionary`, biases are zero."""

    dictionary: Tensor
    tokens_since_fired: Tensor


def latent_rates(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Log-normal rates that sum to k, none above `MAX_RATE`."""
    rates = np.exp(rng.normal(0.0, SIGMA_LOG10 * np.log(10.0), shape.n_latents))
    for _ in range(20):
        rates = np.minimum(rates * (shape.k / rates.sum()), MAX_RATE)
    return rates


def unit_dictionary(shape: Shape, generator: torch.Generator) -> Tensor:
    """Random rows of norm 1 in all, 1 / sqrt(n_sources) in each source."""
    parts = torch.randn(shape.n_latents, shape.n_sources, shape.d_model, generator=generator)
    parts /= parts.norm(dim=2, keepdim=True) * shape.n_sources**0.5
    return parts.reshape(shape.n_latents, shape.width)


def sample_batches(
    shape: Shape, dictionary: Tensor, *, rates: np.ndarray, rng: np.random.Generator
) -> Tensor:
    """`[N_BATCHES, batch, width]`: each latent fires at its rate, with amplitude from 2 to 4."""
    n_tokens = N_BATCHES * shape.batch
    latents = np.repeat(np.arange(shape.n_latents), rng.binomial(n_tokens, rates))
    tokens = rng.integers(n_tokens, size=latents.size)
    order = np.argsort(tokens, kind="stable")
    row_ptr = np.searchsorted(tokens[order], np.arange(n_tokens + 1))
    x = F.embedding_bag(
        torch.from_numpy(latents[order]),
        dictionary,
        torch.from_numpy(row_ptr),
        mode="sum",
        per_sample_weights=torch.from_numpy(rng.uniform(2.0, 4.0, latents.size).astype(np.float32)),
        include_last_offset=True,
    )
    noise = rng.standard_normal(tuple(x.shape), dtype=np.float32) * (NOISE / shape.width**0.5)
    return (x + torch.from_numpy(noise)).view(N_BATCHES, shape.batch, shape.width)


def fired_counts(batches: Tensor, dictionary: Tensor, *, k: int) -> np.ndarray:
    """`[batch number, latent]`: how often the encoder's own top-k takes each latent."""
    counts = []
    for x in batches:
        chosen = torch.cat([(rows @ dictionary.T).topk(k, dim=1).indices.flatten() for rows in x.split(512)])
        counts.append(torch.bincount(chosen, minlength=dictionary.shape[0]))
    return torch.stack(counts).numpy()


def measure_skew(counts: np.ndarray, shape: Shape) -> Skew:
    """Skew of the selections that `fired_counts` counted."""
    rates = np.sort(counts.sum(axis=0) / (counts.shape[0] * shape.batch))
    rank = np.arange(1, rates.size + 1)
    gini = float((2 * rank - rates.size - 1) @ rates / (rates.size * rates.sum()))
    return Skew(
        touched=float((counts > 0).mean()),
        hottest=float(rates[-1]),
        gini=gini,
        sigma_log10=float(np.log10(rates[rates > 0]).std()),
        mean_rate=shape.k / shape.n_latents,
    )


def check_skew(skew: Skew) -> None:
    """Refuse data whose latents fire about equally often.

    Raises:
        ValueError: The Gini coefficient or the hottest latent is too small.
    """
    if skew.gini < MIN_GINI or skew.hottest < min(MIN_HOTTEST * skew.mean_rate, 0.5):
        raise ValueError(
            f"benchmark data: latent frequencies are too uniform ({asdict(skew)}); expected gini >= "
            f"{MIN_GINI} and a hottest latent of >= {MIN_HOTTEST} times the mean rate. Timings on such data "
            "say nothing about real ones."
        )


def write_data(folder: Path, shape: Shape, *, seed: int = 0) -> Skew:
    """Make data and weights of a shape, check their skew and write them.

    Args:
        folder: Gets `x.npy`, `dictionary.npy` and `tokens_since_fired.npy` (as if the stream had been seen
            once before, so that AuxK has dead latents from the first step).
        shape: Sizes.
        seed: Of everything.

    Returns:
        The measured skew.
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    dictionary = unit_dictionary(shape, generator)
    batches = sample_batches(shape, dictionary, rates=latent_rates(shape, rng), rng=rng)
    counts = fired_counts(batches, dictionary, k=shape.k)
    skew = measure_skew(counts, shape)
    check_skew(skew)
    batches_since = np.where(counts.any(axis=0), counts[::-1].astype(bool).argmax(axis=0), N_BATCHES)
    np.save(folder / "x.npy", batches.numpy())
    np.save(folder / "dictionary.npy", dictionary.numpy())
    np.save(folder / "tokens_since_fired.npy", batches_since.astype(np.int64) * shape.batch)
    return skew


def read_batches(folder: Path, *, device: str) -> list[Tensor]:
    """The batches of `write_data`."""
    return list(torch.from_numpy(np.load(folder / "x.npy")).to(device).unbind(0))


def read_weights(folder: Path, *, device: str) -> Weights:
    """The weights of `write_data`; copy them, the file stays mapped only as long as this object lives."""
    arrays = [
        torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c"))
        for name in ("dictionary", "tokens_since_fired")
    ]
    return Weights(*(array.to(device) for array in arrays))
