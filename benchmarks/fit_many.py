"""Wall time of `fit_many` against one harvest and each training alone, on the demo's setting.

Run: `python -m benchmarks.fit_many [--crosscoders 4] [--batches 64] [--rounds 3]`. Ratios within one run; on
a busy machine they say nothing. Every crosscoder must come out bit-identical to the same one trained alone.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from crosscoders.buffer import ActivationBuffer
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.harvest import ModelSources
from crosscoders.pipeline.bundled import bundled_sources, demo_config
from crosscoders.sources import Source
from crosscoders.training import Trainer, fit_many
from crosscoders.zoo.corpus import pack_labelled, write_documents

CONFIG = demo_config("")
T = TypeVar("T")


def main() -> None:
    """Print the ratio of each round and the median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crosscoders", type=int, default=4)
    parser.add_argument("--batches", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    sources, tokens = bundled_sources(CONFIG), training_tokens(arguments.batches)
    ratios = [one_round(sources, tokens, n=arguments.crosscoders) for _ in range(arguments.rounds)]
    print(f"median {statistics.median(ratios):.3f}x, {torch.get_num_threads()} threads")


def one_round(sources: ModelSources, tokens: Tensor, *, n: int) -> float:
    """Wall time together over the sum of one harvest and each training alone; prints all of them."""
    scaled = buffer_over(sources, tokens).sources
    harvest, rows = timed(lambda: list(buffer_over(sources, tokens)))
    alone = [trainer(scaled, seed) for seed in range(n)]
    separate = [timed(lambda each=each: each.fit(rows))[0] for each in alone]
    trainers = [trainer(scaled, seed) for seed in range(n)]
    together, _ = timed(lambda: fit_many(trainers, buffer_over(sources, tokens)))
    ratio = together / (harvest + sum(separate))
    same = all(is_identical(*pair) for pair in zip(alone, trainers, strict=True))
    print(
        f"harvest {harvest:.2f} s, alone {', '.join(f'{s:.2f}' for s in separate)} s, together "
        f"{together:.2f} s: {ratio:.3f}x, bit-identical: {same}"
    )
    return ratio


def training_tokens(n_batches: int) -> Tensor:
    """Enough rows of the demo's text for this many training batches."""
    kinds = ("story", "drill", "solution", "trace")
    needed = n_batches * CONFIG.data.batch_tokens
    texts = [text for kind in kinds for text in write_documents(kind, n_tokens=needed // 3, seed=7)]
    length = CONFIG.data.sequence_length
    return pack_labelled(texts, length=length).tokens[: needed // length]


def buffer_over(sources: ModelSources, tokens: Tensor) -> ActivationBuffer:
    """The demo's buffer, in the same order each time."""
    return ActivationBuffer(
        sources,
        list(tokens.split(CONFIG.data.sequences_per_harvest)),
        max_bytes=CONFIG.data.buffer_bytes,
        generator=torch.Generator().manual_seed(0),
        batch_tokens=CONFIG.data.batch_tokens,
    )


def trainer(sources: tuple[Source, ...], seed: int) -> Trainer:
    """The demo's trainer of one seed."""
    config = CrosscoderConfig(sources=sources, n_latents=CONFIG.n_latents, activation_fn=CONFIG.activation_fn)
    crosscoder = Crosscoder(config, generator=torch.Generator().manual_seed(seed))
    return Trainer(crosscoder, CONFIG.objective, config=CONFIG.training)


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Wall seconds and the result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def is_identical(one: Trainer, other: Trainer) -> bool:
    """Whether two trained crosscoders agree in every bit of every weight and threshold."""
    states = one.crosscoder.state_dict(), other.crosscoder.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


if __name__ == "__main__":
    main()
