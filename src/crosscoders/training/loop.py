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
from crosscoders.training.checkpoints.files import has_checkpoint, latest_checkpoint
from crosscoders.training.faults import harvest_faults, step_faults
from crosscoders.training.preemption import (
    Preempted,
    check_preempted,
    end_preempted,
    interruptible,
    is_at_work,
    uninterruptible,
)

if TYPE_CHECKING:
    from crosscoders.training.trainer import Trainer

Transform = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, kw_only=True)
class _Served:
    """One batch as the stream gave it, its number from 1, and where the stream stood after it."""

    batch: Any
    number: int
    position: Callable[[], dict[str, Any]]


@dataclass(kw_only=True)
class _Lane:
    """One trainer, how many batches it had before this run, and what is done to its batches.

    `position` is where the data stood after the last batch that it trained on in this run.
    """

    trainer: "Trainer"
    name: str
    n_before: int
    transform: Transform | None
    is_alone: bool
    is_evaluation_due: bool
    position: Callable[[], dict[str, Any]] | None = None

    def tokens_left(self) -> int:
        """Rows that it may still take; 0 once a stop is requested."""
        trainer = self.trainer
        return 0 if trainer.stop_reason is not None else trainer._known_total() - trainer.tokens_seen

    def take_turn(self, served: Sequence[_Served], *, has_ended: bool) -> None:
        """Train on these batches; the run ends with the last of them, or where the trainer has enough."""
        if self.is_evaluation_due:
            self.trainer._evaluate()
            self.is_evaluation_due = False
        for item in served:
            if self.tokens_left() <= 0:
                break
            if item.number > self.n_before:  # it had the others before it was resumed
                self._train(item)
                _end_if_preempted(self.trainer)
        if self.trainer.stop_reason is None and (has_ended or self.tokens_left() <= 0):
            is_full = self.tokens_left() <= 0
            self.trainer.request_stop("total_tokens reached" if is_full else "the batches ended")
        if self.trainer.stop_reason is not None:
            if not self.is_alone and is_at_work():
                self.save()  # the others may be ended long after
            self.trainer._finish()

    def keeps_positions(self) -> bool:
        """Whether a checkpoint of it may have to tell where the data stood."""
        is_preemptible = is_at_work() and self.trainer.checkpoint_dir is not None
        return is_preemptible or self.trainer.config.checkpoint_every_steps > 0

    def save(self) -> None:
        """Write a checkpoint as of the last batch trained on, if there was one and there is a folder."""
        if self.position is None or self.trainer.checkpoint_dir is None:
            return
        due = {"is_evaluation_due": True} if self.is_evaluation_due else {}
        self.trainer._checkpoint({**self.position(), **due})

    def _train(self, item: _Served) -> None:
        before = self.trainer.step
        try:
            with step_faults(self.trainer, number=item.number, position=item.position, batch=item.batch):
                self.trainer._step(self._own(item.batch), item.position)
        except Preempted:  # only its evaluation can be left
            self.is_evaluation_due = True
            raise
        finally:
            if self.trainer.step > before:
                self.position = item.position

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
    keep_going: bool = False,
) -> None:
    """Train until every trainer has ended; each goes on from where its own run stands.

    Args:
        trainers: Trainers that share nothing that changes.
        batches: The batches of all of them.
        transforms: One per trainer, None for the batches as they are.
        batches_per_round: Batches that a trainer takes before the next one has its turn.
        keep_going: A trainer that fails in its own turn ends alone and keeps the error as `failure`.
    """
    running, lanes = list(trainers), []
    with uninterruptible():
        try:
            lanes, stream = _open(trainers, batches, transforms=transforms)
            for trainer in trainers:
                trainer._start()
            while lanes := [lane for lane in lanes if lane.trainer in running]:
                served, has_ended = _next_round(stream, lanes, n_batches=batches_per_round)
                for lane in lanes:
                    _take_turn(lane, served, has_ended=has_ended, keep_going=keep_going)
                    if lane.trainer.stop_reason is not None:
                        running.remove(lane.trainer)
        except BaseException as error:
            if isinstance(error, Preempted):
                _save(error, [lane for lane in lanes if lane.trainer in running])
            for trainer in running:
                _tell(trainer, error)
            raise


def _take_turn(lane: _Lane, served: Sequence[_Served], *, has_ended: bool, keep_going: bool) -> None:
    try:
        with _saying_who(lane):
            lane.take_turn(served, has_ended=has_ended)
    except Exception as error:
        if not keep_going or isinstance(error, OSError):  # a full disk is nobody's own
            raise
        _end_alone(lane.trainer, error)


def _save(preempted: Preempted, lanes: Sequence[_Lane]) -> None:
    """Write every trainer's checkpoint, and note the newest ones with the exception."""
    for lane in lanes:
        lane.save()
    folders = [lane.trainer.checkpoint_dir for lane in lanes]
    preempted.checkpoints = tuple(latest_checkpoint(at) for at in folders if at and has_checkpoint(at))


def _end_if_preempted(trainer: "Trainer") -> None:
    """Raise between two steps if the run was asked to end; ranks agreed on it, so that all save one step."""
    if trainer.ranks.are_alone:
        check_preempted()
    elif trainer._is_preempted:
        end_preempted()


def _tell(trainer: "Trainer", error: BaseException) -> None:
    for callback in trainer.callbacks:
        callback.on_exception(trainer, error)


def _end_alone(trainer: "Trainer", error: Exception) -> None:
    """Let the others go on without this one, whose error is kept, but not the tensors of its frames."""
    trainer.failure = error  # before callbacks are told: so they know that it ended alone
    _tell(trainer, error)
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    trainer.request_stop(f"failed: {error}")


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
            is_evaluation_due=position is not None and position.get("is_evaluation_due", False),
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
        batch = _next_batch(stream, is_alone=lanes[0].trainer.ranks.are_alone)
        if batch is None:
            return served, True
        position = stream.position
        if n_batches > 1 or is_at_work():  # the stream runs ahead of the trainer that saves
            is_saving = any(lane.keeps_positions() for lane in lanes)
            position = functools.partial(dict, copy.deepcopy(stream.position()) if is_saving else {})
        if n_batches > 1 and isinstance(batch, Tensor):  # a loader may reuse the memory of a batch
            batch = batch.clone()
        served.append(_Served(batch=batch, number=stream.n_served, position=position))
        tokens_left -= batch.shape[:1].numel() if isinstance(batch, Tensor) else 1
    return served, False


def _next_batch(stream: BatchStream, *, is_alone: bool) -> Any:
    """The next batch; of several ranks none may leave the others in the middle of it."""
    try:
        with harvest_faults(), interruptible(is_alone=is_alone):
            return stream.next_batch()
    except Exception:
        check_preempted()  # a process that makes batches may have got the same signal, and died of it
        raise


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
