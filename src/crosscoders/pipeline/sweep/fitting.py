"""Training the members of a sweep on one pass over the corpus, each from where it stands."""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.buffer import ActivationBuffer
from crosscoders.harvest import ModelSources
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.corpus import Corpus
from crosscoders.pipeline.fit import (
    first_rows,
    new_crosscoder,
    new_trainer,
    tokens_of,
    weights_generator,
)
from crosscoders.pipeline.rows import training_rows
from crosscoders.pipeline.sweep.member import Keeper, Member, Outcome, outcome_of, read_outcome, write_outcome
from crosscoders.pipeline.sweep.progress import SweepBar
from crosscoders.prefetch import PrefetchedBatches
from crosscoders.training import Callback, Trainer, fit_many
from crosscoders.training.checkpoints.files import has_checkpoint
from crosscoders.training.loggers import make_loggers


@typed
def fit_members(
    members: Sequence[Member],
    sources: ModelSources,
    corpus: Corpus,
    config: RunConfig,
    *,
    observers: Callable[[Member], Sequence[Callback]] | None = None,
    say: Callable[[str], object],
) -> list[Outcome]:
    """Train every member that has not ended, on one harvest; one that fails ends alone.

    A member whose record says that it ended is left as it is. The others go on from their newest checkpoint,
    or begin.

    Args:
        members: All of the sweep.
        sources: The models, each with its hook; they are read once.
        corpus: Tokens to train on.
        config: Its data and seed serve the rows.
        observers: Further callbacks of a member.
        say: Told what is about to be trained.

    Returns:
        How far each member came, in order.

    Raises:
        ValueError: A member's folder belongs to other settings, or as for `fit_many`.
        CheckpointError: A checkpoint or the crosscoder of an ended member is damaged.
    """
    known = [read_outcome(member, data_seed=config.seed) for member in members]
    left = [member for member, outcome in zip(members, known) if not outcome.is_final]
    said = f"sweep: {len(left)} of {len(members)} members to train"
    say(said + (f", the other {len(members) - len(left)} ended before." if len(left) < len(members) else "."))
    if not left:
        return known
    first, bar, trainers = first_rows(sources, corpus, config), SweepBar(len(left)), []
    with training_rows(sources, corpus, config, seed=config.seed) as batches:
        for member in left:
            more = [*([] if observers is None else observers(member)), bar.observer()]
            trainers.append(_trainer(member, batches, corpus, rows=first, seed=config.seed, more=more))
            write_outcome(member, Outcome(), data_seed=config.seed)
        bar.open_for(trainers, n_tokens=batches.n_tokens)
        try:
            fit_many(trainers, batches, keep_going=True)
        finally:
            bar.close()
    ended = {member.name: outcome_of(trainer) for member, trainer in zip(left, trainers)}
    return [ended.get(member.name, outcome) for member, outcome in zip(members, known)]


def _trainer(
    member: Member,
    batches: ActivationBuffer | PrefetchedBatches,
    corpus: Corpus,
    *,
    rows: Float[Tensor, "batch width"],
    seed: int,
    more: Sequence[Callback],
) -> Trainer:
    """A member's trainer, at its newest checkpoint if it has one."""
    member.folder.mkdir(parents=True, exist_ok=True)
    generator = weights_generator(member.config.seed)
    checkpoints = member.folder / "checkpoints"
    settings = member.config.to_dict()
    loggers = make_loggers(member.config.system.loggers, member.folder, config=settings)
    trainer = new_trainer(
        new_crosscoder(batches.sources, member.config, rows=rows, generator=generator),
        member.config,
        total_tokens=tokens_of(batches, corpus, member.config),
        callbacks=[*loggers, *more, Keeper(member, data_seed=seed)],
        checkpoint_dir=checkpoints,
    )
    if has_checkpoint(checkpoints):
        trainer.resume(checkpoints)
    return trainer
