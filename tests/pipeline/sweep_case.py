"""A sweep small enough for tests: toy models in memory, random tokens, members that crash on demand."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from crosscoders.activation_fns import BatchTopK
from crosscoders.harvest import ModelSources, load_sources
from crosscoders.pipeline.config import DataConfig, RunConfig
from crosscoders.pipeline.corpus import Corpus
from crosscoders.pipeline.fit import fit_crosscoder
from crosscoders.pipeline.sweep.member import Member
from crosscoders.training import Callback, StepReport, Trainer, TrainerConfig
from tests.data.toy_models import random_tokens, toy_model, toy_tokenizer

N_STEPS = 19  # the last batch of the corpus is short


def toy_sources() -> ModelSources:
    """Two models of the same shape with different weights."""
    models = {"base": toy_model(n_layers=2), "distilled": toy_model(n_layers=2, seed=1)}
    return load_sources(models, tokenizer=toy_tokenizer())


def toy_corpus() -> Corpus:
    """Random tokens of two kinds, some of which do not count."""
    held_out = random_tokens(7, 32, seed=2)
    origin = (torch.arange(7)[:, None] % 2).expand(7, 32).clone()
    origin[3, :5] = -1
    return Corpus(
        train=random_tokens(37, 32, seed=1), held_out=held_out, origin=origin, origins=("a", "b"),
        exclude_token_ids=(5,),
    )  # fmt: skip


def toy_config(out: Path, **changes: Any) -> RunConfig:
    """Several windows of rows, and checkpoints that fall inside them."""
    training = {"lr": 1e-2, "checkpoint_every_steps": 4, "log_every_steps": 3, "calibration_batches": 2}
    config = RunConfig(
        base="base", distilled="distilled", text="none", out=str(out), n_latents=24,
        activation_fn=BatchTopK(k=3),
        data=DataConfig(sequence_length=32, batch_tokens=64, sequences_per_harvest=4, buffer_bytes=40_000),
        training=TrainerConfig.from_dict({**training, **changes.pop("training", {})}),
    )  # fmt: skip
    return dataclasses.replace(config, **changes)


class CrashAt(Callback):
    """Ends the whole process at a step of this member, as far as Python allows."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        """Crash."""
        if report.step == self.step:
            raise KeyboardInterrupt("planned")


def assert_trained_alone(
    member: Member, tmp_path: Path, sources: ModelSources, corpus: Corpus, *, data_seed: int | None = None
) -> None:
    """Its saved weights are those of `fit_crosscoder` with the member's own configuration, byte by byte."""
    training = dataclasses.replace(member.config.training, checkpoint_every_steps=0)
    config = dataclasses.replace(member.config, training=training)
    fit_crosscoder(sources, corpus, config, data_seed=data_seed).save_pretrained(tmp_path / member.name)
    folders = member.folder / "crosscoder", tmp_path / member.name
    found, expected = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert found == expected


def tables(out: Path) -> dict[str, bytes]:
    """What the folder of a finished sweep says, file by file."""
    return {name: (out / name).read_bytes() for name in ("sweep.csv", "summary.txt")}
