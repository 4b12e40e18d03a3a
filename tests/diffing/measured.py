"""Random and trained crosscoders over two sources, their held-out rows, and brute-force float64 sums."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from crosscoders.activation_fns import ActivationFn, BatchTopK, ReLU
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.diffing.batches import MeasureBatch, cut_batches
from crosscoders.diffing.measures.moments import Moments, collect_moments
from crosscoders.kernels import SparseLatents
from crosscoders.losses import Reconstruction
from crosscoders.sources import Source, column_slices
from crosscoders.training import Trainer, TrainerConfig

N_HELD_OUT, SEQUENCE = 6000, 20


@dataclass(frozen=True)
class Measured:
    """A crosscoder, its moments, and what they are sums of, dense and in float64."""

    crosscoder: Crosscoder
    moments: Moments
    rows: Tensor
    sequence: Tensor
    x: Tensor
    f: Tensor
    W: Tensor
    b: Tensor

    @property
    def error(self) -> Tensor:
        """e = x - xhat in normalized space."""
        return self.x - self.f @ self.W - self.b

    def columns(self, source: str) -> slice:
        """Columns of a source."""
        return column_slices(self.crosscoder.sources)[source]

    def batches(self) -> list[MeasureBatch]:
        """The held-out rows again."""
        return list(cut_batches(self.rows, self.sequence, batch_tokens=700))


def hidden_rows(n_rows: int, *, widths: tuple[int, ...], seed: int) -> Tensor:
    """Raw rows of 40 hidden features at rates from 2% to 40%, some of which one source lacks."""
    world = torch.Generator().manual_seed(5)
    directions = torch.randn(40, sum(widths), generator=world)
    directions[:6, : widths[0]] = 0.0
    directions[6:12, widths[0] :] *= 0.3
    rates = 0.02 * 20 ** torch.rand(40, generator=world)
    generator = torch.Generator().manual_seed(seed)
    codes = (torch.rand(n_rows, 40, generator=generator) < rates) * (
        0.5 + torch.rand(n_rows, 40, generator=generator)
    )
    rows = codes @ directions + 0.1 * torch.randn(n_rows, sum(widths), generator=generator)
    rows[:, : widths[0]] *= 3.0
    return rows


def random_crosscoder(widths: tuple[int, ...], *, activation_fn: ActivationFn) -> Crosscoder:
    """Decoder rows of unequal norms, biases that matter, different scales."""
    names = ("base", "middle", "distilled") if len(widths) == 3 else ("base", "distilled")
    sources = tuple(
        Source(name=n, d_model=d, scale=0.3 + 0.2 * i) for i, (n, d) in enumerate(zip(names, widths))
    )
    config = CrosscoderConfig(
        sources=sources, n_latents=48, activation_fn=activation_fn, decoder_init_norm=0.4
    )
    generator = torch.Generator().manual_seed(1)
    crosscoder = Crosscoder(config, generator=generator)
    with torch.no_grad():
        crosscoder.b_enc.normal_(std=0.3, generator=generator).sub_(0.7)
        crosscoder.b_dec.normal_(std=0.2, generator=generator)
        stretch = 0.1 + 2 * torch.rand(48, len(widths), generator=generator)
        crosscoder.W_dec.mul_(stretch.repeat_interleave(torch.tensor(widths), dim=1))
    return crosscoder


@functools.cache
def measured(kind: str, widths: tuple[int, ...] = (12, 12)) -> Measured:
    """A "random" ReLU crosscoder or a briefly "trained" BatchTopK one, measured on held-out rows."""
    crosscoder = random_crosscoder(widths, activation_fn=ReLU() if kind == "random" else BatchTopK(k=6))
    if kind == "trained":
        batches = list(hidden_rows(150 * 512, widths=widths, seed=2).split(512))
        Trainer(
            crosscoder,
            [Reconstruction()],
            config=TrainerConfig(lr=1e-2, log_every_steps=0, calibration_batches=4),
        ).fit(batches)
    rows = hidden_rows(N_HELD_OUT, widths=widths, seed=3)
    sequence = torch.arange(N_HELD_OUT) // SEQUENCE
    moments = collect_moments(crosscoder, cut_batches(rows, sequence, batch_tokens=700))
    return _with_dense(crosscoder, moments, rows, sequence)


def _with_dense(crosscoder: Crosscoder, moments: Moments, rows: Tensor, sequence: Tensor) -> Measured:
    was_training = crosscoder.training
    with torch.no_grad():
        latents = crosscoder.eval().encode(rows)
    crosscoder.train(was_training)
    f = (latents.to_dense() if isinstance(latents, SparseLatents) else latents).double()
    scale = torch.cat([torch.full((s.d_model,), s.scale, dtype=torch.float64) for s in crosscoder.sources])
    W, b = crosscoder.W_dec.detach().double(), crosscoder.b_dec.detach().double()
    return Measured(crosscoder, moments, rows, sequence, rows.double() * scale, f, W, b)
