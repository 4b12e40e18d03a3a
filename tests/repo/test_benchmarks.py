"""The benchmark harness: its tables come from its rows, its gate refuses, its floor adds up."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.kernels import data, tables
from benchmarks.kernels.peers import ours, plain
from benchmarks.kernels.problem import BATCH_TOPK, TOPK, Case, Problem, Shape, Variant
from benchmarks.kernels.reference import judge, reference_trajectory
from benchmarks.kernels.results import Place, Row, append_rows, latest_run, make_row, read_rows
from benchmarks.kernels.roofline import bandwidth, floor_ms, gemm_flops, kernel_bytes, optimizer_bytes

SHAPE = Shape(d_model=6, n_latents=48, batch=64, k=4)
TRIAD_MS = 1e6  # a slow memory, so that the optimizer's bytes count
OLD = Place(commit="abc", device="cpu", cpu_model="a CPU", threads=2, timestamp="2026-01-01T00:00:00+00:00")
NEW = dataclasses.replace(OLD, timestamp="2026-01-02T00:00:00+00:00")


def rows_of_a_run(place: Place, *, ours_ms: float = 10.0) -> list[Row]:
    step = {"shape": SHAPE.label, "op": "topk", "level": "step", "metric": "time", "precision": "float32"}
    machine = {**step, "implementation": "machine", "level": "roofline", "note": "topk", "precision": ""}
    return [
        make_row(place, {**step, "implementation": "crosscoders"}, samples=[ours_ms, ours_ms, 2 * ours_ms]),
        make_row(place, {**step, "implementation": "a peer"}, samples=[25.0]),
        make_row(
            place,
            {**step, "implementation": "another", "metric": "status", "note": "gate: L0 2 instead of 4"},
        ),
        make_row(place, {**machine, "op": "encode GEMM float32"}, samples=[4.0]),
        make_row(place, {**machine, "op": "triad"}, samples=[TRIAD_MS]),
    ]


def test_rows_survive_the_file_and_the_newest_run_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "cpu.csv"
    append_rows(path, rows_of_a_run(OLD, ours_ms=99.0))
    append_rows(path, rows_of_a_run(NEW))
    assert latest_run(read_rows(path)) == rows_of_a_run(NEW)
    text = tables.render(read_rows(path))
    assert "| a peer | 25 (25-25) | 2.50 |" in text
    assert "- another, float32: n/a: gate: L0 2 instead of 4." in text
    assert "99" not in text


def test_the_table_compares_ours_with_the_floor() -> None:
    text = tables.render(rows_of_a_run(NEW))
    floor = floor_ms(SHAPE, gemm_ms=4.0, bytes_per_second=bandwidth({"triad": TRIAD_MS}))
    assert f"| {10.0 / floor:.2f} |" in text


def test_the_page_holds_the_tables_of_the_recorded_runs() -> None:
    page = tables.PAGE.read_text(encoding="utf-8")
    assert page == tables.with_tables(page, tables.generated())
    with pytest.raises(ValueError, match="needs one"):
        tables.with_tables("no markers", "")


def test_floor_counts_flops_and_bytes() -> None:
    shape = Shape(d_model=256, n_latents=16384, batch=2048, k=32)
    assert gemm_flops(shape) == 2 * 2048 * 512 * 16384
    assert optimizer_bytes(shape) == 28 * (2 * 16384 * 512 + 16384 + 512)
    assert floor_ms(shape, gemm_ms=3.0, bytes_per_second=optimizer_bytes(shape) / 0.5) == pytest.approx(503.0)
    assert kernel_bytes("row_topk", shape) == (2 * 2048 * 16384, 0)
    assert kernel_bytes("encode, TopK", shape) is None
    assert tables.parse_shape(shape.label) == shape


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data.write_data(tmp_path, SHAPE)
    return tmp_path


@pytest.mark.parametrize("case", [TOPK, BATCH_TOPK, Case(activation="batch_topk", max_grad_norm=1.0)])
def test_ours_and_plain_pass_the_gate(folder: Path, case: Case) -> None:
    problem = Problem(shape=SHAPE, case=case)
    batches, weights = data.read_batches(folder, device="cpu"), data.read_weights(folder, device="cpu")
    for module, option in ((ours, "auto"), (plain, "eager")):
        implementation = module.build(problem, weights, batches, option=option)
        wanted = reference_trajectory(problem, folder, variant=implementation.variant)
        assert judge(implementation.gate(), wanted, precision="float32").reason == ""


def test_the_gate_refuses_a_wrong_peer(folder: Path) -> None:
    problem = Problem(shape=SHAPE)
    right = reference_trajectory(problem, folder, variant=Variant())
    fewer = dataclasses.replace(problem, shape=dataclasses.replace(SHAPE, k=3))
    batches, weights = data.read_batches(folder, device="cpu"), data.read_weights(folder, device="cpu")
    wrong = plain.build(fewer, weights, batches, option="eager").gate()
    assert "L0 (3, 3, 3, 3) instead of (4, 4, 4, 4)" in judge(wrong, right, precision="bfloat16").reason
    still = dataclasses.replace(right, losses=[right.losses[0]] * 4)
    assert "loss" in judge(still, right, precision="float32").reason
    broken = dataclasses.replace(right, losses=[*right.losses[:3], float("nan")])
    assert "loss" in judge(broken, right, precision="bfloat16").reason


def test_the_variants_of_the_reference_are_different_functions(folder: Path) -> None:
    """All start alike, since the norms are equal and b_dec is zero; one update later they do not."""
    problem = Problem(shape=SHAPE)
    ours_losses = reference_trajectory(problem, folder, variant=Variant()).losses
    biased = reference_trajectory(problem, folder, variant=Variant(pre_bias=True)).losses
    assert biased[0] == ours_losses[0]
    assert biased[1] != ours_losses[1]


def test_uniform_latents_are_refused(folder: Path) -> None:
    counts = np.random.default_rng(0).poisson(20.0, (8, SHAPE.n_latents))
    with pytest.raises(ValueError, match="too uniform"):
        data.check_skew(data.measure_skew(counts, SHAPE))
    dictionary = data.read_weights(folder, device="cpu").dictionary
    batches = torch.stack(data.read_batches(folder, device="cpu"))
    data.check_skew(data.measure_skew(data.fired_counts(batches, dictionary, k=SHAPE.k), SHAPE))
