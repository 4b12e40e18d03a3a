"""Training on the bundled pair as the demo does it: harvest live, from memory, and the harvest alone."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.kernels.data import Weights
from benchmarks.kernels.ops import Calls
from benchmarks.kernels.problem import Problem
from crosscoders.buffer import ActivationBuffer
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.harvest import ModelSources, load_sources
from crosscoders.pipeline.bundled import FAMILY, demo_config
from crosscoders.pipeline.config import RunConfig
from crosscoders.training import Trainer
from crosscoders.zoo import model_path
from crosscoders.zoo.corpus import pack_labelled, write_documents

N_TOKENS = 32_768
_SEED = 4242  # of text that no model was trained on


class Demo:
    """The demo's models, objective and numbers on a short text; `option` is the trainer's backend."""

    def __init__(self, *, backend: str, precision: str) -> None:
        self.config: RunConfig = demo_config("unused")
        training = replace(self.config.training, backend=backend, precision=precision, log_every_steps=0)
        self.training = replace(training, total_tokens=N_TOKENS)
        self.sources: ModelSources = load_sources(
            {name: str(model_path(FAMILY, name)) for name in ("base", "distilled")},
            hook_name=self.config.hook_name,
        )
        length = self.config.data.sequence_length
        texts = write_documents("trace", n_tokens=2 * N_TOKENS, seed=_SEED)
        self.tokens = pack_labelled(texts, length=length).tokens[: N_TOKENS // length]
        self.rows = list(self.buffer())

    def buffer(self) -> ActivationBuffer:
        """A new buffer at the beginning of the text."""
        return ActivationBuffer(
            self.sources,
            self.tokens.split(self.config.data.sequences_per_harvest),
            max_bytes=self.config.data.buffer_bytes,
            generator=torch.Generator().manual_seed(0),
            batch_tokens=self.config.data.batch_tokens,
        )

    def harvest(self) -> None:
        """Read the models and serve every row."""
        for _ in self.buffer():
            pass

    def harvest_and_train(self) -> None:
        """Train while harvesting."""
        self._trainer().fit(self.buffer())

    def train(self) -> None:
        """Train on rows that are already there."""
        self._trainer().fit(self.rows)

    def _trainer(self) -> Trainer:
        config = CrosscoderConfig(
            sources=self.sources.sources,
            n_latents=self.config.n_latents,
            activation_fn=self.config.activation_fn,
        )
        return Trainer(Crosscoder(config), self.config.objective, config=self.training)


def build(problem: Problem, weights: Weights, batches: list[Tensor], *, option: str) -> Calls:
    """Option: the trainer's backend; the data of the other tables are not used."""
    demo = Demo(backend=option, precision=problem.precision)
    calls: dict[str, Callable[[], object]] = {
        f"harvest {N_TOKENS} tokens": demo.harvest,
        f"harvest and train on {N_TOKENS} tokens": demo.harvest_and_train,
        f"train on {N_TOKENS} tokens in memory": demo.train,
    }
    return Calls(calls, device=problem.device)
