"""The report of a finished run end to end: what is in its files, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crosscoders.cli import main
from crosscoders.crosscoder import Crosscoder
from crosscoders.latents import LatentTable
from crosscoders.pipeline.finished import open_sources, read_crosscoder, read_record
from crosscoders.pipeline.pair import pair_corpus
from crosscoders.pipeline.report.options import ReportOptions
from crosscoders.pipeline.report.report import write_report, write_report_on
from crosscoders.pipeline.verify import VerifyOptions, verify
from crosscoders.provenance import sha256_file, weights_fingerprint
from crosscoders.reasoning.snippets import quantile_snippets, top_snippets
from crosscoders.report.site.container import read_site_file
from tests.pipeline.report_cases import toy_run

LITTLE = ReportOptions(n_tokens=1000, steer=(3,))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def report(finished: Path) -> Path:
    return write_report(finished, options=LITTLE)


def content(report: Path, name: str) -> tuple[Any, dict[str, np.ndarray]]:
    return read_site_file(report / "data" / f"{name}.js")


def test_everything_promised_is_there_and_in_the_runs_manifest(report: Path, finished: Path) -> None:
    assert report == finished / "report"
    data = sorted(path.relative_to(report / "data").as_posix() for path in report.glob("data/**/*.js"))
    latents = ["latents/000.js", "latents/001.js"]
    assert data == ["experiments.js", *latents, "overview.js", "table.js", "text.js"]
    said = json.loads((finished / "manifest.json").read_text())["files"]
    for name in ("index.html", "data/table.js", "data/latents/001.js"):
        assert said[f"report/{name}"]["sha256"] == sha256_file(report / name)


def test_a_report_named_inside_the_run_is_in_its_manifest_too(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    written = write_report(tmp_path / "run", out=tmp_path / "run" / "mine", options=ReportOptions(n_tokens=0))
    said = json.loads((tmp_path / "run" / "manifest.json").read_text())["files"]
    assert said["mine/data/table.js"]["sha256"] == sha256_file(written / "data" / "table.js")


def test_the_table_is_the_runs(report: Path, finished: Path) -> None:
    table = LatentTable.from_json(finished / "latents.json")
    said, arrays = content(report, "table")
    assert (said["n_latents"], said["n_tokens"]) == (70, table.n_tokens)
    for name in ("frequency", "nrn_l2", "norm_l2/base", "max_activation"):
        assert np.array_equal(arrays[name], table[name].float().numpy(), equal_nan=True)


def test_snippets_and_their_text_are_those_of_the_snippet_functions(report: Path, finished: Path) -> None:
    _, config = read_record(finished)
    crosscoder, sources = read_crosscoder(finished, config), open_sources(config)
    corpus = pair_corpus(config, sources)
    text, text_arrays = content(report, "text")
    ids = torch.tensor(text_arrays["token_ids"][text_arrays["tokens"]].astype(np.int64)).view(-1, 64)
    is_row = (corpus.held_out[:, None] == ids).all(dim=2).any(dim=0)
    assert bool(is_row.all())
    assert len(ids) > 10
    mask = ~torch.isin(ids, torch.tensor(corpus.exclude_token_ids))
    assert mask.sum() <= 1000
    with torch.no_grad():
        latents = crosscoder.encode(sources.harvest(ids).flatten(0, 1)).to_dense()
    dense = (latents * mask.flatten()[:, None]).T.view(70, *ids.shape)
    for latent in range(70):
        wanted = top_snippets(dense[latent], ids, sources.tokenizer)
        wanted += quantile_snippets(dense[latent], ids, sources.tokenizer)
        found = shown_snippets(report, latent, text["strings"], text_arrays["tokens"])
        # decoding a piece of text drops the space that it begins with
        assert [pieces.lstrip() for pieces, _, _ in found] == ["".join(s.pieces).lstrip() for s in wanted]
        assert [at for _, at, _ in found] == [s.at for s in wanted]
        assert [a for *_, a in found] == pytest.approx([s.activation for s in wanted], rel=1e-3)


def shown_snippets(
    report: Path, latent: int, strings: list[str], tokens: np.ndarray
) -> list[tuple[str, int, float]]:
    _, arrays = content(report, f"latents/{latent // 64:03d}")
    first, stop = arrays["snippet_ptr"][latent % 64 : latent % 64 + 2]
    found = []
    for at in range(first, stop):
        start, length = int(arrays["snippet_start"][at]), int(arrays["snippet_length"][at])
        pieces = "".join(strings[token] for token in tokens[start : start + length])
        found.append((pieces, int(arrays["snippet_at"][at]), float(arrays["snippet_activation"][at])))
    return found


def test_the_tokens_that_a_latent_fires_on_are_parted_by_the_unit_separator(report: Path) -> None:
    text, arrays = content(report, "text")
    (values,) = (one["values"] for one in content(report, "table")[0]["columns"] if one["name"] == "fires_on")
    for latent, value in enumerate(values):
        found = shown_snippets(report, latent, text["strings"], arrays["tokens"])
        pieces = value.split("\u001f") if found else []
        assert len(pieces) <= 3
        assert set(pieces) <= set(text["strings"])
        assert bool(value) == bool(found)
        assert all(any(piece in snippet for snippet, _, _ in found) for piece in pieces)


def test_the_lens_names_strings_of_the_text(report: Path) -> None:
    said, _ = content(report, "text")
    _, arrays = content(report, "latents/000")
    assert arrays["lens_top"].shape == (64, 2, 8)
    assert arrays["lens_top"].max() < len(said["strings"])
    assert (arrays["lens_top_value"][..., 0] > 0).all()
    assert (arrays["lens_bottom_value"][..., 0] < 0).all()


def test_steering_samples_are_those_of_the_latents_asked_for(report: Path) -> None:
    said, _ = content(report, "latents/000")
    assert list(said["steering"]) == ["3"]
    assert {sample["kind"] for sample in said["steering"]["3"]} == {"none", "latent", "random"}


def test_samples_go_on_from_the_prompts_that_were_given(finished: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Wait\n\n  \nSo 2 + 2\n")
    out = tmp_path / "out"
    arguments = ["--n-tokens", "200", "--steer", "3", "--prompts", str(prompts), "--out", str(out)]
    assert main(["report", str(finished), *arguments]) == 0
    samples = content(out, "latents/000")[0]["steering"]["3"]
    shown = list(dict.fromkeys(sample["prompt"] for sample in samples))
    assert [prompt.split() for prompt in shown] == [["Wait"], ["So", "2", "+", "2"]]


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        (b"\n \n", ["--steer", "3"], "holds no prompts; write one in a line"),
        (b"\xff\xfe", ["--steer", "3"], "should be UTF-8 text"),
        (b"Wait", [], "no latents to steer by"),
        (b"Wait", ["--steer", "70"], "not among 0..69"),
    ],
)
def test_prompts_that_cannot_be_used_are_refused_before_the_models_are_opened(
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: bytes,
    arguments: list[str],
    said: str,
) -> None:
    (tmp_path / "prompts.txt").write_bytes(text)
    (finished.parent / "base").rename(tmp_path / "base")
    try:
        asked = ["report", str(finished), "--prompts", str(tmp_path / "prompts.txt"), *arguments]
        assert main(asked) == 2
    finally:
        (tmp_path / "base").rename(finished.parent / "base")
    assert said in capsys.readouterr().err


def test_the_notes_say_how_much_was_read(report: Path) -> None:
    notes = content(report, "overview")[0]["notes"]
    assert any("held-out tokens: " in note and "whole rows" in note for note in notes)
    assert any("the table's frequency, mean and largest activation are of all" in note for note in notes)


def test_without_models_the_rest_is_written_and_the_notes_say_so(finished: Path, tmp_path: Path) -> None:
    for name in ("base", "distilled"):
        (finished.parent / name).rename(tmp_path / name)  # nothing may open them
    try:
        written = write_report(finished, out=tmp_path / "plain", options=ReportOptions(n_tokens=0))
    finally:
        for name in ("base", "distilled"):
            (tmp_path / name).rename(finished.parent / name)
    assert written == tmp_path / "plain"
    assert not (written / "data" / "text.js").exists()
    _, arrays = content(written, "latents/000")
    assert "nearest" in arrays
    assert not {"snippet_ptr", "lens_top", "histogram"} & set(arrays)
    assert any("without the models" in note for note in content(written, "overview")[0]["notes"])


def test_a_report_written_twice_is_the_same_to_the_byte(finished: Path, tmp_path: Path) -> None:
    options = dataclasses.replace(LITTLE, steer=(), harvest_bytes=1, chunk_bytes=10**6)
    first, second = (write_report(finished, out=tmp_path / name, options=options) for name in ("a", "b"))
    files = [path.relative_to(first) for path in first.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files)


def test_the_runs_own_verification_is_shown_and_bound_to_its_weights(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    little = {"n_seeds": 1, "n_null_seeds": 0, "self_diff": False, "spike_in": None, "causal_tokens": 0}
    verify(tmp_path / "run", options=VerifyOptions(**little))
    recorded = json.loads((tmp_path / "run" / "verify" / "run.json").read_text())["data"]["weights_sha256"]
    crosscoder = Crosscoder.from_pretrained(finished / "crosscoder")
    assert recorded == weights_fingerprint(crosscoder.state_dict())
    for is_same in (True, False):
        written = write_report(tmp_path / "run", options=ReportOptions(n_tokens=0))
        overview = content(written, "overview")[0]
        assert (overview["verdicts"] is not None) == is_same
        assert is_same or any("it verified another crosscoder" in note for note in overview["notes"])
        with torch.no_grad():
            crosscoder.b_dec[0] += 1e-6
        crosscoder.save_pretrained(tmp_path / "run" / "crosscoder")


def test_many_firings_lower_the_number_of_tokens_read(finished: Path, tmp_path: Path) -> None:
    options = dataclasses.replace(LITTLE, steer=(), max_firings=2000)
    written = write_report(finished, out=tmp_path / "few", options=options)
    notes = content(written, "overview")[0]["notes"]
    assert any("no more because 4 latents fire on a token" in note for note in notes)
    _, arrays = content(written, "text")
    assert 64 < len(arrays["tokens"]) <= 600


@pytest.mark.parametrize("missing", ["latents.json", "manifest.json"])
def test_a_run_that_is_not_finished_is_refused(finished: Path, tmp_path: Path, missing: str) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / missing).unlink()
    with pytest.raises(ValueError, match="not finished"):
        write_report(tmp_path / "run")


def test_what_does_not_belong_together_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="steer names latents"):
        write_report(finished, options=dataclasses.replace(LITTLE, steer=(70,)))
    _, config = read_record(finished)
    crosscoder, table = read_crosscoder(finished, config), LatentTable.from_json(finished / "latents.json")
    some = table.select(torch.arange(50))
    with pytest.raises(ValueError, match="belong to one run"):
        write_report_on(finished, crosscoder=crosscoder, latents=some, sources=None, corpus=None)
    with pytest.raises(ValueError, match="steering samples need the models"):
        write_report_on(
            finished,
            crosscoder=crosscoder,
            latents=table,
            sources=open_sources(config),
            corpus=None,
            options=LITTLE,
        )


def test_a_folder_of_someone_else_is_refused_before_anything_is_read(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    said: list[str] = []
    with pytest.raises(FileExistsError, match=r"no report\.json"):
        write_report(finished, out=tmp_path, options=LITTLE, say=said.append)
    _, config = read_record(finished)
    crosscoder, table = read_crosscoder(finished, config), LatentTable.from_json(finished / "latents.json")
    given = {"crosscoder": crosscoder, "latents": table, "sources": None, "corpus": None}
    with pytest.raises(FileExistsError, match=r"no report\.json"):
        write_report_on(finished, **given, out=tmp_path, say=said.append)
    assert said == []


def test_changed_text_is_refused(finished: Path) -> None:
    file = finished.parent / "text.txt"
    before = file.read_text()
    file.write_text(before.replace("Wait", "Hold", 1) + "\n\nSo 2 + 2 = 4.")
    try:
        with pytest.raises(ValueError, match="held-out text"):
            write_report(finished, options=LITTLE)
    finally:
        file.write_text(before)
