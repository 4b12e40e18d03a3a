"""All experiments on a pair from files: what is written, what is done again, what is refused."""

import json
import re
import shutil
from pathlib import Path

import pytest

from crosscoders.cli import main
from crosscoders.experiments.catalog import EXPERIMENTS

TABLES = {"norms.csv", "nrn_histogram.csv", "annotation.csv", "ablation.csv", "steering.csv"}


def run(text: str, out: Path, tmp_path: Path) -> int:
    file = tmp_path / "plan.toml"
    file.write_text(text)
    return main(["reproduce", str(file), "--out", str(out)])


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> dict[str, Path]:
    return {"folder": tmp_path_factory.mktemp("reproduction")}


@pytest.fixture
def reproduction(finished, plan_text, tmp_path) -> Path:
    """The whole plan, run once for all tests of this file."""
    out = finished["folder"] / "out"
    if not out.exists():
        assert run(plan_text, out, tmp_path) == 0
    return out


def test_every_experiment_leaves_figures_tables_and_a_finding(reproduction):
    for name in EXPERIMENTS:
        folder = reproduction / f"{name}-field"
        found = json.loads((folder / "finding.json").read_text())["finding"]
        assert found["verdict"]
        assert found["tables"]
        for figure in found["figures"]:
            assert (folder / f"{figure}.png").stat().st_size > 1000
            assert "<svg" in (folder / f"{figure}.svg").read_text()
        for table in found["tables"]:
            assert len((folder / table).read_text().splitlines()) > 1
        assert found["verdict"] in (folder / "summary.txt").read_text()
    assert {p.name for p in reproduction.rglob("*.csv")} >= TABLES


def test_the_index_links_to_what_exists_and_escapes(reproduction):
    page = (reproduction / "index.html").read_text()
    assert "Toy &lt;pair&gt;" in page
    links = {part.split('"')[0] for key in ("href=", "src=") for part in page.split(f'{key}"')[1:]}
    files = {link for link in links if not link.startswith("#")}
    assert len(files) > 15
    assert [link for link in files if not (reproduction / link).exists()] == []
    assert "<script" not in page
    assert not [link for link in files if "://" in link]


def test_a_second_call_does_nothing_again(reproduction, plan_text, tmp_path, capsys):
    before = {p: p.stat().st_mtime_ns for p in reproduction.rglob("*.png")}
    assert run(plan_text, reproduction, tmp_path) == 0
    assert capsys.readouterr().out.count("done before") == 6
    assert {p: p.stat().st_mtime_ns for p in reproduction.rglob("*.png")} == before


def test_a_changed_option_redoes_only_its_experiment(reproduction, plan_text, tmp_path, capsys):
    changed = plan_text.replace("n_latents = 6\n", "n_latents = 5\n")
    assert run(changed, reproduction, tmp_path) == 0
    said = capsys.readouterr().out
    assert said.count("done before") == 5
    assert "annotation on field: done" not in said
    assert run(plan_text, reproduction, tmp_path) == 0


@pytest.mark.slow
def test_another_configuration_of_a_run_is_trained_anew(reproduction, plan_text, tmp_path, capsys):
    """Also after an interruption in between, and never from the other configuration's checkpoints."""
    out = tmp_path / "copy"
    shutil.copytree(reproduction, out)
    other = plan_text.replace("training = {lr = 0.003}", "training = {lr = 0.004}\nseed = 1")
    record = out / "runs" / "field" / "run.json"
    changed = json.loads(record.read_text())
    changed["config"]["seed"] = 1
    changed["config"]["training"]["lr"] = 0.004
    record.write_text(json.dumps(changed))  # as if interrupted just after the record was written
    (out / "runs" / "field" / "manifest.json").unlink()
    assert run(other, out, tmp_path) == 0
    assert "done before" not in capsys.readouterr().out
    assert run(plan_text, out, tmp_path) == 0
    said = capsys.readouterr().out
    assert "made with another configuration" in said
    assert "done before" not in said


@pytest.mark.slow
def test_an_experiment_depends_on_its_own_material_only(reproduction, plan_text, pair, tmp_path, capsys):
    assert run(plan_text.replace("max_new_tokens = 6", "max_new_tokens = 5"), reproduction, tmp_path) == 0
    assert capsys.readouterr().out.count("done before") == 5
    words = pair / "words" / "next_noun.json"
    kept = words.read_text()
    words.write_text(json.dumps(json.loads(kept)[:-1]))  # the same path, other content
    try:
        assert run(plan_text.replace("max_new_tokens = 6", "max_new_tokens = 5"), reproduction, tmp_path) == 0
    finally:
        words.write_text(kept)
    said = capsys.readouterr().out
    assert said.count("done before") == 5
    assert "geometry on field: done" not in said
    assert run(plan_text, reproduction, tmp_path) == 0


@pytest.mark.slow
def test_what_a_pair_lacks_is_skipped_and_said(reproduction, plan_text, tmp_path, capsys):
    without = "\n".join(line for line in plan_text.splitlines() if not line.startswith(("prompts", "word_")))
    assert run(without, reproduction, tmp_path) == 0
    said = capsys.readouterr().out
    assert "skipped: the material names no prompts" in said
    assert "skipped: the material names no word pairs" in said
    assert "steering-field: skipped" in (reproduction / "index.html").read_text()
    assert run(plan_text, reproduction, tmp_path) == 0


def test_one_experiment_on_a_finished_run(reproduction, plan_text, tmp_path, capsys):
    file = tmp_path / "plan.toml"
    file.write_text(plan_text)
    run_folder, out = str(reproduction / "runs" / "field"), str(tmp_path / "one")
    assert main(["experiment", "norms", run_folder, "--out", out]) == 0
    assert "NRN" in capsys.readouterr().out
    assert main(["experiment", "geometry", run_folder, "--config", str(file), "--out", out]) == 0
    assert main(["inspect", run_folder, "--prompt", "Wait, said Anna."]) == 0
    assert "Wait |" in capsys.readouterr().out


def test_mistakes_end_with_a_message(reproduction, plan_text, tmp_path, capsys):
    def refused(text: str, out: Path) -> str:
        assert run(text, out, tmp_path) == 2
        return capsys.readouterr().err

    assert "neither empty nor a reproduction" in refused(plan_text, tmp_path)
    new = tmp_path / "new"
    assert "unknown keys ['ablations']" in refused(plan_text + "[ablations]\n", new)
    assert "unknown runs ['other']" in refused(plan_text + 'runs = ["other"]\n', new)
    assert "grader must be one of" in refused(plan_text.replace('"gsm8k"', '"judge"'), new)
    assert "[geometry]: unknown keys ['n_pairs']" in refused(plan_text + "n_pairs = 3\n", new)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "What is 1 + 1?", "answer": "two"}\n')
    own = re.sub(r'prompts = ".*"', f'prompts = "{prompts}"', plan_text)
    assert "prompts.jsonl, line 1: " in refused(own, new)
    prompts.write_text('{"prompt": ""}\n')
    assert "prompt must be text" in refused(own, new)
    assert "runs name folders" in refused(plan_text.replace("[runs.field]", '[runs."../field"]'), new)
    assert "strengths[0] must be" in refused(plan_text.replace("[-0.5, 0.0, 0.5]", '["a"]'), new)
    assert "unknown keys ['max_colapsed']" in refused(
        plan_text.replace("n_prompts = 4", "n_prompts = 4\nbounds = {max_colapsed = 0.5}"), new
    )
    assert not new.exists()
    assert main(["reproduce"]) == 2
    assert "either a config or --pair" in capsys.readouterr().err
    assert main(["reproduce", "--pair", "qwen"]) == 2
    assert "the bundled pair is 'tiny-reasoner'" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path), "--prompt", "x"]) == 2
    assert "holds no run.json" in capsys.readouterr().err


def test_a_changed_text_is_not_measured_on(reproduction, pair, tmp_path, capsys):
    text = pair / "text.jsonl"
    kept = text.read_text()
    try:
        text.write_text(kept.replace("Anna", "Mia"))
        out = str(tmp_path / "one")
        assert main(["experiment", "norms", str(reproduction / "runs" / "field"), "--out", out]) == 2
    finally:
        text.write_text(kept)
    assert "was the text file or the tokenizer changed?" in capsys.readouterr().err
