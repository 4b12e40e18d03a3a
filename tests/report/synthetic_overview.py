"""The first page and the page of experiments of a made-up report."""

from collections.abc import Sequence
from typing import Any

import torch

from crosscoders.report.site.columns import Column
from tests.report.hostile_text import HOSTILE

KINDS_OF_TEXT = ("all", "story", "trace")
NULLS = ("retrained pair", "same model twice")


def synthetic_overview(
    g: torch.Generator, columns: Sequence[Column], *, sources: tuple[str, ...], is_hostile: bool
) -> dict[str, Any]:
    """Content of the first page, in the form that the pages' scripts read.

    Args:
        g: Draws the numbers.
        columns: Columns of the table, of which the counts are taken.
        sources: Names of the sources.
        is_hostile: Whether names and sentences hold what must be escaped.
    """
    odd = "".join(HOSTILE[:6]) if is_hostile else ""
    return {
        "title": f"What distillation changed {odd}",
        "library_version": "0.0.0",
        "sources": list(sources),
        "models": [_model(name, odd) for name in sources],
        "settings": [["latents", str(len(columns[0]))], ["activation function", "BatchTopK"], ["note", odd]],
        "paragraph": ["Two latents are specific to one model.", f"A rate below 0.001 is out of reach. {odd}"],
        "screen": _screen(columns),
        "training": _training(g, sources),
        "reconstruction": [_reconstruction(text, sources) for text in KINDS_OF_TEXT],
        "splice": [_splice(text, name) for text in KINDS_OF_TEXT for name in sources],
        "verdicts": _verdicts(columns, sources, odd),
        "alignment": {"cosine": 0.98, "message": f"the models agree on the axes {odd}"},
        "causal": [
            {"text": "trace", "set": "model-specific", "closed": 0.3, "low": 0.2, "high": 0.4, "n_tokens": 9},
            {"text": "trace", "set": "random", "closed": 0.01, "low": None, "high": None, "n_tokens": 9},
        ],
        "is_short": False,
        "why_none": None,
        "latents_of_interest": [{"latent": at, "why": f"highest score {odd}"} for at in (0, 1, 2)],
        "notes": ["Snippets were read on 20,000 tokens.", f"No steering was asked for. {odd}"],
    }  # fmt: skip


def _model(name: str, odd: str) -> dict[str, Any]:
    return {
        "name": name,
        "path": f"models/{name}{odd}",
        "revision": None,
        "d_model": 1536,
        "hook_name": "blocks.14.hook_resid_pre",
    }


def _screen(columns: Sequence[Column]) -> dict[str, int]:
    by_name: dict[str, Any] = {column.name: column.values for column in columns}
    n_fire, nrn = int((by_name["frequency"] > 0).sum()), by_name["nrn_l2"]
    one_sided = int(((nrn < 0.1) | (nrn > 0.9)).sum())
    return {
        "n_fire": n_fire,
        "n_never": len(nrn) - n_fire,
        "n_one_sided": one_sided,
        "n_tokens": 244_092,
    }


def _training(g: torch.Generator, sources: tuple[str, ...]) -> dict[str, Any]:
    steps = torch.arange(1, 201)

    def falling(scale: float) -> list[float]:
        return (scale * (1 + 20 / steps + 0.05 * torch.randn(200, generator=g))).tolist()

    series = [{"name": "loss", "label": "loss", "values": falling(3.0)}]
    for name in sources:
        values = [None if at == 7 else 1 - value for at, value in enumerate(falling(0.02))]
        series.append({"name": f"ev/{name}", "label": f"explained variance, {name}", "values": values})
    return {"step": (steps * 20).tolist(), "series": series}


def _reconstruction(text: str, sources: tuple[str, ...]) -> dict[str, Any]:
    return {
        "text": text,
        "n_tokens": 50_000,
        "l0": 32.1,
        "difference": 0.878,
        "token_means_difference": float("nan"),
        "explained_variance": dict.fromkeys(sources, 0.97),
        "token_means": dict.fromkeys(sources, 0.5),
    }


def _splice(text: str, name: str) -> dict[str, Any]:
    return {"text": text, "source": name, "kl": 0.0033, "ce_recovered": 0.9997, "n_tokens": 50_000}


def _verdicts(columns: Sequence[Column], sources: tuple[str, ...], odd: str) -> dict[str, Any]:
    verdict = next(column for column in columns if column.name == "verdict")
    assert isinstance(verdict.values, torch.Tensor)
    counts = torch.bincount(verdict.values[verdict.values >= 0], minlength=len(verdict.choices)).tolist()
    rates = [
        {"rate": rate, "n_planted": 16, "n_recovered": n, "n_specific": n - 1, "low": 0.5, "high": 0.9}
        for rate, n in ((0.02, 15), (0.005, 12), (0.001, 3))
    ]
    null = {"n_crosscoders": 3, "n_live": 3000, "n_false": 4, "low": 0.0005, "high": 0.003}
    return {
        "counts": [[name, n, f"what {name} means {odd}"] for name, n in zip(verdict.choices, counts)],
        "pair": [sources[0], sources[-1]],
        "survivors": [0, 1],
        "screened": None,
        "nulls": [{"name": f"{name} {odd}", **null} for name in NULLS],
        "others": [],
        "power": {
            "strength": 0.33,
            "typical": 0.05,
            "rates": rates,
            "known_wrong": 1,
            "known_planted": 20,
        },
    }


def synthetic_experiments(*, figures: Sequence[str], is_hostile: bool) -> dict[str, Any]:
    """Content of the page of experiments.

    Args:
        figures: Places of the figures below `figures/`.
        is_hostile: Whether titles and lines hold what must be escaped.
    """
    odd = "".join(HOSTILE[:6]) if is_hostile else ""
    shown = [{"file": f"figures/{name}", "alt": f"Histogram of NRN {odd}"} for name in figures]
    norms = {
        "name": "norms",
        "title": f"Which latents belong to one model {odd}",
        "claim": "A tail of latents belongs to the distilled model.",
        "verdict": f"No latent belongs to one model by this screen. {odd}",
        "lines": ["convention  n_latents   mean", "nrn_l1           1021  0.518", odd],
        "figures": shown,
        "tables": [{"name": "norms.csv"}, {"name": odd or "nrn.csv", "href": "javascript:window.hacked=1"}],
        "made_from": {"options": {"low": 0.1, "note": odd}},
    }
    steering = {**norms, "name": "steering", "title": "Steering by one latent", "figures": [], "tables": []}
    return {"experiments": [norms, steering], "none": None}
