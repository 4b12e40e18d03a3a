"""The figure of a sweep: what it shows, where labels stand, and what it refuses."""

import dataclasses
import re
from itertools import combinations
from pathlib import Path

import pytest

from crosscoders.report.figures.pareto import ParetoPoint, pareto_figure

POINTS = [
    ParetoPoint(l0=16.0, explained_variance=0.70, is_on_front=True, group="n_latents=64", label="k=16"),
    ParetoPoint(l0=17.0, explained_variance=0.60, is_on_front=False, group="n_latents=64", label="k=17"),
    ParetoPoint(l0=100.0, explained_variance=0.90, is_on_front=True, group="n_latents=128", label="k=100"),
]


def texts(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Where each text of the SVG beside a figure stands."""
    found: dict[str, list[tuple[float, float]]] = {}
    svg = path.with_suffix(".svg").read_text(encoding="utf-8")
    for x, y, text in re.findall(r'<text style="[^"]*" x="([-\d.]+)" y="([-\d.]+)"[^>]*>([^<]*)</text>', svg):
        found.setdefault(text, []).append((float(x), float(y)))
    return found


def test_groups_the_front_and_plain_numbers_are_said(tmp_path: Path) -> None:
    pareto_figure({"source base": POINTS, "difference": POINTS}, tmp_path / "a.png", title="A sweep")
    said = texts(tmp_path / "a.png")
    assert {"A sweep", "source base", "difference", "n_latents=64", "n_latents=128"} <= set(said)
    assert len(said["k=16"]) == len(said["k=100"]) == 2  # on the front, in both panels
    assert "k=17" not in said
    assert {"20", "50", "100"} <= set(said)
    low = [dataclasses.replace(point, l0=point.l0 / 12) for point in POINTS]
    pareto_figure({"source base": low}, tmp_path / "b.png")
    assert {"2", "3", "4", "6", "8"} <= set(texts(tmp_path / "b.png"))


def test_equal_figures_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pareto_figure({"source base": POINTS}, tmp_path / f"{name}.png")
    for suffix in (".png", ".svg"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_labels_without_room_are_left_out(tmp_path: Path) -> None:
    crowd = [
        dataclasses.replace(POINTS[0], l0=16 + at / 100, explained_variance=0.7 + at / 1e4, label=f"k={at}")
        for at in range(30)
    ]
    pareto_figure({"source base": [*crowd, POINTS[2]]}, tmp_path / "a.png")
    labels = {text: place for text, place in texts(tmp_path / "a.png").items() if text.startswith("k=")}
    assert "k=100" in labels
    assert 1 < len(labels) < 31
    for (first, [(x, y)]), (second, [(u, v)]) in combinations(labels.items(), 2):
        assert abs(y - v) > 5 or abs(x - u) > 10, (first, second)


def test_too_many_groups_and_none_are_refused(tmp_path: Path) -> None:
    many = [dataclasses.replace(POINTS[0], group=str(at)) for at in range(7)]
    with pytest.raises(ValueError, match="expected 1 to 6 groups of points, got 7"):
        pareto_figure({"source base": many}, tmp_path / "a.png")
    with pytest.raises(ValueError, match="got 0"):
        pareto_figure({}, tmp_path / "a.png")
