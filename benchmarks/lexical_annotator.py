"""How well do words tell reasoning categories? The lexical annotator against tagged R1 traces.

The traces are 20 of DeepSeek-R1-Distill-Qwen-14B, two per problem, each sentence with one function tag
(thought-anchors.com). Problems in the order of their numbers: every second one, from the first on, tuned the
packaged lexicon, the others only report; both traces of a problem are in one half. A sentence counts as
self-reflection if its tag is self_checking or uncertainty_management, as deductive if it is
active_computation or result_consolidation.

    python benchmarks/lexical_annotator.py --data DIR [--lexicon my_lexicon.toml]

DIR holds correct_base_solution/problem_N/chunks_labeled.json and incorrect_base_solution/... .
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from crosscoders.reasoning.lexical import LexicalAnnotator
from crosscoders.reasoning.lexicon import CategoryWords, read_lexicon

TAGS: dict[str, frozenset[str]] = {
    "self-reflection": frozenset({"self_checking", "uncertainty_management"}),
    "deductive": frozenset({"active_computation", "result_consolidation"}),
}


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A tagged sentence of a trace."""

    problem: int
    text: str
    tags: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Counts of one category over some sentences."""

    n: int
    n_tagged: int
    n_found: int
    n_both: int

    @property
    def precision(self) -> float:
        """Share of the found sentences that carry a tag of the category."""
        return self.n_both / self.n_found if self.n_found else float("nan")

    @property
    def recall(self) -> float:
        """Share of the tagged sentences that are found."""
        return self.n_both / self.n_tagged if self.n_tagged else float("nan")

    @property
    def f1(self) -> float:
        """Harmonic mean of both: 2 tp / (found + tagged)."""
        return 2 * self.n_both / (self.n_found + self.n_tagged)

    @property
    def base_rate(self) -> float:
        """Share of tagged sentences, which is the precision of naming every sentence."""
        return self.n_tagged / self.n


def read_sentences(folder: Path) -> list[Sentence]:
    """Every tagged sentence of every trace below a folder."""
    files = sorted(folder.glob("*_base_solution/problem_*/chunks_labeled.json"))
    if not files:
        raise ValueError(f"lexical_annotator: no */problem_*/chunks_labeled.json below {folder}.")
    return [
        Sentence(
            problem=int(file.parent.name.removeprefix("problem_")),
            text=chunk["chunk"],
            tags=frozenset(chunk["function_tags"]),
        )
        for file in files
        for chunk in json.loads(file.read_text(encoding="utf-8"))
    ]


def halves(sentences: list[Sentence]) -> dict[str, list[Sentence]]:
    """The tuning and the reporting half: every second problem in the order of their numbers."""
    numbers = sorted({sentence.problem for sentence in sentences})
    parts = {"tuning": set(numbers[0::2]), "reporting": set(numbers[1::2])}
    return {name: [s for s in sentences if s.problem in chosen] for name, chosen in parts.items()}


def agreement(annotator: LexicalAnnotator, sentences: list[Sentence], category: str) -> Agreement:
    """How the annotator's category agrees with the tags."""
    found = [category in annotator.categories(sentence.text) for sentence in sentences]
    tagged = [bool(sentence.tags & TAGS[category]) for sentence in sentences]
    return Agreement(
        n=len(sentences),
        n_tagged=sum(tagged),
        n_found=sum(found),
        n_both=sum(f and t for f, t in zip(found, tagged)),
    )


def phrases_only(lexicon: dict[str, CategoryWords]) -> dict[str, CategoryWords]:
    """The same lexicon without patterns, for comparison."""
    return {name: CategoryWords(phrases=words.phrases) for name, words in lexicon.items()}


def report(folder: Path, lexicon: dict[str, CategoryWords]) -> list[str]:
    """One line per half, category and kind of lexicon."""
    annotators = {
        "whole": LexicalAnnotator(lexicon),
        "phrases only": LexicalAnnotator(phrases_only(lexicon)),
    }
    lines = [
        f"{'half':<10} {'category':<16} {'lexicon':<13} {'precision':>9} {'recall':>7} {'F1':>6} "
        f"{'base rate':>9} {'found':>6} {'tagged':>6} {'of':>5}"
    ]
    for half, sentences in halves(read_sentences(folder)).items():
        for category in TAGS:
            for name, annotator in annotators.items():
                a = agreement(annotator, sentences, category)
                lines.append(
                    f"{half:<10} {category:<16} {name:<13} {a.precision:>9.3f} {a.recall:>7.3f} {a.f1:>6.3f} "
                    f"{a.base_rate:>9.3f} {a.n_found:>6} {a.n_tagged:>6} {a.n:>5}"
                )
    return lines


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Lexical annotator against tagged R1 traces.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the tagged traces")
    parser.add_argument("--lexicon", type=Path, help="lexicon to measure (default: the packaged one)")
    arguments = parser.parse_args()
    print("\n".join(report(arguments.data, read_lexicon(arguments.lexicon))))


if __name__ == "__main__":
    main()
