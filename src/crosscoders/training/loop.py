"""The loop over one stream of batches: one trainer alone, or several that take turns.

Nothing is imported from `trainer`, which imports this: `Trainer.fit` is the loop with one trainer.
"""

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from crosscoders.training.batches import BatchStream

if TYPE_CHECKING:
    from crosscoders.training.trainer import Trainer

Transform = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, kw_only=True)
class _Served:
    """One batch as the stream gave it, its number from 1, and where the stream stood after it."""

    batch: Any
    number: int
    position: Callable[[], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class _Lane:
    """One trainer, how many batches it had before this run, and what is done to its batches."""

    trainer: "Trainer"
    name: str
    n_before: int
    transform: Transform | None
    is_alone: bool

    def tokens_left(self) -> int:
        """Rows that it may still take; 0 once a stop is requested."""
        trainer = self.trainer
        return 0 if trainer.stop_reason is not None else trainer._known_total() - trainer.tokens_seen

    def take_turn(self, served: Sequence[_Served], *, has_ended: bool) -> None:
        """Train on these batches; the run ends with the last of them, or where the trainer has enough."""
        for item in served:
            if self.tokens_left() <= 0:
                break
            if item.number > self.n_before:  # it had the others before it was resumed
                self.trainer._step(self._own(item.batch), item.position)
        if self.trainer.stop_reason is None and (has_ended or self.tokens_left() <= 0):
            is_full = self.tokens_left() <= 0
            self.trainer.request_stop("total_tokens reached" if is_full else "the batches ended")
        if self.trainer.stop_reason is not None:
            self.trainer._finish()

    def _own(self, batch: Any) -> Any:
        if isinstance(batch, Tensor) and not self.is_alone:
            batch = batch.clone()  # what one trainer writes into its batch must not reach the next
        if self.transform is None:
            return batch
        return _transformed(batch, self.transform, position=self.trainer.tokens_seen)


def run(
    trainers: Sequence["Trainer"],
    batches: Iterable[Any],
    *,
    transforms: Sequence[Transform | None],
    batches_per_round: int,
) -> None:
    """Train until every trainer has ended; each goes on from where its own run stands.

    Args:
        trainers: Trainers that share nothing that changes.
        batches: The batches of all of them.
        transforms: One per trainer, None for the batches as they are.
        batches_per_round: Batches that a trainer takes before the next one has its turn.
    """
    running = list(trainers)
    try:
        lanes, stream = _open(trainers, batches, transforms=transforms)
        for trainer in trainers:
            trainer._start()
        while lanes:
            served, has_ended = _next_round(stream, lanes, n_batches=batches_per_round)
            for lane in lanes:
                with _saying_who(lane):
                    lane.take_turn(served, has_ended=has_ended)
                if lane.trainer.stop_reason is not None:
                    running.remove(lane.trainer)
            lanes = [lane for lane in lanes if lane.trainer in running]
    except BaseException as error:
        for trainer in running:
            for callback in trainer.callbacks:
                callback.on_exception(trainer, error)
        raise


def _open(
    trainers: Sequence["Trainer"], batches: Iterable[Any], *, transforms: Sequence[Transform | None]
) -> tuple[list[_Lane], BatchStream]:
    """Begin every run, and the stream where the trainer that is furthest behind needs it."""
    positions = [trainer._begin(batches) for trainer in trainers]
    lanes = [
        _Lane(
            trainer=trainer,
            name=f"trainer {i + 1} of {len(trainers)}",
            n_before=0 if position is None else position["n_served"],
            transform=transform,
            is_alone=len(trainers) == 1,
        )
        for i, (trainer, position, transform) in enumerate(zip(trainers, positions, transforms))
    ]
    waiting = [i for i, lane in enumerate(lanes) if lane.tokens_left() > 0] or range(len(lanes))
    furthest_behind = min(waiting, key=lambda i: lanes[i].n_before)
    stream = BatchStream(batches, position=positions[furthest_behind])
    return lanes, stream


def _next_round(stream: BatchStream, lanes: Sequence[_Lane], *, n_batches: int) -> tuple[list[_Served], bool]:
    """Batches until the round is full or nobody needs more, and whether the stream has ended."""
    served: list[_Served] = []
    tokens_left = max(lane.tokens_left() for lane in lanes)
    while len(served) < n_batches and tokens_left > 0:
        batch = stream.next_batch()
        if batch is None:
            return served, True
        position = stream.position
        if n_batches > 1:  # the stream runs ahead, and a loader may reuse the memory of a batch
            is_saving = any(lane.trainer.config.checkpoint_every_steps for lane in lanes)
            position = functools.partial(dict, copy.deepcopy(stream.position()) if is_saving else {})
            batch = batch.clone() if isinstance(batch, Tensor) else batch
        served.append(_Served(batch=batch, number=stream.n_served, position=position))
        tokens_left -= batch.shape[:1].numel() if isinstance(batch, Tensor) else 1
    return served, False


def _transformed(batch: Tensor, transform: Transform, *, position: int) -> Tensor:
    result = transform(batch, position)
    if not isinstance(result, Tensor) or result.ndim != 2 or len(result) != len(batch):
        got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise ValueError(
            f"fit_many: a transform must give back a [batch, width] tensor with the batch's {len(batch)} "
            f"rows, got {got}."
        )
    return result


@contextmanager
def _saying_who(lane: _Lane) -> Iterator[None]:
    """Add to an error which of several trainers it came from."""
    try:
        yield
    except Exception as error:
        if not lane.is_alone:
            error.add_note(f"fit_many: this happened to {lane.name}.")
        raise
