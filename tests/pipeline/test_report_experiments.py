"""Every readable finding is shown with its figures, and nothing leads out of its folder."""

import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from crosscoders.pipeline.report.experiments import experiments_of

FINDING = {
    "name": "norms",
    "title": "Decoder norms",
    "claim": "A tail.",
    "verdict": "No tail.",
    "lines": ["a  b", "1  2"],
    "figures": ["nrn"],
    "tables": ["norms.csv"],
    "is_complete": True,
}


def write_finding(folder: Path, *, made_from: Any = None, **changes: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"finding": {**FINDING, **changes}, "made_from": made_from or {"options": {}}}
    (folder / "finding.json").write_text(json.dumps(content))
    (folder / "nrn.png").write_bytes(b"png")


def write_steering(folder: Path) -> None:
    """Strength s of the latent gives 1 + s reflections, of a control always 1."""

    def points(slope: float) -> list[dict[str, Any]]:
        figures = {"n_answers": 200, "accuracy": 0.5, "tokens_per_answer": 20.0, "finished": 1.0}
        return [
            {"strength": s, "reflections_per_answer": 1 + slope * s, "regime": "changed", **figures}
            for s in (-0.6, 0.0, 0.6)
        ]

    sweep = {"latent 856": points(1.0), "random direction": points(0.0), "unembedding of 'Wait'": points(0.5)}
    (folder / "steering.json").write_text(json.dumps(sweep))


def reproduced(whole: Path, *, runs: list[str], experiments: dict[str, list[str]]) -> None:
    for name in runs:
        (whole / "runs" / name).mkdir(parents=True)
    (whole / "reproduction.json").write_text(json.dumps({"config": {"experiments": experiments}}))


def names(folder: Path) -> list[str]:
    return [one["name"] for one in experiments_of(folder)[0]["experiments"]]


def test_a_finding_is_shown_with_its_figures_to_copy(tmp_path: Path) -> None:
    write_finding(tmp_path / "experiments" / "norms")
    found, figures = experiments_of(tmp_path)
    (one,) = found["experiments"]
    assert {key: one[key] for key in ("title", "claim", "verdict", "lines")} == {
        key: FINDING[key] for key in ("title", "claim", "verdict", "lines")
    }
    assert one["figures"] == [{"file": "figures/norms/nrn.png", "alt": "Decoder norms: histogram of NRN"}]
    assert one["tables"] == [{"name": "norms.csv"}]
    assert figures == {"norms/nrn.png": tmp_path / "experiments" / "norms" / "nrn.png"}
    assert (found["none"], found["notes"]) == (None, [])


def test_a_figure_comes_with_its_size_and_what_it_shows(tmp_path: Path) -> None:
    names = ["nrn", "steering_my_model", "of_mine"]
    write_finding(tmp_path / "experiments" / "norms", figures=names)
    for name in names:
        chunk = b"IHDR" + bytes([0, 0, 4, 1, 0, 0, 0, 100, 8, 2, 0, 0, 0])  # 1025 by 100, as the format says
        png = b"\x89PNG\r\n\x1a\n" + bytes([0, 0, 0, 13]) + chunk + zlib.crc32(chunk).to_bytes(4, "big")
        (tmp_path / "experiments" / "norms" / f"{name}.png").write_bytes(png)
    found = experiments_of(tmp_path)[0]["experiments"][0]["figures"]
    assert [(one["width"], one["height"]) for one in found] == [(1025, 100)] * 3
    assert [one["alt"].removeprefix("Decoder norms: ") for one in found] == [
        "histogram of NRN",
        "measures of the answers of my_model over strengths, beside random directions",
        "of mine",
    ]


def test_a_figure_that_is_cut_off_has_no_size(tmp_path: Path) -> None:
    write_finding(tmp_path / "experiments" / "norms")
    (tmp_path / "experiments" / "norms" / "nrn.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0")
    (one,) = experiments_of(tmp_path)[0]["experiments"][0]["figures"]
    assert set(one) == {"file", "alt"}


def test_options_that_are_empty_are_left_out(tmp_path: Path) -> None:
    options = {"lexicon": "", "endpoint": {}, "think": [], "none": None, "seed": 0, "is_on": False, "p": [1]}
    made = {"crosscoder_sha256": "a", "options": options, "material": {"lexicon": ""}}
    write_finding(tmp_path / "experiments" / "norms", made_from=made)
    (one,) = experiments_of(tmp_path)[0]["experiments"]
    kept = {"seed": 0, "is_on": False, "p": [1]}
    assert one["made_from"] == {"crosscoder_sha256": "a", "options": kept}


def test_a_run_without_experiments_says_how_to_run_them(tmp_path: Path) -> None:
    found, figures = experiments_of(tmp_path)
    assert (found["experiments"], figures) == ([], {})
    assert "crosscoders experiment NAME RUN" in found["none"]


def test_a_reproductions_experiments_on_this_run_are_shown_in_its_order(tmp_path: Path) -> None:
    plan = {"steering": ["field"], "norms": ["paper", "field"], "ablation": ["paper", "my-field"]}
    reproduced(tmp_path, runs=["field", "paper", "my-field"], experiments=plan)
    for at in ("steering-field", "norms-field", "norms-paper", "ablation-paper", "ablation-my-field"):
        write_finding(tmp_path / at)
    assert names(tmp_path / "runs" / "field") == ["steering-field", "norms-field"]
    assert names(tmp_path / "runs" / "paper") == ["norms-paper", "ablation-paper"]
    assert names(tmp_path / "runs" / "my-field") == ["ablation-my-field"]


def test_a_planned_experiment_without_a_finding_is_named(tmp_path: Path) -> None:
    reproduced(tmp_path, runs=["field"], experiments={"norms": ["field"]})
    found, _ = experiments_of(tmp_path / "runs" / "field")
    assert found["notes"] == ["The experiment norms was planned, but there is no finding of it."]
    assert found["none"] is not None


def test_a_broken_reproduction_is_told(tmp_path: Path) -> None:
    reproduced(tmp_path, runs=["field"], experiments={})
    for content in ("{", "[]", '{"config": {"experiments": {"norms": 3}}}'):
        (tmp_path / "reproduction.json").write_text(content)
        (note,) = experiments_of(tmp_path / "runs" / "field")[0]["notes"]
        assert note.startswith("The experiments of the reproduction are left out")


def test_an_incomplete_finding_says_so(tmp_path: Path) -> None:
    write_finding(tmp_path / "experiments" / "norms", is_complete=False)
    (one,) = experiments_of(tmp_path)[0]["experiments"]
    assert one["verdict"].startswith("Not complete: part of it failed")
    assert one["verdict"].endswith("No tail.")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"finding": {}}', '{"finding": 3}', json.dumps({"finding": {**FINDING, "lines": "x"}})]
    + [json.dumps({"finding": {**FINDING, name: 3}}) for name in ("title", "verdict", "figures")]
    + [json.dumps({"finding": {**FINDING, "tables": [3]}})],
)
def test_a_corrupt_finding_is_left_out_and_the_others_stay(tmp_path: Path, content: str) -> None:
    write_finding(tmp_path / "experiments" / "geometry")
    write_finding(tmp_path / "experiments" / "norms")
    (tmp_path / "experiments" / "norms" / "finding.json").write_text(content)
    found, figures = experiments_of(tmp_path)
    assert [one["name"] for one in found["experiments"]] == ["geometry"]
    assert list(figures) == ["geometry/nrn.png"]
    (note,) = found["notes"]
    assert note.startswith("The experiment in norms could not be read")
    assert str(tmp_path) not in note


def test_a_finding_of_another_crosscoder_is_left_out(tmp_path: Path) -> None:
    entry = {"crosscoder/model.safetensors": {"sha256": "a" * 64, "bytes": 3}}
    (tmp_path / "manifest.json").write_text(json.dumps({"files": entry}))
    write_finding(tmp_path / "experiments" / "norms", made_from={"crosscoder_sha256": "b" * 64})
    write_finding(tmp_path / "experiments" / "same", made_from={"crosscoder_sha256": "a" * 64})
    assert names(tmp_path) == ["same"]
    assert "made from another crosscoder" in experiments_of(tmp_path)[0]["notes"][0]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "a/b", "", ".hidden", "a\\b", "a\nb"])
def test_a_figure_cannot_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "secret.png").write_bytes(b"secret")
    write_finding(tmp_path / "experiments" / "norms", figures=[name, "nrn"])
    (tmp_path / "experiments" / "norms" / "a").mkdir()
    for file in ("a/b.png", ".hidden.png"):
        (tmp_path / "experiments" / "norms" / file).write_bytes(b"png")
    found, figures = experiments_of(tmp_path)
    assert list(figures) == ["norms/nrn.png"]
    assert len(found["experiments"][0]["figures"]) == 1
    assert "is left out" in found["notes"][0]


def test_a_link_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    write_finding(tmp_path / "experiments" / "norms", figures=["link", "missing"])
    (tmp_path / "experiments" / "norms" / "link.png").symlink_to(tmp_path / "secret.png")
    found, figures = experiments_of(tmp_path)
    assert figures == {}
    assert found["notes"] == [
        "Figure 'link' of norms is left out: it leads out of its folder.",
        "Figure 'missing' of norms is left out: there is no such PNG.",
    ]


def test_the_demos_steering_is_an_experiment_with_its_controls(tmp_path: Path) -> None:
    write_steering(tmp_path)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "steering.png").write_bytes(b"png")
    found, figures = experiments_of(tmp_path)
    (one,) = found["experiments"]
    assert one["title"] == "Steering by the latent that foretells self-reflection"
    assert "Controls, of the same norm: random direction, unembedding of 'Wait'." in one["lines"]
    assert len(one["lines"]) == 4 + 9
    assert "Unsteered: 1.00 reflections per answer" in one["verdict"]
    assert "At +0.6 latent 856: 1.60 reflections" in one["verdict"]
    assert "controls: random direction 1.00, unembedding of 'Wait' 0.70 reflections." in one["verdict"]
    assert figures == {"steering-demo/steering.png": tmp_path / "figures" / "steering.png"}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"random direction": []}', '{"latent 3": []}'])
def test_steering_that_cannot_be_read_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "steering.json").write_text(content)
    found, _ = experiments_of(tmp_path)
    assert found["experiments"] == []
    assert found["notes"][0].startswith("The demo's steering could not be read")
