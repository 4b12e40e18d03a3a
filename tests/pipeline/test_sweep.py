"""Sweeps on one harvest: each member as if alone, one that fails stops alone, resuming changes nothing."""

import csv
import json
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from crosscoders.harvest import ModelSources
from crosscoders.pipeline.corpus import Corpus
from crosscoders.pipeline.fit import fit_crosscoder
from crosscoders.pipeline.run import measure_reconstruction
from crosscoders.pipeline.sweep import Sweep, SweepResult
from crosscoders.provenance import sha256_file
from tests.pipeline.sweep_case import (
    N_STEPS,
    CrashAt,
    assert_trained_alone,
    tables,
    toy_config,
    toy_corpus,
    toy_sources,
)
from tests.training.toy_run import same_bits, weights

AXES = {"activation_fn.k": [2, 2, 4, 4], "training.lr": [1e-2, 1e-2, 1e30, 1e-2], "seed": [0, 3, 0, 0]}
SANE = {name: [value for at, value in enumerate(values) if at != 2] for name, values in AXES.items()}
DIVERGED = "k=4,lr=1e+30,seed=0"


def sweep_in(out: Path, axes: dict = AXES, **changes: object) -> Sweep:
    """A sweep of the toy configuration."""
    return Sweep(toy_config(out, **changes), axes, combine="zip")


@pytest.fixture(scope="module")
def sources() -> ModelSources:
    return toy_sources()


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return toy_corpus()


@pytest.fixture(scope="module")
def swept(sources: ModelSources, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    """Four members, one of them with an absurd learning rate."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    return sweep_in(out).run_on(sources, corpus)


def test_members_end_as_if_each_were_alone(swept: SweepResult, tmp_path, sources, corpus) -> None:
    for result in swept.members:
        if result.member.config.training.lr < 1:
            assert result.outcome.steps == N_STEPS
            # Seed 0 is the sweep's own: alone without being told the order of the rows.
            data_seed = None if result.member.config.seed == 0 else 0
            assert_trained_alone(result.member, tmp_path, sources, corpus, data_seed=data_seed)


@pytest.mark.slow
def test_another_seed_begins_as_a_run_alone_with_that_seed(tmp_path, sources, corpus) -> None:
    """With a vanishing learning rate the first weights remain."""
    few = {"lr": 1e-30, "checkpoint_every_steps": 0, "total_tokens": 64}
    sweep = sweep_in(tmp_path / "out", {"seed": [0, 3]}, training=few)
    result = sweep.run_on(sources, corpus)
    first, other = (result.crosscoder(member.name) for member in sweep.members)
    assert not same_bits({"W": first.W_enc}, {"W": other.W_enc})
    alone = weights(fit_crosscoder(sources, corpus, sweep.members[1].config))
    for name in ("W_enc", "W_dec", "b_dec"):
        assert same_bits({name: alone[name]}, {name: weights(other)[name]})


def test_one_that_diverges_stops_alone_and_the_table_says_why(swept: SweepResult, sources, corpus) -> None:
    with (swept.out / "sweep.csv").open() as file:
        rows = {row["member"]: row for row in csv.DictReader(file)}
    assert list(rows) == [result.member.name for result in swept.members]
    assert [name for name, row in rows.items() if row["state"] == "stopped"] == [DIVERGED]
    row = rows[DIVERGED]
    assert re.search("gradient|finite", row["reason"])
    assert int(row["steps"]) < N_STEPS
    assert row["l0"] == row["ev/base"] == row["dead_fraction"] == ""
    assert not (swept.out / "members" / DIVERGED / "crosscoder").exists()
    assert f"{DIVERGED} stopped: {row['reason']}" in swept.summary()


@pytest.mark.slow
def test_the_others_are_those_of_a_sweep_without_it(swept: SweepResult, tmp_path, sources, corpus) -> None:
    sane = sweep_in(tmp_path / "out", SANE).run_on(sources, corpus)
    for result in sane.members:
        found, other = (each.crosscoder(result.member.name) for each in (swept, sane))
        assert same_bits(weights(found), weights(other))
    with_it = [row for row in swept.rows() if row["state"] == "finished"]
    assert with_it == sane.rows()


def test_figures_are_those_of_each_member_measured_alone(swept: SweepResult, sources, corpus) -> None:
    for result in swept.members:
        if result.scores is None:
            continue
        crosscoder = swept.crosscoder(result.member.name)
        alone = measure_reconstruction(crosscoder, sources, corpus, result.member.config)["all"]
        assert result.scores.reconstruction == alone
        rows = [batch.rows for batch in corpus.held_out_batches(sources, result.member.config.data)]
        latents = [crosscoder.encode(each) for each in rows]
        dense = torch.cat([each if isinstance(each, Tensor) else each.to_dense() for each in latents])
        assert result.scores.dead_fraction == float((dense == 0).all(dim=0).double().mean())


@pytest.mark.parametrize("draw", [0, *(pytest.param(draw, marks=pytest.mark.slow) for draw in range(1, 6))])
def test_a_sweep_that_crashed_at_a_random_step_resumes_to_the_same_tables(
    swept: SweepResult, tmp_path, sources, corpus, draw: int
) -> None:
    rng = random.Random(draw)
    names = [result.member.name for result in swept.members if result.outcome.state == "finished"]
    victim, step = rng.choice(names), rng.randrange(1, N_STEPS + 1)
    with pytest.raises(KeyboardInterrupt):
        sweep_in(tmp_path / "out").run_on(
            sources, corpus, observers=lambda m: [CrashAt(step)] if m.name == victim else []
        )
    result = sweep_in(tmp_path / "out").run_on(sources, corpus, resume=True)
    assert repr(result.rows()) == repr(swept.rows())
    assert tables(result.out) == tables(swept.out)
    for name in names:
        assert same_bits(weights(result.crosscoder(name)), weights(swept.crosscoder(name)))
        histories = [each.out / "members" / name / "training.csv" for each in (result, swept)]
        assert histories[0].read_bytes() == histories[1].read_bytes()


def test_resuming_trains_nothing_that_has_ended(swept: SweepResult, tmp_path, sources, corpus) -> None:
    shutil.copytree(swept.out, tmp_path / "out")
    files = [path for path in (tmp_path / "out" / "members").rglob("*") if path.is_file()]
    times = {path: path.stat().st_mtime_ns for path in files}
    said: list[str] = []
    more = {"activation_fn.k": 6, "training.lr": 1e-2, "seed": 0}
    axes = {name: [*values, more[name]] for name, values in AXES.items()}
    longer = sweep_in(tmp_path / "out", axes).run_on(sources, corpus, resume=True, say=said.append)
    assert said[0].startswith("sweep: 1 of 5 members to train, the other 4 ended before")
    assert {path: path.stat().st_mtime_ns for path in times} == times
    figures = [{k: v for k, v in row.items() if not k.startswith("pareto/")} for row in longer.rows()]
    assert repr([{k: row[k] for k in figures[0]} for row in swept.rows()]) == repr(figures[:4])
    assert figures[4]["state"] == "finished"


def test_the_folder_holds_what_is_promised(swept: SweepResult) -> None:
    files = {p.relative_to(swept.out).as_posix() for p in swept.out.rglob("*") if p.is_file()}
    own = {"sweep.csv", "sweep.json", "summary.txt", "figures/pareto.png", "figures/pareto.svg"}
    assert {*own, "manifest.json"} == {name for name in files if not name.startswith("members/")}
    member = "members/k=2,lr=0.01,seed=0/"
    assert {member + name for name in ("member.json", "training.csv", "crosscoder/config.json")} <= files
    manifest = json.loads((swept.out / "manifest.json").read_text())["files"]
    assert set(manifest) == files - {"manifest.json"}
    assert manifest["sweep.csv"]["sha256"] == sha256_file(swept.out / "sweep.csv")
    content = json.loads((swept.out / "sweep.json").read_text())
    assert content["axes"] == AXES
    assert [row["member"] for row in content["members"]] == [r.member.name for r in swept.members]
    assert content["members"][2]["l0"] is None
    assert (swept.out / "summary.txt").read_text() == swept.summary() + "\n"


def test_a_folder_with_something_else_is_refused(swept: SweepResult, tmp_path, sources, corpus) -> None:
    with pytest.raises(FileExistsError, match="already holds a sweep; go on with it by --resume"):
        sweep_in(swept.out).run_on(sources, corpus)
    (tmp_path / "letter.txt").touch()
    with pytest.raises(FileExistsError, match="neither empty nor the folder of a sweep"):
        sweep_in(tmp_path).run_on(sources, corpus, resume=True)
    other = sweep_in(swept.out, training={"warmup_fraction": 0.5})
    with pytest.raises(ValueError, match=r"settings \(training.warmup_fraction: saved 0.05, here 0.5\)"):
        other.run_on(sources, corpus, resume=True)
    text = Corpus(train=corpus.train[:9], held_out=corpus.held_out, origin=corpus.origin)
    with pytest.raises(ValueError, match="the text differs"):
        sweep_in(swept.out).run_on(sources, text, resume=True)
