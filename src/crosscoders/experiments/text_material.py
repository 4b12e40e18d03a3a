"""What a pair of one's own brings to the experiments: prompts, grader, lexicon and word pairs from files."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from crosscoders._io import sha256_file
from crosscoders._typing import typed
from crosscoders.experiments.study import Material, Prompt
from crosscoders.geometry.word_pairs import read_word_tasks
from crosscoders.harvest import ModelSources
from crosscoders.interventions.sweeps.graders import BoxedGrader, Grader, GSM8KGrader
from crosscoders.pipeline.corpus import Corpus
from crosscoders.reasoning.contrasts import lexical_contrasts
from crosscoders.reasoning.lexical import LexicalAnnotator
from crosscoders.reasoning.lexicon import read_lexicon
from crosscoders.reasoning.roles import ROLES, chat_roles

GRADERS: dict[str, type[Grader]] = {"gsm8k": GSM8KGrader, "boxed": BoxedGrader}
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


@dataclass(frozen=True, kw_only=True)
class MaterialConfig:
    """Where the material of a pair lies; everything is optional, and experiments without theirs are skipped.

    Args:
        prompts: `.jsonl` file of {"prompt": ..., "answer": ...}; the answer only for a grader.
        n_prompts: How many of them to use, from the first on.
        grader: "gsm8k" (last number), "boxed" (MATH) or empty.
        chat: Put prompts into the tokenizer's chat template.
        lexicon: TOML file of phrases per category; the packaged one if empty.
        word_pairs: Folder of word-pair files (Todd et al. 2023).
        word_tasks: Names of the files to read; all twelve of the paper if empty.
        max_new_tokens: Longest answer.
        temperature: Sampling temperature of answers.
        steer_after: Marker after which to steer, such as "<think>"; everywhere if empty.
        think: Tokens that open and close a thought, for the roles of tokens; empty for text without roles.

    Raises:
        ValueError: An unknown grader, one `think` token, a negative temperature or a count below 1.
    """

    prompts: str = ""
    n_prompts: int = 100
    grader: str = ""
    chat: bool = False
    lexicon: str = ""
    word_pairs: str = ""
    word_tasks: tuple[str, ...] = ()
    max_new_tokens: int = 1024
    temperature: float = 0.6
    steer_after: str = ""
    think: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.grader and self.grader not in GRADERS:
            raise ValueError(f"MaterialConfig: grader must be one of {sorted(GRADERS)}, got {self.grader!r}.")
        if len(self.think) not in (0, 2):
            raise ValueError(f"MaterialConfig: think must be (opening, closing) or empty, got {self.think}.")
        for name in ("n_prompts", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"MaterialConfig: {name} must be at least 1, got {getattr(self, name)}.")
        if self.temperature < 0:
            raise ValueError(f"MaterialConfig: temperature must not be negative, got {self.temperature}.")

    def check_files(self) -> None:
        """Read every file that is named, so that a mistake in one is found before anything is trained.

        Raises:
            ValueError: A file is not what it should be.
            OSError: A file cannot be read.
        """
        if self.prompts:
            read_prompts(self)
        read_lexicon(self.lexicon or None)
        if self.word_pairs:
            _word_tasks(self)

    @typed
    def fingerprint(self, names: Sequence[str]) -> dict[str, Any]:
        """Some of the settings, with the SHA-256 of what they name on disk, JSON-ready.

        Args:
            names: Names of settings.

        Returns:
            The settings by name.
        """
        found: dict[str, Any] = {name: getattr(self, name) for name in names}
        for name in set(names) & {"prompts", "lexicon", "word_pairs"}:
            path = Path(found[name])
            files = sorted(path.glob("*.json")) if path.is_dir() else [path]
            if found[name]:
                found[f"{name}_sha256"] = {file.name: sha256_file(file) for file in files}
        return found


@typed
def text_material(config: MaterialConfig, *, sources: ModelSources, corpus: Corpus) -> Material:
    """Read what a configuration names, and find the categories' words in the held-out text.

    Args:
        config: Files and settings.
        sources: The models, whose tokenizer reads everything.
        corpus: The text of the run.

    Returns:
        The material; without prompts or word pairs those parts are empty.

    Raises:
        ValueError: The models came without a tokenizer, or a file is not what it should be.
    """
    tokenizer = sources.tokenizer
    if tokenizer is None:
        raise ValueError("text_material: the models came without a tokenizer; pass one to load_sources.")
    annotator = LexicalAnnotator(read_lexicon(config.lexicon or None))
    phrases = {category: entry.phrases for category, entry in annotator.lexicon.items()}
    roles = None
    if config.think:
        roles = chat_roles(corpus.held_out, tokenizer, think=(config.think[0], config.think[1]))
    return Material(
        markers=_markers(corpus.held_out, tokenizer, phrases),
        prompts=_prompts(config, tokenizer) if config.prompts else (),
        count_categories=_Counter(tokenizer, annotator),
        stop_ids=() if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,),
        grade=GRADERS[config.grader]().grade if config.grader else None,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        steer_after=config.steer_after or None,
        roles=roles,
        role_names=() if roles is None else ROLES,
        word_tasks=_word_tasks(config) if config.word_pairs else {},
        lexicon=config.lexicon,
    )


def _word_tasks(config: MaterialConfig) -> dict[str, Sequence[tuple[str, str]]]:
    chosen = {"tasks": config.word_tasks} if config.word_tasks else {}
    return {task.name: task.pairs for task in read_word_tasks(Path(config.word_pairs), **chosen)}


def _markers(
    tokens: Tensor, tokenizer: Any, phrases: Mapping[str, tuple[str, ...]]
) -> dict[str, Bool[Tensor, "held_out pos"]]:
    answers = lexical_contrasts(tokens, tokenizer, lexicon=phrases)
    return {category: answers[f"marker/{category}"] == 1 for category in phrases}


def _prompts(config: MaterialConfig, tokenizer: Any) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(ids=_prompt_ids(record["prompt"], tokenizer, chat=config.chat), reference=record["answer"])
        for record in read_prompts(config)
    )


@typed
def read_prompts(config: MaterialConfig) -> list[dict[str, Any]]:
    """Records of the prompts file, checked, with a reference that the grader understands.

    Args:
        config: Names the file, the grader and how many prompts to read.

    Returns:
        One {"prompt": text, "answer": text or None} per prompt.

    Raises:
        ValueError: A line is none of these, a prompt is empty, or an answer is none that the grader can
            compare with; the message names file and line.
        OSError: The file cannot be read.
    """
    grader = GRADERS[config.grader]() if config.grader else None
    found = []
    for number, line in enumerate(Path(config.prompts).read_text(encoding="utf-8").split("\n"), 1):
        if len(found) == config.n_prompts:
            break
        if not line.strip():
            continue
        where = f"{config.prompts}, line {number}"
        try:
            record = json.loads(line)
            prompt, reference = record["prompt"], record.get("answer")
        except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as err:
            raise ValueError(
                f'{where}: expected {{"prompt": ..., "answer": ...}}, got {line[:80]!r}.'
            ) from err
        if isinstance(reference, int | float) and not isinstance(reference, bool):
            reference = str(reference)
        if not isinstance(prompt, str) or not prompt.strip() or not isinstance(reference, str | None):
            raise ValueError(f"{where}: prompt must be text and answer text or a number, got {line[:80]!r}.")
        if grader is not None:
            if reference is None:
                raise ValueError(f"{where}: has no answer, which grader {config.grader!r} needs.")
            try:
                grader.grade("", reference)
            except ValueError as err:
                raise ValueError(f"{where}: {err}") from err
        found.append({"prompt": prompt, "answer": reference})
    if not found:
        raise ValueError(f"{config.prompts}: holds no prompts.")
    return found


def _prompt_ids(text: str, tokenizer: Any, *, chat: bool) -> tuple[int, ...]:
    if not chat:
        return tuple(tokenizer(text)["input_ids"])
    message = [{"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    return tuple(tokenizer(rendered, add_special_tokens=False)["input_ids"])


class _Counter:
    """Sentences of each category in an answer."""

    def __init__(self, tokenizer: Any, annotator: LexicalAnnotator) -> None:
        self._tokenizer, self._annotator = tokenizer, annotator

    def __call__(self, ids: Sequence[int]) -> dict[str, int]:
        found: Counter[str] = Counter()
        for sentence in _SENTENCE.split(self._tokenizer.decode(list(ids))):
            found.update(self._annotator.categories(sentence))
        return {category: found[category] for category in self._annotator.lexicon}
