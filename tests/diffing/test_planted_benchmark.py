"""The planted benchmark: its tables come from its results, its baseline is the published one."""

import dataclasses
from dataclasses import asdict

import torch
from benchmarks.planted.recipes import STANDARD
from benchmarks.planted.scaling import mapped_scaling
from benchmarks.planted.score import _records
from benchmarks.planted.settings import (
    EQUAL_WIDTHS,
    HELD_OUT_ROWS,
    MAIN,
    Case,
    calibration_cases,
    scored_cases,
)
from benchmarks.planted.table import PAGE, load, markdown, page

from crosscoders.activation_fns import ReLU
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.diffing.measures.moments import collect_moments
from crosscoders.diffing.measures.scaling import latent_scaling
from crosscoders.diffing.planted import KINDS, KindScore, PlantedScore, SpecificScore
from crosscoders.diffing.verdicts import Thresholds

CASE = Case(setting=EQUAL_WIDTHS, seed=5, world=0)


def score_of(n_true: int, n_false: int) -> PlantedScore:
    kinds = [
        KindScore(kind=kind, rate=0.02, n_features=4, n_recovered=3, n_called=1, n_right=2, n_undecided=0)
        for kind in KINDS
    ]
    row = SpecificScore(
        rate=0.02, n_true=n_true, n_false=n_false, n_unmatched=0, n_missed=1, n_not_recovered=1
    )
    return PlantedScore(kinds=tuple(kinds), specific=(row,))


def test_the_tables_hold_what_was_scored_and_a_dash_for_what_is_undefined() -> None:
    scores = [
        *_records("main", STANDARD.name, "ours", score_of(3, 1)),
        *_records("equal widths", "L1", "norm share > 0.833", score_of(0, 0)),
    ]
    line = {"threshold": 0.1, "below": {"0.95": 0.02, "n": 7}, "above": {"0.05": 0.21, "n": 9}}
    judged = {
        "setting": "main",
        "recipe": "L1",
        "seeds": [5],
        "explained": [0.5, 0.25],
        "l0": 9.0,
        "live": 3.0,
    }
    text = markdown(
        {
            "calibration": {"absent": line},
            "settings": ["main"],
            "standard": STANDARD.name,
            "scores": scores,
            "crosscoders": [judged | {"l0": 9.0, "live": 3.0}],
        }
    )
    assert "| absent | 0.10 | 0.020 | 0.210 | 7 / 9 |" in text
    assert "| ours | 2% | 0.750 (0.301-0.954) |" in text
    assert "| 33.3% (1 of 3) | 33.3% (1 of 3) |" in text
    assert "| L1 | norm share > 0.833 | 2% | - |" in text
    assert "| main | L1 | 5 | 0.500 / 0.250 | 9.0 | 3 |" in text


def test_no_case_is_both_calibrated_on_and_scored() -> None:
    calibrated, scored = (
        {(c.setting.name, c.seed) for c in cases} for cases in (calibration_cases(), scored_cases())
    )
    assert {seed for name, seed in calibrated if name == MAIN.name} == set(range(5))
    assert max(seed for _, seed in calibrated) < min(seed for _, seed in scored)


def test_a_world_of_one_space_has_equal_shared_directions() -> None:
    world = CASE.draw_world()
    first, second = world.directions
    is_shared = torch.tensor([feature.kind == "shared" for feature in world.features])
    torch.testing.assert_close(first[is_shared], second[is_shared], rtol=0, atol=1e-5)
    assert [asdict(f) for f in world.features] == [asdict(f) for f in CASE.draw_world().features]


def test_mapped_scaling_is_latent_scaling_where_the_map_is_the_identity() -> None:
    world = CASE.draw_world()
    config = CrosscoderConfig(sources=world.sources(), n_latents=24, activation_fn=ReLU())
    crosscoder = Crosscoder(config, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        crosscoder.W_dec[:12, 80:] *= 0.3
    pairs = world.measure_batches(2048, generator=CASE.generator(HELD_OUT_ROWS))
    moments = collect_moments(crosscoder, [batch for batch, _ in pairs])
    one = torch.eye(80, dtype=torch.float64)
    found, expected = (
        mapped_scaling(moments, crosscoder, maps=(one, one)),
        latent_scaling(moments, crosscoder),
    )
    for target in ("error", "reconstruction"):
        torch.testing.assert_close(found[f"nu_{target}"], expected.nu(target), equal_nan=True)
    assert torch.isfinite(found["nu_error"]).sum() >= 12


def test_the_page_and_the_thresholds_are_those_of_the_recorded_results() -> None:
    results = load()
    assert PAGE.read_text(encoding="utf-8") == page(results)
    thresholds = dataclasses.asdict(Thresholds())
    assert results["thresholds"] == thresholds
    for name, line in results["calibration"].items():
        assert line["threshold"] == thresholds[name]
