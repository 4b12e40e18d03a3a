"""Training on several ranks against one process that is given the same batches."""

from functools import cache
from typing import Any

import pytest
import torch

from crosscoders.structures import SharedLatents
from tests.parallel.rank_pool import on_ranks
from tests.parallel.spread_runs import (
    CASES,
    N_LATENTS,
    Run,
    TwoTerms,
    assert_same_run,
    messages,
    observed,
    structured_run,
    talks_per_step,
    toy_run,
    toy_runs,
)

DEFAULTS = ["relu", "topk", "batch_topk", "jumprelu"]
FLOAT32: dict[str, Any] = {"dtype": torch.float32, "watch": False, "log_every_steps": 67}


@cache
def alone(case: str, n_steps: int, **options: Any) -> Run:
    return toy_run(case=case, shape=None, n_steps=n_steps, **options)


def assert_trains_as_alone(
    shape: tuple[int, int], cases: list[str], *, n_steps: int, atol: float, **options: Any
) -> None:
    runs = on_ranks(shape[0] * shape[1], toy_runs, cases=cases, shape=shape, n_steps=n_steps, **options)
    for case, *ranks in zip(cases, *runs):
        assert_same_run(alone(case, n_steps, **options), ranks, atol=atol, at=f"{case} on {shape}")


def test_ranks_train_as_one_process_does() -> None:
    assert_trains_as_alone((2, 2), list(CASES), n_steps=6, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 1), (1, 3)])
def test_ranks_without_rows_and_uneven_parts_change_nothing(shape: tuple[int, int]) -> None:
    assert N_LATENTS % 3
    assert_trains_as_alone(shape, ["batch_topk", "difference"], n_steps=4, atol=1e-12, short=1)


def test_a_batch_in_which_nothing_fires_is_as_in_one_process() -> None:
    silent: dict[str, Any] = {"bias": -50.0, "calibrate": False}
    assert not any(map(len, toy_run(case="batch_topk", shape=None, n_steps=3, **silent).fired))
    assert_trains_as_alone((2, 2), ["batch_topk", "topk"], n_steps=3, atol=1e-12, **silent)


def assert_float32_agrees(shape: tuple[int, int], *, n_steps: int) -> None:
    """The first step to 1e-6 and the loss to a thousandth at the end.

    One process takes the fused step here, ranks go through autograd.
    """
    n = shape[0] * shape[1]
    options = {"cases": DEFAULTS, "shape": shape, **FLOAT32}
    runs = [on_ranks(n, toy_runs, n_steps=n_done, **options) for n_done in (1, n_steps)]
    for case, one, run in zip(DEFAULTS, *(of_ranks[0] for of_ranks in runs), strict=True):
        torch.testing.assert_close(one.weights, alone(case, 1, **FLOAT32).weights, rtol=0, atol=1e-6)
        expected = alone(case, n_steps, **FLOAT32)
        assert run.losses[0] == pytest.approx(expected.losses[0], rel=1e-6)
        assert run.losses[-1] == pytest.approx(expected.losses[-1], rel=1e-3)


@pytest.mark.parametrize("shape", [(2, 1), (1, 2)])
def test_in_float32_the_first_step_and_the_loss_agree_to_rounding(shape: tuple[int, int]) -> None:
    assert_float32_agrees(shape, n_steps=10)


def test_bfloat16_runs_on_ranks_and_stays_near_one_process() -> None:
    runs = on_ranks(4, toy_run, case="batch_topk", shape=(2, 2), precision="bfloat16", **FLOAT32)
    expected = toy_run(case="batch_topk", shape=None, precision="bfloat16", **FLOAT32)
    assert all(run.losses == runs[0].losses for run in runs)
    assert runs[0].losses[-1] == pytest.approx(expected.losses[-1], rel=0.05)


@pytest.mark.parametrize("shape", [(2, 1), (3, 1)])
def test_a_trainer_with_another_objective_works_over_data_ranks(shape: tuple[int, int]) -> None:
    """Its terms are means over the rank's rows, next to ones over the whole batch, and a function of both."""
    options = {"case": "topk", "n_steps": 6, "cls": TwoTerms, "short": 1}
    expected = toy_run(shape=None, **options)
    ranks = on_ranks(shape[0], toy_run, shape=shape, **options)
    assert_same_run(expected, ranks, atol=1e-12, at="TwoTerms")


def test_a_step_talks_as_seldom_as_it_can() -> None:
    """Rows, two rounds of selection, reconstruction, loss forth and back, gradients, norm, silence, stop."""
    assert on_ranks(4, talks_per_step, case="batch_topk", shape=(2, 2))[0] < 11.5
    assert on_ranks(2, talks_per_step, case="relu", shape=(1, 2))[0] < 5


def test_a_structure_holds_over_data_ranks() -> None:
    structure = SharedLatents(n_shared=7)
    expected = structured_run(structure=structure, shape=None)
    for weights in on_ranks(2, structured_run, structure=structure, shape=(2, 1)):
        torch.testing.assert_close(weights, expected, rtol=0, atol=1e-12)


def test_what_cannot_be_spread_is_refused_by_name() -> None:
    said = on_ranks(2, messages)[0]
    assert "TwoTerms overrides compute_losses" in said["trainer"]
    assert "Local does not say that it works" in said["term"]
    assert "SharedLatents" in said["structure"]
    assert "Halves does not say that it works" in said["activation"]
    assert "Kept looks at a whole batch" in said["statistics"]
    assert "leave some of 2 ranks without any" in said["too few"]
    assert "the crosscoder is not the same on every rank" in said["other weights"]
    assert "the batch is not the same on every rank" in said["other batches"]
    assert "trainer.whole_crosscoder()" in said["save"]
    assert "named 'data', 'latents'" in said["names"]
    assert "mesh of 1 x 2 ranks" in said["kernels"]


@pytest.mark.parametrize("shape", [(2, 1), (1, 2)])
def test_evaluation_runs_once_on_the_whole_crosscoder_and_a_stop_is_agreed_on(shape: tuple[int, int]) -> None:
    first, second = on_ranks(2, observed, shape=shape)
    assert first["metrics"] == second["metrics"] == observed(shape=None)["metrics"]
    assert (first["n_evaluations"], second["n_evaluations"]) == (3, 0)
    assert first["step"] == second["step"] == 4
    assert first["stop_reason"] == second["stop_reason"] == "the last rank has seen enough"
    assert "failed on purpose" in first["failure"]
    assert first["failure"] == second["failure"]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (4, 1), (1, 4), (2, 2)])
def test_ranks_train_as_one_process_does_for_200_steps(shape: tuple[int, int]) -> None:
    rarely: dict[str, Any] = {"log_every_steps": 67}  # metrics cost the ranks as much as half a step
    assert_trains_as_alone(shape, DEFAULTS, n_steps=200, atol=1e-9, **rarely)
    for case in DEFAULTS:
        reports = alone(case, 200, **rarely).reports
        assert max(report["grad_norm"] for report in reports) > 1.0, "nothing was clipped"
        assert "loss/auxk" not in reports[0] or max(report["loss/auxk"] for report in reports) > 0


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 1), (1, 4)])
def test_in_float32_the_loss_stays_within_a_thousandth_for_200_steps(shape: tuple[int, int]) -> None:
    assert_float32_agrees(shape, n_steps=200)
