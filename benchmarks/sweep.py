"""Wall time of a sweep of eight against one harvest and eight trainings alone, on the demo's setting.

Run: `python -m benchmarks.sweep [--batches 64] [--rounds 3]`. The sweep is timed from the first harvested
row to the last saved crosscoder; measuring comes after and is timed apart. Ratios within one run; on a busy
machine they say nothing. Every member must come out bit-identical to the same one trained alone.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.fit_many import training_tokens
from crosscoders.harvest import ModelSources
from crosscoders.pipeline.bundled import bundled_sources, demo_config
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.corpus import Corpus
from crosscoders.pipeline.fit import (
    first_rows,
    new_crosscoder,
    new_trainer,
    weights_generator,
)
from crosscoders.pipeline.rows import training_buffer
from crosscoders.pipeline.sweep import Sweep
from crosscoders.pipeline.sweep.fitting import fit_members
from crosscoders.pipeline.sweep.measuring import measure_members
from crosscoders.pipeline.sweep.member import Member, read_member_crosscoder
from crosscoders.training import Trainer

AXES = {"activation_fn.k": [16, 32], "training.lr": [2e-3, 5e-4], "n_latents": [512, 1024]}
T = TypeVar("T")


def main() -> None:
    """Print the ratio of each round and the median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = demo_config(folder)
        sources = bundled_sources(config)
        corpus = corpus_of(arguments.batches)
        ratios = [one_round(sources, corpus, config, at=at) for at in range(arguments.rounds)]
    print(f"median {statistics.median(ratios):.3f}x, {torch.get_num_threads()} threads")


def corpus_of(n_batches: int) -> Corpus:
    """Rows of the demo's text: this many batches to train on, four more to measure on."""
    tokens = training_tokens(n_batches + 4)
    n_held_out = len(tokens) * 4 // (n_batches + 4)
    held_out = tokens[:n_held_out]
    return Corpus(train=tokens[n_held_out:], held_out=held_out, origin=torch.zeros_like(held_out))


def one_round(sources: ModelSources, corpus: Corpus, config: RunConfig, *, at: int) -> float:
    """Wall time of the sweep over the sum of one harvest and each training alone; prints all of them."""
    sweep = Sweep(dataclasses.replace(config, out=str(Path(config.out) / str(at))), AXES)
    generator = torch.Generator().manual_seed(config.seed)
    buffer = training_buffer(sources, corpus, config, generator=generator)
    harvest, rows = timed(lambda: list(buffer))
    scaled = buffer.sources
    first, n_tokens = first_rows(sources, corpus, config), sum(len(batch) for batch in rows)

    def trainer(member: Member) -> Trainer:
        begun = new_crosscoder(
            scaled, member.config, rows=first, generator=weights_generator(member.config.seed)
        )
        return new_trainer(begun, member.config, total_tokens=n_tokens)

    alone = {member.name: trainer(member) for member in sweep.members}
    separate = [timed(lambda each=each: each.fit(rows))[0] for each in alone.values()]
    together, _ = timed(lambda: fit_members(sweep.members, sources, corpus, sweep.config, say=print))
    found = {member.name: read_member_crosscoder(member) for member in sweep.members}
    measuring, _ = timed(lambda: measure_members(found, sources, corpus, sweep.config))
    ratio = together / (harvest + sum(separate))
    same = all(
        torch.equal(getattr(found[name], tensor), getattr(each.crosscoder, tensor))
        for name, each in alone.items()
        for tensor in ("W_enc", "b_enc", "W_dec", "b_dec")
    )
    print(
        f"harvest {harvest:.2f} s, alone {', '.join(f'{s:.2f}' for s in separate)} s, sweep "
        f"{together:.2f} s: {ratio:.3f}x, bit-identical: {same}; all measured in {measuring:.2f} s"
    )
    return ratio


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Wall seconds and the result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
