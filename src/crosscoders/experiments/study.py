"""What every experiment gets (`Study`) and gives back (`Finding`)."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor

from crosscoders._io import atomic_write_json, atomic_write_text
from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.harvest import ModelSources
from crosscoders.latents import LatentTable
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.corpus import Corpus


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Something that a model is asked to continue.

    Args:
        ids: Its token ids.
        reference: The right answer as text, for a grader; None where there is none.
    """

    ids: tuple[int, ...]
    reference: str | None = None


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a pair brings along besides its text: the bundled pair's grammar knows it, others configure it.

    Args:
        markers: Per category the held-out tokens that open an act of it (the word itself, such as "Wait").
        prompts: Prompts for steering; none of them in the text that chose a latent.
        grade: Whether the text of an answer is right, given the prompt's reference; None without a grader.
        count_categories: Number of acts of each category in the token ids of an answer.
        stop_ids: Ids that end an answer.
        max_new_tokens: Longest answer.
        temperature: Sampling temperature of answers.
        steer_at_tokens: Steer only where one of these ids was read; None steers at every position.
        steer_after: Steer only after this marker, such as "<think>"; None steers from the start.
        roles: Role of each held-out token, an index into `role_names`, or -1; None where unknown.
        role_names: Such as template, prompt, thought, answer.
        word_tasks: Word pairs by task, for the geometry experiment.
        lexicon: File of the phrases per category that the markers were found by; the packaged one if empty.
    """

    markers: Mapping[str, Bool[Tensor, "held_out pos"]]
    prompts: Sequence[Prompt]
    count_categories: Callable[[Sequence[int]], Mapping[str, int]]
    stop_ids: tuple[int, ...]
    grade: Callable[[str, str], bool] | None = None
    max_new_tokens: int = 240
    temperature: float = 1.0
    steer_at_tokens: tuple[int, ...] | None = None
    steer_after: str | None = None
    roles: Int[Tensor, "held_out pos"] | None = None
    role_names: tuple[str, ...] = ()
    word_tasks: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    lexicon: str = ""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A finished run, opened for experiments.

    Args:
        config: The run's configuration.
        crosscoder: Its crosscoder, in evaluation mode.
        sources: Its models, each with its hook.
        corpus: Its text; `corpus.held_out` is what is measured on.
        latents: Its table of latents.
        material: What else the pair brings along.
    """

    config: RunConfig
    crosscoder: Crosscoder
    sources: ModelSources
    corpus: Corpus
    latents: LatentTable
    material: Material

    @property
    def base(self) -> str:
        """Name of the first source."""
        return self.crosscoder.sources[0].name

    @property
    def distilled(self) -> str:
        """Name of the last source."""
        return self.crosscoder.sources[-1].name


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What an experiment found, as it goes into its folder and onto the index page.

    Args:
        name: Folder of the experiment, such as "ablation".
        title: One line.
        claim: What the paper reports, in one sentence; empty where it reports nothing of the kind.
        verdict: Whether that shows here and what the controls say, computed from the figures.
        lines: The figures in plain text.
        figures: File names of figures, without suffix.
        tables: File names of CSV files.
        is_complete: Whether everything was done; False if something outside failed, such as an endpoint, and
            the experiment should be done again.
    """

    name: str
    title: str
    claim: str
    verdict: str
    lines: tuple[str, ...]
    figures: tuple[str, ...]
    tables: tuple[str, ...]
    is_complete: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain form; `from_dict` inverts it."""
        return dataclasses.asdict(self)

    @classmethod
    @typed
    def from_dict(cls, data: Mapping[str, Any]) -> "Finding":
        """Rebuild a finding from `to_dict`.

        Args:
            data: Plain form.
        """
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)

    @typed
    def write(self, folder: Path, *, made_from: Mapping[str, Any]) -> None:
        """Write `summary.txt` and, last, `finding.json`, which marks the experiment as complete.

        Args:
            folder: The experiment's folder.
            made_from: What it was made from, such as its options, JSON-ready.
        """
        said = [f"Paper: {self.claim or 'nothing of the kind.'}", f"Here:  {self.verdict}"]
        atomic_write_text(folder / "summary.txt", "\n".join([self.title, "", *said, "", *self.lines]) + "\n")
        atomic_write_json(folder / "finding.json", {"finding": self.to_dict(), "made_from": dict(made_from)})
