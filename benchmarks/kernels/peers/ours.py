"""This library: the whole of `Trainer.training_step`."""

import torch
from torch import Tensor

from benchmarks.kernels.data import Weights
from benchmarks.kernels.implementation import Implementation
from benchmarks.kernels.problem import AUXK_WEIGHT, BETAS, LR, Problem, Variant
from crosscoders._version import __version__
from crosscoders.activation_fns import BatchTopK, TopK
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.losses import AuxK, LossTerm, Reconstruction
from crosscoders.sources import Source
from crosscoders.training import Trainer, TrainerConfig

VERSION = __version__
_ENDLESS_TOKENS = 10**15


class Ours(Implementation):
    """A trainer in the middle of an endless run with a constant learning rate."""

    def __init__(
        self, problem: Problem, batches: list[Tensor], *, variant: Variant, trainer: Trainer
    ) -> None:
        super().__init__(problem, batches, variant=variant)
        self.trainer = trainer

    def update(self, x: Tensor) -> Tensor:
        """One optimizer step."""
        return self.trainer.training_step(x).losses.total

    def l0(self, x: Tensor) -> float:
        """Non-zero latents per token, by the step's own activation function."""
        is_bfloat16 = self.problem.precision == "bfloat16"
        with torch.autocast(self.problem.device, dtype=torch.bfloat16, enabled=is_bfloat16):
            latents = self.trainer.crosscoder.encode(x)
        values = latents if isinstance(latents, Tensor) else latents.values
        return float((values != 0).sum() / x.shape[0])


def build(problem: Problem, weights: Weights, batches: list[Tensor], *, option: str) -> Implementation:
    """Option: the trainer's backend."""
    crosscoder = _crosscoder(problem, weights)
    objective: list[LossTerm] = [Reconstruction()]
    if problem.case.auxk:
        objective.append(AuxK(weight=AUXK_WEIGHT))
    trainer = Trainer(crosscoder, objective, config=_config(problem, option))
    trainer.total_tokens = _ENDLESS_TOKENS
    trainer.tokens_since_fired.copy_(weights.tokens_since_fired)
    crosscoder.train()
    return Ours(problem, batches, variant=Variant(), trainer=trainer)


def _crosscoder(problem: Problem, weights: Weights) -> Crosscoder:
    shape = problem.shape
    activation = {"topk": TopK, "batch_topk": BatchTopK}[problem.case.activation]
    config = CrosscoderConfig(
        sources=tuple(Source(name=f"source{i}", d_model=shape.d_model) for i in range(shape.n_sources)),
        n_latents=shape.n_latents,
        activation_fn=activation(k=shape.k),
    )
    crosscoder = Crosscoder(config).to(problem.device)
    with torch.no_grad():
        crosscoder.W_enc.copy_(weights.dictionary)
        crosscoder.W_dec.copy_(weights.dictionary)
    return crosscoder


def _config(problem: Problem, backend: str) -> TrainerConfig:
    return TrainerConfig(
        lr=LR,
        betas=BETAS,
        warmup_fraction=0.0,
        decay_fraction=0.0,
        max_grad_norm=problem.case.max_grad_norm,
        precision=problem.precision,
        dead_after_tokens=problem.dead_after_tokens,
        log_every_steps=0,
        backend=backend,
    )
