"""`fit_many`: several crosscoders trained in one pass over one stream of activations."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from torch import Tensor

from crosscoders._typing import typed
from crosscoders.training.loop import run
from crosscoders.training.trainer import Trainer


@typed
def fit_many(
    trainers: Sequence[Trainer],
    batches: Iterable[Any],
    *,
    transforms: Sequence[Callable[[Tensor, int], Tensor] | None] | None = None,
    batches_per_round: int = 16,
    keep_going: bool = False,
) -> None:
    """Train several crosscoders on one pass over the batches, so that the models are read once.

    Harvesting costs as much as training or more; seeds, null pairs and architectures that are compared need
    the same batches anyway. Every trainer ends up as if it had been given the batches alone, to the last bit:
    it keeps its own optimizer, threshold, calibration, callbacks, checkpoints and end of the run. They take
    turns of a few batches, because a crosscoder's weights then stay in the cache for a while.

    To resume, call `resume` on each trainer and `fit_many` again with the same batches: the stream starts
    where the trainer that is furthest behind needs it, and the others wait until it reaches them.

    Args:
        trainers: Trainers that share neither crosscoder nor callback nor checkpoint folder.
        batches: As for `Trainer.fit`.
        transforms: One per trainer, None for the batches as they are: `transform(rows, position)` gives
            as many rows, such as these with features planted, or some of their columns; `position` is the
            number of rows that the trainer was given before. It must not write into `rows`, and must depend
            on nothing but its arguments, or resuming is not exact.
        batches_per_round: Batches that one trainer takes before the next has its turn; that many are held in
            memory, and that many less one may be read in vain if callbacks stop every trainer.
        keep_going: A trainer that fails in its own turn, for instance because its loss is not finite, ends
            alone: its callbacks are told, its `failure` holds the error and the others go on. Errors of the
            data and of the disk end them all.

    Raises:
        ValueError: No trainers, something shared between two, not one transform per trainer, a transform
            that changes the number of rows, or what `Trainer.fit` refuses; then no trainer goes on.
        RuntimeError: As for `Trainer.fit`.
        KernelUnavailableError: As for `Trainer.fit`.

    Example:
        >>> import torch
        >>> from crosscoders.activation_fns import TopK
        >>> from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
        >>> from crosscoders.losses import Reconstruction
        >>> from crosscoders.sources import Source
        >>> from crosscoders.training import Trainer, TrainerConfig, fit_many
        >>> sources = (Source(name="base", d_model=4), Source(name="distilled", d_model=4))
        >>> config = CrosscoderConfig(sources=sources, n_latents=16, activation_fn=TopK(k=2))
        >>> seeds = [Crosscoder(config, generator=torch.Generator().manual_seed(i)) for i in range(3)]
        >>> trainers = [Trainer(seed, [Reconstruction()], config=TrainerConfig(lr=1e-3)) for seed in seeds]
        >>> fit_many(trainers, [torch.randn(32, 8) for _ in range(5)])
        >>> [trainer.step for trainer in trainers]
        [5, 5, 5]
    """
    _check_apart(trainers)
    if batches_per_round < 1:
        raise ValueError(f"fit_many: batches_per_round must be at least 1, got {batches_per_round}.")
    if transforms is None:
        transforms = [None] * len(trainers)
    if len(transforms) != len(trainers):
        raise ValueError(
            f"fit_many: expected one transform (or None) for each of {len(trainers)} trainers, got "
            f"{len(transforms)}."
        )
    run(
        trainers,
        batches,
        transforms=transforms,
        batches_per_round=batches_per_round,
        keep_going=keep_going,
    )


def _check_apart(trainers: Sequence[Trainer]) -> None:
    """Refuse trainers that would not train as if each were alone."""
    if not trainers:
        raise ValueError("fit_many: expected at least one trainer, got none.")
    _check_different("trainer", [[id(trainer)] for trainer in trainers])
    _check_different("parameter", [map(id, trainer.crosscoder.parameters()) for trainer in trainers])
    _check_different("callback", [map(id, trainer.callbacks) for trainer in trainers])
    folders = [trainer.checkpoint_dir for trainer in trainers]
    _check_different("checkpoint folder", [[] if at is None else [at.resolve()] for at in folders])


def _check_different(what: str, groups: Iterable[Iterable[Hashable]]) -> None:
    """Raise if one thing is in the groups of two trainers."""
    owner: dict[Hashable, int] = {}
    for index, group in enumerate(groups):
        for thing in set(group):
            if thing in owner:
                raise ValueError(
                    f"fit_many: trainers {owner[thing] + 1} and {index + 1} share a {what}; give each its "
                    "own, or they cannot train as if alone."
                )
            owner[thing] = index
