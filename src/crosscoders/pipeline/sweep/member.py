"""One member of a sweep: its configuration, its folder, and the record that says how far it came."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from crosscoders._io import atomic_write_json
from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.errors import CheckpointError
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.sweep.axes import trainable_fields
from crosscoders.training import Callback, Trainer

TRAINING, FINISHED, STOPPED, INTERRUPTED = "training", "finished", "stopped", "interrupted"
# What says that a run cannot go on, such as a gradient that is not finite. Anything else (memory that ran
# out, a mistake in a callback) may be mended, so such a member is tried again when the sweep is resumed.
_ITS_OWN = (ValueError, RuntimeError, ArithmeticError)
_RECORD = "member.json"


@final
@dataclass(frozen=True, kw_only=True)
class Member:
    """One crosscoder of a sweep.

    Args:
        name: Its folder below `members/`.
        values: JSON-ready value of each axis.
        config: What it is trained with; `out` is its folder.
    """

    name: str
    values: Mapping[str, Any]
    config: RunConfig

    @property
    def folder(self) -> Path:
        """Where its crosscoder, checkpoints and history lie."""
        return Path(self.config.out)


@final
@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How far a member came.

    Args:
        state: "training" while nothing is known, "finished", "stopped" by an error of its own, or
            "interrupted" by one that may be mended, such as memory that ran out.
        steps: Updates done.
        tokens_seen: Rows that it was trained on.
        reason: Why it did not finish; empty if it did.
    """

    state: str = TRAINING
    steps: int = 0
    tokens_seen: int = 0
    reason: str = ""

    @property
    def is_final(self) -> bool:
        """Whether training it again would end the same way."""
        return self.state in (FINISHED, STOPPED)


@typed
def write_outcome(member: Member, outcome: Outcome, *, data_seed: int) -> None:
    """Write a member's record into its folder.

    Args:
        member: Whose.
        outcome: How far it came.
        data_seed: Seed of the order of the rows, which all members share.

    Raises:
        OSError: Writing failed; the old record stands.
    """
    member.folder.mkdir(parents=True, exist_ok=True)
    record = {
        "format": "crosscoders-sweep-member",
        "format_version": 1,
        "name": member.name,
        "values": dict(member.values),
        "data_seed": data_seed,
        **vars(outcome),
        "config": member.config.to_dict(),
    }
    atomic_write_json(member.folder / _RECORD, record)


@typed
def read_outcome(member: Member, *, data_seed: int) -> Outcome:
    """How far a member came in an earlier run of the sweep; nowhere if it has no record.

    Args:
        member: Whose.
        data_seed: Seed of the order of the rows.

    Raises:
        ValueError: The folder is that of a member with other settings, or its record cannot be read.
    """
    path = member.folder / _RECORD
    if not path.exists():
        return Outcome()
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        saved = _identity(record["config"], member.config, data_seed=record["data_seed"])
        outcome = Outcome(**{name: record[name] for name in ("state", "steps", "tokens_seen", "reason")})
    except (ValueError, KeyError, TypeError) as err:
        raise ValueError(
            f"{path}: cannot be read as the record of a member ({err!r}); remove the folder, and the member "
            "is trained anew."
        ) from err
    here = _identity(json.loads(json.dumps(member.config.to_dict())), member.config, data_seed=data_seed)
    different = sorted(key for key in here if saved.get(key) != here[key])
    if different:
        shown = "; ".join(f"{key}: saved {saved.get(key)!r}, here {here[key]!r}" for key in different)
        raise ValueError(
            f"sweep: member {member.name!r} in {member.folder} was trained with other settings ({shown}); "
            "resume with the saved ones, or choose another out folder."
        )
    return outcome


def _identity(plain: Mapping[str, Any], config: RunConfig, *, data_seed: int) -> dict[str, Any]:
    """Every setting on which the weights depend, by its name with dots; `plain` is a config as a dict."""
    flat: dict[str, Any] = {"data_seed": data_seed}
    for key, value in plain.items():
        if key in ("data", "training", "system"):
            flat |= {f"{key}.{name}": each for name, each in value.items()}
        else:
            flat[key] = value
    free = {f"training.{name}" for name in plain["training"]}
    free -= {f"training.{name}" for name in (*trainable_fields(config), "backend")}
    free |= {name for name in flat if name.startswith("system.") and name != "system.rows_dtype"}
    return {key: value for key, value in flat.items() if key not in free | {"out"}}


@typed
def outcome_of(trainer: Trainer) -> Outcome:
    """How far a trainer came whose run has ended.

    Args:
        trainer: After `fit_many`.
    """
    failure = trainer.failure
    steps, tokens_seen = trainer.step, trainer.tokens_seen
    if failure is None:
        return Outcome(state=FINISHED, steps=steps, tokens_seen=tokens_seen)
    reason = " ".join(str(failure).split())
    if trainer.checkpoint_dir is not None:
        reason = reason.replace(f"{trainer.checkpoint_dir.parent}{os.sep}", "")  # the folder may be moved
    state = STOPPED
    if not isinstance(failure, _ITS_OWN) or isinstance(failure, torch.OutOfMemoryError):
        state, reason = INTERRUPTED, f"{type(failure).__name__}: {reason}"
    reason = reason or type(failure).__name__
    return Outcome(state=state, steps=steps, tokens_seen=tokens_seen, reason=reason)


@typed
def read_member_crosscoder(member: Member) -> Crosscoder:
    """The trained crosscoder of a finished member, on its device and in evaluation mode.

    Args:
        member: Whose.

    Raises:
        CheckpointError: Its files were changed.
    """
    try:
        crosscoder = Crosscoder.from_pretrained(member.folder / "crosscoder")
    except CheckpointError as err:
        advice = f"Remove {member.folder} and resume the sweep to train this member again."
        raise CheckpointError(f"{err} {advice}") from err
    return crosscoder.to(member.config.device).eval()


@final
class Keeper(Callback):
    """Saves a member the moment it ends, so that a crash later costs it nothing.

    Args:
        member: Whose.
        data_seed: Seed of the order of the rows.
    """

    def __init__(self, member: Member, *, data_seed: int) -> None:
        self._member, self._data_seed = member, data_seed

    def on_fit_end(self, trainer: Trainer) -> None:
        """Save the crosscoder, then record that it is there."""
        folder = self._member.folder / "crosscoder"
        trainer.crosscoder.save_pretrained(folder, training_summary=trainer.summary())
        write_outcome(self._member, outcome_of(trainer), data_seed=self._data_seed)

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Record why it ended, if it ended alone."""
        if trainer.failure is error:
            write_outcome(self._member, outcome_of(trainer), data_seed=self._data_seed)
