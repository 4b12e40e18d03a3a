"""The overview shows what the run's files say, and no verification of anything else."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from crosscoders.bootstrap import wilson_interval
from crosscoders.crosscoder import Crosscoder
from crosscoders.diffing.verdicts import VERDICTS, Verdicts
from crosscoders.errors import CheckpointError
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.report.overview import json_ready, overview_of
from crosscoders.pipeline.report.stored_verification import (
    StoredVerification,
    read_verification,
    verification_or_note,
)
from crosscoders.pipeline.report.verdict_figures import VERDICT_HELP
from crosscoders.provenance import run_record, weights_fingerprint, write_manifest
from tests.pipeline.report_run import (
    N_TOKENS,
    SURVIVOR,
    toy_alignment,
    toy_config,
    toy_crosscoder,
    toy_table,
    toy_verdicts,
    write_toy_run,
    write_toy_verification,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with a verification."""
    write_toy_run(tmp_path)
    write_toy_verification(tmp_path / "verify", toy_verdicts(toy_crosscoder()), toy_config())
    return tmp_path


def shown(
    folder: Path, *, crosscoder: Crosscoder | None = None, config: RunConfig | None = None
) -> dict[str, Any]:
    crosscoder, config = crosscoder or toy_crosscoder(), config or toy_config()
    record = run_record(config=config.to_dict(), seed=0, data={})
    table = toy_table(crosscoder)
    verification, missing = verification_or_note(
        folder / "verify", crosscoder=crosscoder, config=config, latents=table
    )
    found = overview_of(
        folder,
        record=record,
        config=config,
        crosscoder=crosscoder,
        latents=table,
        verification=verification,
        notes=["given", *missing],
    )
    assert found == json.loads(json.dumps(found, allow_nan=False))
    return found


def read(folder: Path, **changes: Any) -> StoredVerification | None:
    crosscoder = changes.pop("crosscoder", toy_crosscoder())
    config = changes.pop("config", toy_config())
    return read_verification(
        folder / "verify", crosscoder=crosscoder, config=config, latents=toy_table(crosscoder)
    )


def test_a_verification_read_back_says_what_it_said(folder: Path) -> None:
    found, original = read(folder), toy_verdicts(toy_crosscoder())
    assert found is not None
    assert found.is_short
    assert found.verdicts.summary() == original.summary()
    assert found.verdicts.judgements == original.judgements
    assert found.verdicts.thresholds == original.thresholds


def test_counts_nulls_and_power_are_those_of_the_verdicts(folder: Path) -> None:
    found, verdicts = shown(folder)["verdicts"], toy_verdicts(toy_crosscoder())
    assert found["counts"] == [[v, n, VERDICT_HELP[v]] for v, n in verdicts.counts().items()]
    assert (found["survivors"], found["owners"]) == ([SURVIVOR], ["distilled"])
    assert found["screened"] == verdicts.n_screened()
    null = found["nulls"][0]
    assert (null["n_false"], null["n_live"]) == (3, 20)
    assert (null["low"], null["high"]) == wilson_interval(3, 20)
    assert null["at_most"] == pytest.approx(10 * wilson_interval(3, 20)[1])
    rate = found["power"]["rates"][0]
    assert (rate["n_specific"], rate["low"], rate["high"]) == (2, *wilson_interval(2, 4))
    assert (found["power"]["known_wrong"], found["power"]["known_planted"]) == (1, 4)


def test_a_share_closed_stands_beside_the_draws_that_close_as_much(folder: Path) -> None:
    (row,) = shown(folder)["verdicts"]["causal"]
    assert (row["text"], row["set"], row["n_tokens"]) == ("story", "survivors", 900)
    assert (row["closed"], row["low"], row["high"]) == (0.2, 0.1, 0.3)
    control = row["controls"][0]
    assert (control["n_draws"], control["n_as_much"], control["unscalable"]) == (3, 2, None)


def test_every_verdict_is_explained() -> None:
    assert set(VERDICT_HELP) == set(VERDICTS)


def test_reconstruction_and_splicing_are_those_of_the_evaluation(folder: Path) -> None:
    found = shown(folder)
    assert found["reconstruction"][0]["text"] == "all"
    assert found["reconstruction"][0]["explained_variance"] == {"base": 0.9, "distilled": 0.8}
    base, distilled = found["splice"]
    assert (base["source"], base["ce_recovered"]) == ("base", (3.0 - 1.5) / (3.0 - 1.0))
    assert distilled["ce_recovered"] is None  # ablation changes nothing: there is no share


def test_the_screen_counts_the_latents_that_fire(folder: Path) -> None:
    screen, table = shown(folder)["screen"], toy_table(toy_crosscoder())
    nrn = table["nrn_l2"][2:].tolist()
    assert (screen["n_fire"], screen["n_never"], screen["n_tokens"]) == (10, 2, N_TOKENS)
    assert screen["n_one_sided"] == sum(value < 0.1 or value > 0.9 for value in nrn)


def test_training_curves_are_thinned_and_keep_their_end(folder: Path) -> None:
    found = shown(folder)["training"]
    assert 300 < len(found["step"]) <= 600
    assert found["step"][-1] == 1500
    series = {one["name"]: one["values"] for one in found["series"]}
    assert set(series) == {"loss", "l0", "ev/base"}
    assert series["loss"] == [1 / step for step in found["step"]]


def test_survivors_come_first_among_the_latents_of_interest(folder: Path) -> None:
    first, second = shown(folder)["latents_of_interest"]
    assert first["latent"] == SURVIVOR
    assert first["why"].startswith('model-specific (distilled): because, "model-specific"; tells onset of')
    assert second["latent"] == 3
    assert "onset of deductive" in second["why"]
    assert "function of the marker words of deductive" in second["why"]


def test_without_anything_chosen_the_ends_of_the_screen_are_of_interest(tmp_path: Path) -> None:
    found, table = shown(tmp_path)["latents_of_interest"], toy_table(toy_crosscoder())
    nrn = table["nrn_l2"].tolist()[2:]
    assert [one["latent"] - 2 for one in found] == [nrn.index(max(nrn)), nrn.index(min(nrn))]


def test_an_empty_folder_gives_an_overview_that_says_what_is_missing(tmp_path: Path) -> None:
    found = shown(tmp_path)
    assert (found["training"], found["verdicts"], found["reconstruction"]) == (None, None, [])
    assert found["notes"] == ["given", "This run was not verified."]
    assert any("Nothing here has been verified" in sentence for sentence in found["paragraph"])


def test_folders_of_models_are_shown_by_name_alone(folder: Path) -> None:
    found = shown(folder)
    assert [model["path"] for model in found["models"]] == ["zoo-like/base", "tuned"]
    assert found["title"] == "zoo-like/base against tuned"
    assert "/somewhere" not in json.dumps(found)
    assert ["latents", "12"] in found["settings"]


def test_sources_that_are_not_aligned_get_no_counts(folder: Path) -> None:
    nothing = Verdicts(
        pair=("base", "distilled"),
        evidence=None,
        judgements=(),
        thresholds=toy_verdicts(toy_crosscoder()).thresholds,
        alignment=toy_alignment(is_aligned=False),
    )
    write_toy_verification(folder / "verify", nothing, toy_config())
    found = shown(folder)["verdicts"]
    assert (found["counts"], found["survivors"], found["screened"]) == (None, [], None)
    assert "sources not aligned" in found["why_none"]
    assert found["alignment"]["shifted"] == [None, 0.3]


def test_a_verification_of_other_weights_is_not_shown(folder: Path) -> None:
    found = shown(folder, crosscoder=toy_crosscoder(seed=1))
    assert found["verdicts"] is None
    assert "another crosscoder than the one in this run" in found["notes"][1]
    assert str(folder) not in found["notes"][1]
    assert found["latents_of_interest"][0]["why"].startswith("tells")


def test_a_verification_of_another_configuration_or_source_is_refused(folder: Path) -> None:
    moved = dataclasses.replace(toy_config(), out="elsewhere")
    assert read(folder, config=moved) is not None
    with pytest.raises(CheckpointError, match="another configuration"):
        read(folder, config=dataclasses.replace(toy_config(), seed=1))
    other = toy_crosscoder()
    other.config = dataclasses.replace(
        other.config, sources=tuple(dataclasses.replace(s, hook_name="x") for s in other.sources)
    )
    with pytest.raises(CheckpointError, match="the crosscoder reads"):
        read(folder, crosscoder=other)


def test_a_verification_that_was_changed_or_not_finished_is_refused(folder: Path) -> None:
    table = folder / "verify" / "verdicts.csv"
    text = table.read_text()
    table.write_text(text.replace("model-specific", "model-special"))
    with pytest.raises(CheckpointError, match="expected"):
        read(folder)
    write_manifest(folder / "verify")
    with pytest.raises(CheckpointError, match="different survivors"):
        read(folder)
    table.write_text(text)
    (folder / "verify" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="never finished"):
        read(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"pair": 3}', '{"pair": ["a", "b"], "survivors": [1]}'])
def test_a_verification_that_is_none_is_left_out_with_a_note(folder: Path, content: str) -> None:
    (folder / "verify" / "verification.json").write_text(content)
    write_manifest(folder / "verify")
    found = shown(folder)
    assert found["verdicts"] is None
    assert "it is not shown" in found["notes"][1]


@pytest.mark.parametrize("name", ["evaluation.json", "training.csv", "categories.json"])
def test_a_file_that_cannot_be_read_is_left_out_with_a_note(folder: Path, name: str) -> None:
    (folder / name).write_text('[{"latent": "x\n')
    notes = shown(folder)["notes"]
    assert notes[1].startswith(f"{name} could not be read")


def test_numbers_that_are_none_become_null_and_keys_text() -> None:
    assert json_ready({1: (float("nan"), float("inf"), 2, True, "x", None)}) == {
        "1": [None, None, 2, True, "x", None]
    }


def test_weights_that_were_recorded_must_be_the_same_to_the_bit(tmp_path: Path) -> None:
    verified, touched = toy_crosscoder(), toy_crosscoder()
    with torch.no_grad():
        touched.b_enc[3] += 1e-6  # which the decoder norms do not show
    for sha256, is_shown in ((None, True), (weights_fingerprint(verified.state_dict()), False)):
        write_toy_verification(tmp_path / "verify", toy_verdicts(verified), toy_config(), weights=sha256)
        assert read(tmp_path, crosscoder=verified) is not None
        if is_shown:
            assert read(tmp_path, crosscoder=touched) is not None
            continue
        with pytest.raises(CheckpointError, match="another crosscoder than the one in this run"):
            read(tmp_path, crosscoder=touched)


def test_rows_of_verdicts_in_another_order_are_refused(folder: Path) -> None:
    table = folder / "verify" / "verdicts.csv"
    head, *rows = table.read_text().splitlines(keepends=True)
    table.write_text("".join([head, *rows[::-1]]))
    write_manifest(folder / "verify")
    with pytest.raises(CheckpointError, match="one row per latent in order"):
        read(folder)


def test_the_paragraphs_are_the_paragraph_under_headings(folder: Path) -> None:
    found = shown(folder)
    assert found["paragraph"] == [text for group in found["paragraphs"] for text in group["sentences"]]
    assert found["paragraphs"][0]["heading"] == "What was looked at"


def test_dead_decoder_rows_are_no_difference(tmp_path: Path) -> None:
    crosscoder = toy_crosscoder()
    with torch.no_grad():
        crosscoder.W_dec[3] = 0
    write_toy_verification(tmp_path / "verify", toy_verdicts(crosscoder), toy_config())
    assert read(tmp_path, crosscoder=crosscoder) is not None
