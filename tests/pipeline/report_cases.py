"""Firings, a small pair and a finished run for the tests of the report."""

import random
from pathlib import Path

import torch
from torch import Tensor

from crosscoders.activation_fns import TopK
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.harvest import ModelSources, load_sources
from crosscoders.pipeline.config import DataConfig, RunConfig
from crosscoders.pipeline.report.firings import Firings
from crosscoders.pipeline.run import run
from crosscoders.training import TrainerConfig
from crosscoders.zoo.parser import to_text
from crosscoders.zoo.recipe import Architecture
from crosscoders.zoo.traces import write_trace
from crosscoders.zoo.train import build_model
from crosscoders.zoo.vocabulary import build_tokenizer
from tests.data.toy_models import random_tokens, toy_model, toy_tokenizer

END_OF_TEXT = 1


def firings_of(dense: Tensor) -> Firings:
    """The firings in dense activations [latent row position]."""
    latent, row, position = (dense > 0).nonzero(as_tuple=True)
    counts = torch.bincount(latent, minlength=len(dense))
    return Firings(
        ptr=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(dim=0)]),
        token=row * dense.shape[2] + position,
        activation=dense[latent, row, position],
        n_positions=dense.shape[2],
        n_counted=dense[0].numel(),
    )


def tied_activations(*, n_latents: int = 30, seed: int = 0) -> Tensor:
    """Activations [latent row position] with many ties; a latent that never fires, and one that does once."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(1, 4, (n_latents, 12, 20), generator=generator).float()
    rate = torch.rand(n_latents, 1, 1, generator=generator)
    dense = values * (torch.rand(values.shape, generator=generator) < rate * 0.3)
    dense[:2] = 0
    dense[1, 3, 4] = 2
    return dense


def toy_text() -> tuple[Tensor, Tensor]:
    """Rows of tokens with ends of documents in them, and which tokens count."""
    tokens = random_tokens(12, 20)
    ends = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1)) < 0.1
    tokens = torch.where(ends, END_OF_TEXT, tokens)
    mask = tokens != END_OF_TEXT
    mask[:, 0] = False
    return tokens, mask


def toy_sources() -> ModelSources:
    """Two models of unequal width."""
    models = {"base": toy_model(seed=1), "distilled": toy_model(seed=2, d_model=32)}
    return load_sources(models, hook_name="blocks.1.hook_resid_post", tokenizer=toy_tokenizer())


def toy_crosscoder(sources: ModelSources, *, n_latents: int = 24) -> Crosscoder:
    """A crosscoder with random weights, scales that are not 1 and a bias."""
    scaled = tuple(
        type(source)(**{**source.to_dict(), "scale": 0.5 + at}) for at, source in enumerate(sources.sources)
    )
    config = CrosscoderConfig(sources=scaled, n_latents=n_latents, activation_fn=TopK(k=4))
    crosscoder = Crosscoder(config, generator=torch.Generator().manual_seed(3)).eval()
    with torch.no_grad():
        crosscoder.b_enc.normal_(generator=torch.Generator().manual_seed(4), std=0.05)
    return crosscoder


def toy_run(folder: Path) -> Path:
    """A finished run of a small pair on traces of the bundled grammar, read from files."""
    shape = Architecture(n_layers=2, d_model=16, d_mlp=16, n_heads=2, n_kv_heads=1)
    for name, seed in (("base", 0), ("distilled", 1)):
        build_model(shape, seed=seed).save_pretrained(folder / name)
        build_tokenizer().save_pretrained(folder / name)
    rng = random.Random(0)
    (folder / "text.txt").write_text("\n\n".join(to_text(write_trace(rng).ids).strip() for _ in range(60)))
    data = DataConfig(
        sequence_length=64, held_out_tokens=2000, batch_tokens=256, splice_tokens=0, n_tokens=1500
    )
    config = RunConfig(
        base=str(folder / "base"),
        distilled=str(folder / "distilled"),
        text=str(folder / "text.txt"),
        out=str(folder / "run"),
        n_latents=70,
        activation_fn=TopK(k=4),
        data=data,
        training=TrainerConfig(lr=1e-2, log_every_steps=2),
    )
    run(config)
    return folder / "run"
