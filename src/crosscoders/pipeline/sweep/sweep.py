"""`Sweep`: many crosscoders on one harvest, from a configuration to a table and a figure."""

import dataclasses
import json
import logging
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from crosscoders._io import atomic_write_json
from crosscoders._typing import typed
from crosscoders.harvest import ModelSources
from crosscoders.models.context import context_warning
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.corpus import Corpus
from crosscoders.pipeline.pair import load_pair, pair_corpus
from crosscoders.pipeline.sweep.axes import check_axis, plain_value
from crosscoders.pipeline.sweep.fitting import fit_members
from crosscoders.pipeline.sweep.measuring import measure_members
from crosscoders.pipeline.sweep.member import FINISHED, Member, read_member_crosscoder
from crosscoders.pipeline.sweep.reading import NO_AXIS, combined_values, common_config, flat_axes, members_of
from crosscoders.pipeline.sweep.result import MemberResult, SweepResult, write_result
from crosscoders.provenance import data_fingerprint, run_record
from crosscoders.row_stream import excluded_ids
from crosscoders.training import Callback
from crosscoders.training.preemption import check_preempted

log = logging.getLogger(__name__)
COMBINATIONS = ("product", "zip")
_ATTENTION_TOKENS = 256  # on which fast attention is compared with eager attention


@final
class Sweep:
    """Many crosscoders that differ in some settings, trained on one harvest of the same text.

    Every member ends up as if it had been trained alone, to the last bit, for the price of one harvest. Axes
    are settings of the crosscoder and its training: `n_latents`, `seed`, `activation_fn`, `objective`, and
    parts of them such as `activation_fn.k`, `objective.auxk.weight` and `training.lr`. Models, hook, text and
    batches are the same for all; so is the order of the rows, which the configuration's own seed draws: an
    axis `seed` changes the first weights.

    Args:
        config: What the members have in common; its `out` is the sweep's folder.
        axes: The values of each setting that varies.
        combine: "product" for every combination, "zip" for the first values together, the second, and so on.

    Raises:
        ValueError: An axis on which the harvest would depend, one without values, members that are equal, or
            a member whose configuration cannot be.

    Example:
        >>> from crosscoders.activation_fns import BatchTopK
        >>> from crosscoders.pipeline import RunConfig
        >>> from crosscoders.pipeline.sweep import Sweep
        >>> config = RunConfig(
        ...     base="a", distilled="b", text="text.jsonl", out="runs/sweep", n_latents=512,
        ...     activation_fn=BatchTopK(k=32),
        ... )
        >>> sweep = Sweep(config, {"activation_fn.k": [16, 32], "training.lr": [1e-3, 1e-4]})
        >>> [member.name for member in sweep.members]
        ['k=16,lr=0.001', 'k=16,lr=0.0001', 'k=32,lr=0.001', 'k=32,lr=0.0001']
    """

    @typed
    def __init__(
        self, config: RunConfig, axes: Mapping[str, Sequence[Any]], *, combine: str = "product"
    ) -> None:
        if combine not in COMBINATIONS:
            raise ValueError(f"[sweep]: combine must be one of {COMBINATIONS}, got {combine!r}.")
        if config.system.latent_shards > 1:
            raise ValueError(
                f"sweep: system.latent_shards={config.system.latent_shards} would split each member; a sweep "
                "trains each whole, so set it to 1, or train such a crosscoder alone."
            )
        for axis, values in axes.items():
            check_axis(axis, config)
            if isinstance(values, str) or len(values) == 0:
                raise ValueError(f"[sweep]: {axis} must be a list of values, got {values!r}.")
        self.config = config
        self.axes = {axis: tuple(values) for axis, values in axes.items()}
        self.combine = combine
        self.members = members_of(config, combined_values(self.axes, combine))

    @classmethod
    @typed
    def from_dict(cls, data: Mapping[str, Any]) -> "Sweep":
        """Build a sweep from plain values: those of a run, and a table `sweep` with its axes.

        Args:
            data: As for `RunConfig.from_dict`; in `sweep`, one list per axis, and `combine`. What is an axis
                may be left out elsewhere.

        Raises:
            ValueError: No axes, or as for `RunConfig.from_dict` and `Sweep`.
        """
        section = data.get("sweep")
        if not isinstance(section, Mapping) or not set(section) - {"combine"}:
            raise ValueError(NO_AXIS)
        combine = section.get("combine", "product")
        axes = flat_axes({key: value for key, value in section.items() if key != "combine"})
        given = {key: value for key, value in data.items() if key != "sweep"}
        return cls(common_config(given, axes), axes, combine=combine)

    @classmethod
    @typed
    def from_toml(cls, path: str | Path, *, out: str | Path | None = None) -> "Sweep":
        """Read a TOML file: that of a run with a table [sweep].

        Args:
            path: The file.
            out: Folder in place of the one in the file.

        Raises:
            ValueError: Not TOML, or as for `from_dict`; the message names the file.
        """
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
            return cls.from_dict(data if out is None else {**data, "out": str(out)})
        except (tomllib.TOMLDecodeError, ValueError, TypeError) as err:
            raise ValueError(f"{path}: {err}") from err

    @typed
    def run(
        self,
        *,
        base: Any = None,
        distilled: Any = None,
        tokenizer: Any = None,
        resume: bool = False,
        say: Callable[[str], object] | None = None,
    ) -> SweepResult:
        """Load both models up to the hook, tokenize the text, then `run_on`.

        Args:
            base: A module to use in place of the folder or Hub id in the config.
            distilled: Likewise.
            tokenizer: Needed if modules come without one.
            resume: Go on with an interrupted sweep in the same folder.
            say: Told what happens.

        Returns:
            As for `run_on`.

        Raises:
            ValueError: As for `run_on`.
            FileExistsError: As for `run_on`.
        """
        _check_folder(Path(self.config.out), resume=resume)
        sources = load_pair(self.config, base=base, distilled=distilled, tokenizer=tokenizer, truncate=True)
        context_warning(sources.models, self.config.data.sequence_length)
        corpus = pair_corpus(self.config, sources)
        errors = sources.check_attention(corpus.train[:1, :_ATTENTION_TOKENS])
        log.info("attention: relative difference to eager %s", {n: f"{e:.1e}" for n, e in errors.items()})
        return self.run_on(sources, corpus, resume=resume, say=say)

    @typed
    def run_on(
        self,
        sources: ModelSources,
        corpus: Corpus,
        *,
        resume: bool = False,
        observers: Callable[[Member], Sequence[Callback]] | None = None,
        say: Callable[[str], object] | None = None,
    ) -> SweepResult:
        """Train all members on one harvest, measure them in one pass, and write the folder.

        A member that fails stops alone, and its row says why. Resuming trains none again that has ended; the
        others go on from their checkpoints, and axes may have new values.

        Args:
            sources: The models, each with its hook.
            corpus: Tokens to train and to measure on.
            resume: Go on with an interrupted sweep in the same folder; without one there, begin.
            observers: Further callbacks of a member, such as loggers.
            say: Told what happens.

        Returns:
            The result; its folder holds `sweep.json`, `sweep.csv`, `summary.txt`, `figures/pareto.png`,
            `members/NAME/` with `member.json`, `crosscoder/`, `training.csv` and `checkpoints/`, and
            `manifest.json`.

        Raises:
            ValueError: The folder's sweep has other text or a member with other settings.
            FileExistsError: The folder holds something, and `resume` is not set or it is no sweep.
        """
        say = say or (lambda text: None)
        never = excluded_ids(sources, corpus.exclude_token_ids)
        corpus, out = dataclasses.replace(corpus, exclude_token_ids=never), Path(self.config.out)
        _check_folder(out, resume=resume)
        record = self._record(corpus)
        _check_same_text(out, record["data"])
        out.mkdir(parents=True, exist_ok=True)
        (out / "manifest.json").unlink(missing_ok=True)  # what lies here is no finished sweep from now on
        atomic_write_json(out / "sweep.json", record)
        outcomes = fit_members(self.members, sources, corpus, self.config, observers=observers, say=say)
        check_preempted()  # whatever happens from here on, nothing need be trained again
        ended = [m for m, outcome in zip(self.members, outcomes) if outcome.state == FINISHED]
        say(f"sweep: measuring {len(ended)} members on the held-out text.")
        crosscoders = {member.name: read_member_crosscoder(member) for member in ended}
        scores = measure_members(crosscoders, sources, corpus, self.config)
        results = []
        for member, outcome in zip(self.members, outcomes):
            found = scores.get(member.name)
            if isinstance(found, str):
                outcome, found = dataclasses.replace(outcome, reason=found), None
            results.append(MemberResult(member=member, outcome=outcome, scores=found))
        names = tuple(source.name for source in sources.sources)
        result = SweepResult(out=out, axes=tuple(self.axes), sources=names, members=tuple(results))
        write_result(result, record)
        return result

    def _record(self, corpus: Corpus) -> dict[str, Any]:
        data = {
            "train_sha256": data_fingerprint(corpus.train),
            "held_out_sha256": data_fingerprint(corpus.held_out),
            "train_shape": list(corpus.train.shape),
            "held_out_shape": list(corpus.held_out.shape),
            "origins": list(corpus.origins),
            "exclude_token_ids": list(corpus.exclude_token_ids),
        }
        record = run_record(config=self.config.to_dict(), seed=self.config.seed, data=data)
        axes = {axis: [plain_value(value) for value in values] for axis, values in self.axes.items()}
        return {**record, "format": "crosscoders-sweep", "axes": axes, "combine": self.combine}


def _check_folder(out: Path, *, resume: bool) -> None:
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / "sweep.json").exists():
        raise FileExistsError(f"{out} is neither empty nor the folder of a sweep; choose another out folder.")
    if not resume:
        raise FileExistsError(
            f"{out} already holds a sweep; go on with it by --resume (resume=True), or choose another folder."
        )


def _check_same_text(out: Path, data: Mapping[str, Any]) -> None:
    """Members of one table read the same text."""
    path = out / "sweep.json"
    if not path.exists():
        return
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))["data"]
    except (ValueError, KeyError, TypeError) as err:
        raise ValueError(f"{path}: cannot be read ({err!r}); choose another out folder.") from err
    different = sorted(key for key in data if saved.get(key) != data[key])
    if different:
        raise ValueError(
            f"sweep: the text differs from that of the sweep in {out} ({different}); resume with the same "
            "text and tokenizer, or choose another out folder."
        )
