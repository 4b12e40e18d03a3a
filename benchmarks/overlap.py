"""Tokens per second of harvest alone, training alone, and both at once through `PrefetchedBatches`.

Run: `python -m benchmarks.overlap [--where process] [--rounds 5] [--windows 16]`, on a CPU two processes with
one thread each; with `--device cuda` the crosscoder trains there and the models read on `--harvest-device`.
The three ways take turns in each round, over the same rows, so that a machine that slows down slows all.

- Harvest alone: all batches are taken from the buffer, in the mode's own process or thread, and thrown away:
  copies to the consumer are counted to the harvest. `--plain-harvest` takes them from the buffer itself.
- Training alone: the same number of steps on batches that lie in memory.
- Both: one run; its steady part leaves out the first window, whose harvest nothing can overlap, and the last,
  beside which nothing is harvested.

ratio = tokens/s of both / the slower of the two alone; "steady" over whole windows in the middle, "run" over
everything from the first request to the last step. The number of latents is chosen so that a training step
takes `--balance` times as long as the harvest of its batch (1 is the hardest case: neither side can rest).
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2Config

from crosscoders.activation_fns import BatchTopK
from crosscoders.buffer import ActivationBuffer
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.harvest import load_sources
from crosscoders.losses import AuxK, Reconstruction
from crosscoders.prefetch import PrefetchedBatches
from crosscoders.sources import Source
from crosscoders.training import Trainer, TrainerConfig

MODEL: dict[str, Any] = {
    "vocab_size": 1000, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
BATCH, LENGTH, PER_HARVEST, WINDOW_BATCHES = 1024, 128, 8, 8
WIDTH = 2 * MODEL["hidden_size"]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one way, over the whole run and over its steady part."""

    run: float
    steady: float


def make_buffer(*, n_windows: int, device: str, n_models: int = 2) -> ActivationBuffer:
    """A buffer over two small models with random weights; its window holds `WINDOW_BATCHES` batches."""
    models = {}
    for seed in range(n_models):
        torch.manual_seed(seed)
        config = Qwen2Config(**MODEL)
        with torch.device(device):
            models[f"m{seed}"] = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    generator = torch.Generator().manual_seed(0)
    n_rows = n_windows * WINDOW_BATCHES * BATCH
    tokens = torch.randint(0, MODEL["vocab_size"], (n_rows // LENGTH, LENGTH), generator=generator)
    row_bytes = WIDTH * torch.bfloat16.itemsize
    max_bytes = WINDOW_BATCHES * BATCH * (row_bytes + 8) + PER_HARVEST * LENGTH * row_bytes
    return ActivationBuffer(
        load_sources(models, hook_name="half"),
        list(tokens.split(PER_HARVEST)),
        max_bytes=max_bytes,
        generator=generator,
        batch_tokens=BATCH,
    )


def new_trainer(sources: tuple[Source, ...], *, n_latents: int, device: str) -> Trainer:
    """A trainer that neither logs nor saves."""
    config = CrosscoderConfig(sources=sources, n_latents=n_latents, activation_fn=BatchTopK(k=32))
    crosscoder = Crosscoder(config, generator=torch.Generator().manual_seed(0)).to(device)
    numbers = TrainerConfig(lr=1e-4, log_every_steps=0, calibration_batches=1, total_tokens=1 << 40)
    return Trainer(crosscoder, [Reconstruction(), AuxK()], config=numbers)


def timed(batches: Iterable[Tensor], step: Callable[[Tensor], object], *, n_windows: int) -> Timing:
    """Take each batch and do a step; the clock stands still for nothing."""
    ends = [time.perf_counter()]
    for batch in batches:
        step(batch)
        ends.append(now())
    first, last = WINDOW_BATCHES, (n_windows - 1) * WINDOW_BATCHES
    return Timing(run=ends[-1] - ends[0], steady=ends[last] - ends[first])


def now() -> float:
    """The clock, once a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def latents_for(seconds: float, sources: tuple[Source, ...], rows: list[Tensor], *, device: str) -> int:
    """The number of latents, in steps of 512, with which a training step takes that long."""
    per_latent = 0.0
    n_latents = 4096
    for _ in range(3):
        trainer = new_trainer(sources, n_latents=n_latents, device=device)
        trainer.fit(rows[:2])
        began = now()
        for batch in rows[2:6]:
            trainer.training_step(batch.to(device))
        per_latent = (now() - began) / 4 / n_latents
        n_latents = max(512, round(seconds / per_latent / 512) * 512)
    return n_latents


def main() -> None:
    """Print each round and the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--where", choices=("process", "thread"), default="process")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--balance", type=float, default=1.0, help="training time over harvest time")
    parser.add_argument("--latents", type=int, help="number of latents, instead of --balance")
    parser.add_argument("--prefetch", type=int, help="batches ahead; default: one window")
    parser.add_argument("--device", default="cpu", help="where the crosscoder trains")
    parser.add_argument("--harvest-device", default=None)
    parser.add_argument("--plain-harvest", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    make = partial(
        make_buffer, n_windows=arguments.windows, device=arguments.harvest_device or arguments.device
    )
    options = {"where": arguments.where, "n_batches": arguments.prefetch, "device": arguments.device}
    rows = list(make())
    sources = make().sources
    n_latents = arguments.latents
    if n_latents is None:
        harvest = timed(make(), lambda batch: None, n_windows=arguments.windows)
        seconds = arguments.balance * harvest.run / len(rows)
        n_latents = latents_for(seconds, sources, rows, device=arguments.device)
    print(f"{len(rows)} batches of {BATCH}, {n_latents} latents, {arguments.where}, {arguments.device}")
    results = [one_round(make, rows, sources, n_latents, options, arguments) for _ in range(arguments.rounds)]
    for name in ("steady", "run"):
        ratios = [ratio[name] for ratio in results]
        print(f"{name}: median {statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})")


def one_round(
    make: Callable[[], ActivationBuffer],
    rows: list[Tensor],
    sources: tuple[Source, ...],
    n_latents: int,
    options: dict[str, Any],
    arguments: argparse.Namespace,
) -> dict[str, float]:
    """The ratios of one round, in which each way runs once; prints all times and who waited for whom."""
    n_windows, n_tokens = arguments.windows, sum(len(batch) for batch in rows)
    alone = make() if arguments.plain_harvest else PrefetchedBatches(make, **options)
    _ = alone.state_dict()  # models are loaded before the clock starts
    harvest = timed(alone, lambda batch: None, n_windows=n_windows)
    step = stepper(sources, n_latents, rows, device=arguments.device)
    training = timed(rows, step, n_windows=n_windows)
    step = stepper(sources, n_latents, rows, device=arguments.device)
    with PrefetchedBatches(make, **options) as batches:
        _ = batches.state_dict()
        both = timed(batches, step, n_windows=n_windows)
        waits = batches.waits
    ratios = {
        name: max(getattr(harvest, name), getattr(training, name)) / getattr(both, name)
        for name in ("steady", "run")
    }
    speeds = (n_tokens / each.run for each in (harvest, training, both))
    print(
        "tokens/s: harvest {:,.0f}, training {:,.0f}, both {:,.0f};".format(*speeds),
        f"ratio {ratios['run']:.3f}, steady {ratios['steady']:.3f}; {waits}",
    )
    return ratios


def stepper(
    sources: tuple[Source, ...], n_latents: int, rows: list[Tensor], *, device: str
) -> Callable[[Tensor], object]:
    """One training step of a new trainer that has warmed up."""
    trainer = new_trainer(sources, n_latents=n_latents, device=device)
    trainer.fit(rows[:2])
    trainer.crosscoder.train()
    return lambda batch: trainer.training_step(batch.to(device))


if __name__ == "__main__":
    main()
