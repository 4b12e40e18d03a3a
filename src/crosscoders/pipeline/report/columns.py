"""The columns of the latent browser, from a run's table and its verification."""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.diffing.verdicts import VERDICTS, Verdicts
from crosscoders.latents import LatentTable
from crosscoders.pipeline.report.categories import LEAST_AUROC, best_category, category_scores
from crosscoders.reasoning import CATEGORIES
from crosscoders.report.site.columns import Column

_ASKED = {
    "onset": "on the question whether the act starts at the next token",
    "function": "on the questions whether a marker word is the act, mean over its words",
}
_FIRES_ON = "The tokens at its strongest places, the most common first."
_ANNOTATION = "What an annotator says of it: a file of yours, or an annotation experiment."
# name: (label, help, group, shown before the reader chooses)
_MEASURED: Mapping[str, tuple[str, str, str, bool]] = {
    "nrn_l2": (
        "NRN",
        "Second source's share of the two decoder norms (L2, normalized space): 0 = first only, 1 = second "
        "only. A screen: it does not make a latent one model's.",
        "decoder",
        True,
    ),
    "decoder_cosine": ("cosine", "Cosine between its decoder vectors in the two sources.", "decoder", True),
    "frequency": ("frequency", "Share of held-out tokens on which it fires.", "firing", True),
    "mean_activation": (
        "mean activation",
        "Mean activation where it fires.",
        "firing",
        False,
    ),
    "max_activation": ("max activation", "Largest activation on the held-out tokens.", "firing", False),
}
_EVIDENCE: Mapping[str, tuple[str, str, str, bool]] = {
    "nu_error": (
        "nu (error)",
        "Latent scaling on the error: how far the other source carries it after all. Near 0: it does not; "
        "near 1: its decoder there was only shrunk away.",
        "verification",
        False,
    ),
    "nu_reconstruction": (
        "nu (reconstruction)",
        "Latent scaling on the reconstruction: how far other latents write it in the other source.",
        "verification",
        False,
    ),
    "ratio": (
        "rho",
        "Squared strength of the weaker source over that of the stronger one when it fires, noise taken off; "
        "near 0: one source alone writes it.",
        "verification",
        True,
    ),
    "kappa": (
        "kappa",
        "Cosine between the directions that the two sources write when it fires, noise taken off.",
        "verification",
        False,
    ),
    "stability": (
        "stability",
        "Correlation of its activation with that of its best match in crosscoders of other seeds, mean over "
        "these.",
        "verification",
        True,
    ),
}


@typed
def browser_columns(
    latents: LatentTable,
    *,
    verdicts: Verdicts | None = None,
    fires_on: Sequence[str] | None = None,
    annotations: Sequence[str] = (),
) -> tuple[Column, ...]:
    """The columns that a run has, `latent` first; one that says nothing of any latent is not shown at first.

    Args:
        latents: The run's table.
        verdicts: Its verification, if there is one; without evidence it adds nothing.
        fires_on: Each latent's marked tokens, with `SEPARATOR` in between; None without snippets.
        annotations: Annotation of each latent; left out if all are empty.
    """
    number = Column(
        name="latent",
        label="latent",
        help="Its number in the crosscoder.",
        kind="integer",
        values=latents["latent"],
        is_shown=True,
    )
    evidence = None if verdicts is None else verdicts.evidence
    judged = [] if verdicts is None or evidence is None else [_verdict(verdicts)]
    norms = {
        name: (f"norm, {name.partition('/')[2]}", "Norm of its decoder vector in this source (L2, normalized "
        "space).", "decoder", False)
        for name in latents.columns
        if name.startswith("norm_l2/")
    }  # fmt: skip
    texts = [] if fires_on is None else [_text("fires_on", fires_on, label="fires on", meaning=_FIRES_ON)]
    if any(annotations):
        texts.append(_text("annotation", annotations, label="annotation", meaning=_ANNOTATION))
    columns = (
        number,
        *judged,
        *_categories(latents),
        *texts,
        *_numbers(latents.columns, _MEASURED),
        *_numbers(latents.columns, norms),
        *([] if evidence is None else _numbers(evidence.columns, _EVIDENCE)),
    )
    return tuple(dataclasses.replace(one, is_shown=one.is_shown and _says_something(one)) for one in columns)


def _says_something(column: Column) -> bool:
    """Whether any latent has an entry."""
    if not isinstance(column.values, Tensor):
        return any(column.values)
    known = column.values >= 0 if column.kind == "choice" else ~column.values.isnan()
    return bool(known.any())


def _numbers(columns: Mapping[str, Tensor], said: Mapping[str, tuple[str, str, str, bool]]) -> list[Column]:
    """Those of the described columns that are there."""
    return [
        Column(
            name=name,
            label=label,
            help=text,
            kind="number",
            values=columns[name].double(),
            group=group,
            is_shown=is_shown,
        )
        for name, (label, text, group, is_shown) in said.items()
        if name in columns
    ]


def _verdict(verdicts: Verdicts) -> Column:
    return Column(
        name="verdict",
        label="verdict",
        help="What the verification says of it; its page has the evidence.",
        kind="choice",
        values=torch.tensor([VERDICTS.index(found.verdict) for found in verdicts.judgements]),
        choices=VERDICTS,
        group="verification",
        is_shown=True,
    )


def _categories(latents: LatentTable) -> list[Column]:
    found = category_scores(latents)
    if found is None:
        return []
    (scores, kind), asked = found, _ASKED[found[1]]
    category, score = best_category(scores)
    return [
        Column(
            name="category",
            label="category",
            help=f"Reasoning category that it tells best, {asked}; none where its AUROC is below "
            f"{LEAST_AUROC:g}. Best of {len(CATEGORIES)} on the text it is measured on, so optimistic.",
            kind="choice",
            values=category,
            choices=CATEGORIES,
            group="category",
            is_shown=True,
        ),
        Column(
            name="category_score",
            label="AUROC",
            help=f"AUROC of its activation {asked}, for its category ({kind}); undefined where it has none.",
            kind="number",
            values=torch.where(category >= 0, score, torch.nan),
            group="category",
            is_shown=True,
        ),
    ]


def _text(name: str, values: Sequence[str], *, label: str, meaning: str) -> Column:
    return Column(
        name=name, label=label, help=meaning, kind="text", values=list(values), group="text", is_shown=True
    )
