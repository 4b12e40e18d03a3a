"""What the latents at both ends of the norm screen go with, beside random latents of the same frequency."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crosscoders._io import atomic_write_text
from crosscoders._typing import typed
from crosscoders.experiments.annotation.endpoint import EndpointWork, endpoint_config
from crosscoders.experiments.annotation.verdict import BY, Counts, annotation_lines, annotation_verdict
from crosscoders.experiments.study import Finding, Study
from crosscoders.reasoning import (
    Annotation,
    BalancedAccuracy,
    CategoryExcess,
    ExtremeLatents,
    Judge,
    LabelAnnotator,
    LexicalAnnotator,
    LexicalJudge,
    LexicalLatentAnnotator,
    RoleMeasures,
    RoleMeter,
    SnippetCollection,
    SnippetCollector,
    SnippetOptions,
    category_excess,
    category_hints,
    detection_score,
    extreme_latents,
    frequency_matched,
    fuzzing_score,
    has_labels,
    label_categories,
    read_latents,
    read_lexicon,
)
from crosscoders.report.figures.annotation import category_counts
from crosscoders.report.tables import aligned, write_csv

CLAIM = (
    "The distilled end of the norm screen holds latents of four reasoning categories; the base end also has "
    "some that fire on such words, read as plain token features."
)
_NRN = ("nrn_l1", "nrn_l2", "nrn_l1_raw", "nrn_l2_raw")
_MIN_SHARE_LEFT = 4  # of the latents that fire, at most one part in four at each end: random ones must remain


@dataclass(frozen=True, kw_only=True)
class AnnotationOptions:
    """What is annotated and how; about 30 s on the bundled pair with the defaults.

    Args:
        n_latents: Latents at each end; at most a quarter of those that fire.
        norm: Norms of the screen, "l1" (the paper) or "l2" (the field), in normalized space.
        n_matches: Random latents of about the same frequency for each, as a control.
        n_top: Most activating snippets shown of each latent.
        n_quantile: Snippets shown from quantiles of its activations.
        n_test: Further snippets of each latent, which score its annotation.
        min_score: Least score of a lexical annotation (`LexicalLatentAnnotator`).
        label_threshold: Least AUROC of an annotation by labels (`LabelAnnotator`).
        lexicon: Path of a lexicon; empty for that of the study's material, which may be the packaged one.
        endpoint: Fields of `EndpointConfig` to let a language model annotate both ends too; empty for none.
            Its answers are kept beside the experiment's folder, in `endpoint_cache`. It names the
            environment variable of a key, never the key: options are recorded.
        max_cost: Do not start asking if that would cost more, at the endpoint's prices; without prices the
            endpoint's `max_calls` is the bound.
        seed: Seed of every random choice.
    """

    n_latents: int = 100
    norm: str = "l1"
    n_matches: int = 8
    n_top: int = 8
    n_quantile: int = 4
    n_test: int = 8
    min_score: float = 0.5
    label_threshold: float = 0.8
    lexicon: str = ""
    endpoint: Mapping[str, Any] = field(default_factory=dict)
    max_cost: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.norm not in ("l1", "l2"):
            raise ValueError(f"AnnotationOptions: norm must be 'l1' or 'l2', got {self.norm!r}.")
        for name in ("n_latents", "n_matches", "n_top", "n_test"):
            if getattr(self, name) < 1:
                raise ValueError(f"AnnotationOptions: {name} must be at least 1, got {getattr(self, name)}.")
        if self.n_quantile < 0:
            raise ValueError(f"AnnotationOptions: n_quantile must not be negative, got {self.n_quantile}.")
        if not self.max_cost >= 0:
            raise ValueError(f"AnnotationOptions: max_cost must not be negative, got {self.max_cost}.")
        if self.endpoint:
            endpoint_config(self.endpoint)  # a mistake is to be found before anything is trained


@typed
def annotation_experiment(study: Study, options: AnnotationOptions, *, folder: Path) -> Finding:
    """Annotate both ends of the norm screen, and random latents of the same frequency beside them.

    A category counts as over-represented at an end if random latents of the same frequency reach its count
    with a probability of at most 2.5% (`category_excess`). What an endpoint does not answer is left out, said
    in the finding, and makes it incomplete; so is everything if asking would take more than `max_cost` or
    `max_calls`.

    Args:
        study: A run of two sources, with a tokenizer.
        options: What is annotated and how.
        folder: Where `annotation.csv`, `categories.csv`, `snippets.jsonl` and the figure go.

    Returns:
        The finding.

    Raises:
        ValueError: Other than two sources, no tokenizer, too few latents that fire, a lexicon that cannot
            be used, or an endpoint whose environment variable holds no key.
    """
    work = _Work(study, options)
    words = LexicalAnnotator(read_lexicon(options.lexicon or study.material.lexicon or None))
    asked = _endpoint_work(options, words, folder)
    collection, roles = work.read()
    lexical = LexicalLatentAnnotator(collection.random, words=words, min_score=options.min_score)
    annotations = {
        "lexical": {
            latent: lexical.annotate(latent, found.shown) for latent, found in collection.latents.items()
        }
    }
    categories, columns = {"lexical": tuple(words.lexicon)}, study.latents.columns
    if has_labels(columns):
        categories["label"] = label_categories(columns)
        labels = LabelAnnotator(columns, categories=categories["label"], threshold=options.label_threshold)
        annotations["label"] = {latent: labels.annotate(latent) for latent in collection.latents}
    counts = {kind: work.counts(found, categories[kind]) for kind, found in annotations.items()}
    judges: dict[str, Judge] = {"lexical": LexicalJudge(words)}
    if asked is not None:
        annotations["llm"] = asked.annotate(collection, work.both_ends.tolist())
        judges["llm"] = asked.judge
    rows = work.rows(annotations, collection, judges, roles)
    write_csv(folder / "annotation.csv", rows)
    write_csv(folder / "categories.csv", _count_rows(counts))
    _write_snippets(folder / "snippets.jsonl", collection, work.both_ends)
    panels = {
        f"{name} end, {BY[kind]}": counts[kind][end] for kind in counts for end, name in work.ends.items()
    }
    category_counts(panels, folder / "annotation.png")
    return Finding(
        name="annotation",
        title="What the latents at both ends of the norm screen go with",
        claim=CLAIM,
        verdict=" ".join([annotation_verdict(counts, work.ends), *(asked.lacks() if asked else ())]),
        lines=(
            *annotation_lines(counts, rows, ends=work.ends),
            *work.role_lines(roles),
            *(asked.lines() if asked else ()),
        ),
        figures=("annotation",),
        tables=("annotation.csv", "categories.csv"),
        is_complete=asked is None or not asked.lacks(),
    )


class _Work:
    """The latents that are looked at, and the one pass over the text that is made for them."""

    def __init__(self, study: Study, options: AnnotationOptions) -> None:
        table, self.study, self.options = study.latents, study, options
        if f"nrn_{options.norm}" not in table.columns:
            raise ValueError(
                "annotation_experiment: the table of latents has no NRN, which is defined for two sources; "
                f"this run has {[source.name for source in study.crosscoder.sources]}."
            )
        if study.sources.tokenizer is None:
            raise ValueError("annotation_experiment: the models came without a tokenizer; snippets need one.")
        generator = torch.Generator().manual_seed(options.seed)
        fired = table["frequency"] > 0
        n = min(options.n_latents, int(fired.sum()) // _MIN_SHARE_LEFT)
        self.chosen: ExtremeLatents = extreme_latents(table[f"nrn_{options.norm}"], fired, n=max(n, 1))
        self.of_end: dict[str, Tensor] = {"top": self.chosen.top, "bottom": self.chosen.bottom}
        self.ends = {"top": study.distilled, "bottom": study.base}
        self.both_ends = torch.cat([self.chosen.top, self.chosen.bottom])
        others = fired.clone()
        others[self.both_ends] = False
        pool = others.nonzero().flatten()
        self.matches: dict[str, Tensor] = {
            end: frequency_matched(
                table["frequency"], latents, pool, generator=generator, n_matches=options.n_matches
            )
            for end, latents in self.of_end.items()
        }

    def read(self) -> tuple[SnippetCollection, RoleMeasures | None]:
        """Snippets of all latents that are looked at, and role measures where roles are known."""
        study, options = self.study, self.options
        tokens, mask = study.corpus.held_out, study.corpus.counted(study.config.data)
        latents = torch.cat([self.both_ends, *(m.flatten() for m in self.matches.values())]).unique()
        snippets = SnippetOptions(
            n_top=options.n_top, n_quantile=options.n_quantile, n_test=options.n_test, seed=options.seed
        )
        n_latents = study.crosscoder.n_latents
        collector = SnippetCollector(n_latents, tokens=tokens, mask=mask, latents=latents, options=snippets)
        meter = None
        if study.material.roles is not None:
            names = study.material.role_names
            meter = RoleMeter(n_latents, roles=study.material.roles, role_names=names)
        at_a_time = study.config.data.sequences_per_harvest
        for rows in read_latents(
            study.crosscoder, study.sources, tokens, mask=mask, rows_at_a_time=at_a_time
        ):
            collector.update(rows)
            if meter is not None:
                meter.update(rows)
        return collector.finish(study.sources.tokenizer), meter.measures() if meter is not None else None

    def counts(
        self, annotations: Mapping[int, Annotation], categories: tuple[str, ...]
    ) -> dict[str, list[CategoryExcess]]:
        """Counts per category at both ends beside those of random latents."""
        category_of = {latent: annotation.category for latent, annotation in annotations.items()}
        return {
            end: category_excess(
                category_of,
                chosen=self.of_end[end],
                controls=self.matches[end].flatten(),
                frequency=self.study.latents["frequency"],
                categories=categories,
            )
            for end in self.ends
        }

    def rows(
        self,
        annotations: Mapping[str, Mapping[int, Annotation]],
        collection: SnippetCollection,
        judges: Mapping[str, Judge],
        roles: RoleMeasures | None,
    ) -> list[dict[str, Any]]:
        """One row per latent of either end."""
        table = self.study.latents
        rows = []
        for end, latents in self.of_end.items():
            for rank, latent in enumerate(latents.tolist(), 1):
                row: dict[str, Any] = {"end": end, "source": self.ends[end], "rank": rank, "latent": latent}
                row |= {name: float(table[name][latent]) for name in (*_NRN, "frequency")}
                for kind, found in annotations.items():
                    row |= self._said(kind, found.get(latent), collection, judges.get(kind), latent)
                if roles is not None:
                    row |= _role_cells(roles, latent)
                rows.append(row)
        return rows

    def role_lines(self, roles: RoleMeasures | None) -> list[str]:
        """Mean share of activation by role at both ends, beside the shares of tokens."""
        if roles is None:
            return []
        share = (roles.n_tokens.double() / roles.n_tokens.sum()).tolist()
        table = [["share of activation", *roles.role_names], ["all tokens", *(f"{s:.3f}" for s in share)]]
        for end, latents in self.of_end.items():
            mean = roles.share[latents].nanmean(dim=0).tolist()
            table.append([f"{self.ends[end]} end", *(f"{s:.3f}" for s in mean)])
        return ["", *aligned(table)]

    def _said(
        self,
        kind: str,
        annotation: Annotation | None,
        collection: SnippetCollection,
        judge: Judge | None,
        latent: int,
    ) -> dict[str, Any]:
        cells: dict[str, Any] = {
            kind: None if annotation is None else annotation.category,
            f"{kind}_score": None if annotation is None else annotation.score,
            f"{kind}_explanation": None if annotation is None else annotation.explanation,
        }
        if judge is None:
            return cells
        scores: dict[str, BalancedAccuracy | None] = {"detection": None, "fuzzing": None}
        is_testable = annotation is not None and (kind == "llm" or annotation.category is not None)
        if annotation is not None and is_testable:
            test = collection.latents[latent].test
            generator = _generator_of(self.options.seed, kind, latent)
            silent = collection.non_activating(latent, n=len(test), generator=generator)
            scores["detection"] = detection_score(
                judge, annotation, activating=test, non_activating=silent, generator=generator
            )
            scores["fuzzing"] = fuzzing_score(judge, annotation, activating=test, generator=generator)
        for name, score in scores.items():
            cells |= _score_cells(f"{kind}_{name}", score)
        return cells


def _endpoint_work(options: AnnotationOptions, words: LexicalAnnotator, folder: Path) -> EndpointWork | None:
    if not options.endpoint:
        return None
    return EndpointWork(
        endpoint_config(options.endpoint),
        categories=category_hints(words.lexicon),
        cache=folder.parent / "endpoint_cache",
        max_cost=options.max_cost,
    )


def _generator_of(seed: int, kind: str, latent: int) -> torch.Generator:
    """One for each latent, so that what is asked about it does not depend on how others fared."""
    digest = hashlib.sha256(f"{seed}/{kind}/{latent}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def _role_cells(roles: RoleMeasures, latent: int) -> dict[str, float]:
    cells = {}
    for at, name in enumerate(roles.role_names):
        cells[f"share/{name}"] = float(roles.share[latent, at])
        cells[f"frequency/{name}"] = float(roles.frequency[latent, at])
        cells[f"mean_activation/{name}"] = float(roles.mean_activation[latent, at])
    return cells


def _score_cells(name: str, score: BalancedAccuracy | None) -> dict[str, Any]:
    if score is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high", f"{name}_n"))
    low, high = score.interval
    n = score.n_true + score.n_false
    return {name: score.value, f"{name}_low": low, f"{name}_high": high, f"{name}_n": n}


def _count_rows(counts: Counts) -> list[dict[str, Any]]:
    return [
        {"annotator": kind, "end": end, **vars(count), "verdict": count.verdict}
        for kind, ends in counts.items()
        for end, found in ends.items()
        for count in found
    ]


def _write_snippets(path: Path, collection: SnippetCollection, latents: Tensor) -> None:
    lines = [
        json.dumps(
            {
                "latent": latent,
                "kind": kind,
                "row": snippet.row,
                "position": snippet.position,
                "activation": snippet.activation,
                "text": snippet.marked(),
                "pieces": snippet.pieces,
                "activations": snippet.activations,
            }
        )
        for latent in latents.tolist()
        for kind in ("top", "quantile", "test")
        for snippet in getattr(collection.latents[latent], kind)
    ]
    atomic_write_text(path, "\n".join(lines) + "\n")
