"""The main job on toy models: what it writes, that it is reproducible, and what it refuses."""

import hashlib
import json
import re
import warnings
from pathlib import Path

import pytest
import torch

from crosscoders.activation_fns import BatchTopK
from crosscoders.cli import main
from crosscoders.crosscoder import Crosscoder
from crosscoders.experiments.opening import open_models
from crosscoders.latents import LatentTable
from crosscoders.pipeline.config import DataConfig, RunConfig
from crosscoders.pipeline.corpus import corpus_from_text
from crosscoders.pipeline.diff import diff
from crosscoders.training import TrainerConfig
from crosscoders.zoo.parser import to_text
from crosscoders.zoo.vocabulary import build_tokenizer
from tests.survival.small_run import make_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    make_pair(str(folder))
    return folder


def config_text(pair: Path, out: Path, extra: str = "") -> str:
    return f"""
base = "{pair / "base"}"
distilled = "{pair / "distilled"}"
text = "{pair / "text.jsonl"}"
out = "{out}"
n_latents = 64
activation_fn = {{kind = "batch_topk", k = 4}}
{extra}
[data]
sequence_length = 64
batch_tokens = 128
held_out_tokens = 500
splice_tokens = 100
[training]
lr = 0.003
"""


def run_cli(pair: Path, out: Path, tmp_path: Path, extra: str = "") -> int:
    file = tmp_path / "run.toml"
    file.write_text(config_text(pair, out, extra))
    return main(["run", str(file)])


def test_run_writes_everything_it_promises(pair, tmp_path, capsys):
    out = tmp_path / "run"
    assert run_cli(pair, out, tmp_path) == 0
    printed = capsys.readouterr().out
    assert "EV base" in printed
    assert "EV diff" in printed
    assert "norm screen" in printed
    record = json.loads((out / "run.json").read_text())
    assert record["config"]["n_latents"] == 64
    assert record["seed"] == 0
    assert record["data"]["train_sha256"]
    assert [term["term"] for term in record["config"]["objective"]] == ["reconstruction", "auxk"]
    assert len(LatentTable.from_json(out / "latents.json")) == 64
    assert Crosscoder.from_pretrained(out / "crosscoder").n_latents == 64
    assert (out / "summary.txt").read_text().strip() == printed.strip()
    manifest = json.loads((out / "manifest.json").read_text())["files"]
    on_disk = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} - {"manifest.json"}
    assert set(manifest) == on_disk
    for name, entry in manifest.items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == entry["sha256"]


def test_same_seed_gives_the_same_weights_and_another_does_not(pair, tmp_path):
    for name, extra in (("a", ""), ("b", ""), ("c", "seed = 1")):
        assert run_cli(pair, tmp_path / name, tmp_path, extra) == 0
    a, b, c = (Crosscoder.from_pretrained(tmp_path / name / "crosscoder") for name in "abc")
    assert torch.equal(a.W_dec, b.W_dec)
    assert torch.equal(a.b_enc, b.b_enc)
    assert not torch.equal(a.W_dec, c.W_dec)


def test_evaluation_holds_baseline_difference_and_splice(pair, tmp_path):
    assert run_cli(pair, tmp_path / "run", tmp_path) == 0
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    scores = evaluation["reconstruction"]["text"]
    assert scores["difference"] is not None
    assert scores["token_means_difference"] is not None
    assert scores["n_tokens"] >= 500
    assert {"kl", "ce_clean", "ce_spliced", "ce_ablated"} <= set(evaluation["splice"]["text"]["base"])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("n_latent = 3", r"unknown keys \['n_latent'\]"),
        ('hook_name = "blocks.7.hook_resid_pre"', "blocks.7.hook_resid_pre"),
        ('objective = [{term = "reconstruction", wieght = 1.0}]', "wieght"),
        ('objective = [{term = "nothing"}]', "must be one of"),
        ('seed = "zero"', "seed must be int, got 'zero'"),
        ("objective = [1]", "run.toml"),
    ],
)
def test_bad_config_ends_with_a_message_and_writes_no_result(pair, tmp_path, capsys, extra, message):
    assert run_cli(pair, tmp_path / "run", tmp_path, extra) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not (tmp_path / "run" / "crosscoder").exists()


def test_too_many_active_latents_names_both_numbers(pair, tmp_path, capsys):
    file = tmp_path / "run.toml"
    file.write_text(config_text(pair, tmp_path / "run").replace("k = 4", "k = 65"))
    assert main(["run", str(file)]) == 2
    error = capsys.readouterr().err
    assert "65" in error
    assert "64" in error


def test_missing_files_and_short_text_are_named(pair, tmp_path, capsys):
    assert (
        main(
            [
                "run",
                "--base",
                "nowhere",
                "--distilled",
                "nowhere",
                "--text",
                "x.txt",
                "--out",
                str(tmp_path / "o"),
                "--n-latents",
                "128",
            ]
        )
        == 2
    )
    assert "nowhere" in capsys.readouterr().err
    short = tmp_path / "short.txt"
    short.write_text("Anna found the red ball.\n")
    with pytest.raises(ValueError, match="give more text"):
        corpus_from_text(short, build_tokenizer(), data=DataConfig(), seed=0)


def test_config_survives_its_own_record(pair, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        config_text(
            pair, tmp_path / "run", 'objective = [{term = "reconstruction"}, {term = "auxk", weight = 0.1}]'
        )
    )
    config = RunConfig.from_toml(file)
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_whole_documents_are_held_out_and_no_token_is_lost(pair, tmp_path):
    file = tmp_path / "numbered.txt"  # every document has words of its own
    file.write_text("\n\n".join(f"{n} + {n} = {2 * n}." for n in range(100, 400)))
    data = DataConfig(sequence_length=8, held_out_tokens=500)
    corpus = corpus_from_text(file, build_tokenizer(), data=data, seed=0)
    parts = [to_text(rows[rows != 0].tolist()).split(".")[:-1] for rows in (corpus.train, corpus.held_out)]
    assert not set(parts[0]) & set(parts[1])
    assert len(parts[0]) + len(parts[1]) == 300
    assert int(corpus.counted(data).sum()) >= 500


def test_asking_for_more_tokens_than_the_text_has_raises(pair):
    data = DataConfig(sequence_length=64, held_out_tokens=500, n_tokens=10_000_000)
    with pytest.raises(ValueError, match="asks for 10000000 tokens"):
        corpus_from_text(pair / "text.jsonl", build_tokenizer(), data=data, seed=0)


def test_a_model_against_itself_runs_through(pair, tmp_path, capsys):
    file = tmp_path / "run.toml"
    file.write_text(config_text(pair, tmp_path / "run").replace('/distilled"', '/base"'))
    assert main(["run", str(file)]) == 0
    assert "norm screen" in capsys.readouterr().out


def test_dropping_outliers_needs_no_length_of_the_run(pair, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(config_text(pair, tmp_path / "run").replace("[data]", "[data]\nmax_norm_multiple = 10.0"))
    assert main(["run", str(file)]) == 0


def test_without_splicing_the_models_are_read_up_to_the_hook_and_the_summary_says_so(pair, tmp_path, capsys):
    file = tmp_path / "run.toml"
    for name, splice_tokens in (("with", 100), ("without", 0)):
        text = config_text(pair, tmp_path / name)
        file.write_text(text.replace("splice_tokens = 100", f"splice_tokens = {splice_tokens}"))
        assert main(["run", str(file)]) == 0
    assert "Not spliced into the models (data.splice_tokens = 0)" in capsys.readouterr().out
    assert json.loads((tmp_path / "without" / "evaluation.json").read_text())["splice"] == {}
    spliced, not_spliced = (
        Crosscoder.from_pretrained(tmp_path / n / "crosscoder") for n in ("with", "without")
    )
    assert torch.equal(spliced.W_dec, not_spliced.W_dec)
    for truncate in (False, True):
        reopened = open_models(tmp_path / "without", truncate=truncate)[1]
        assert reopened.models["base"].is_truncated == truncate
    assert main(["inspect", str(tmp_path / "without"), "--prompt", "w5 w9"]) == 0


def test_models_as_tables_offloaded_and_in_bfloat16_run_and_are_recorded(pair, tmp_path):
    text = config_text(pair, tmp_path / "run")
    for name in ("base", "distilled"):
        line = f'{name} = "{pair / name}"'
        table = f'{name} = {{path = "{pair / name}", dtype = "bfloat16", offload = true}}'
        text = text.replace(line, table)
    file = tmp_path / "run.toml"
    file.write_text(text)
    assert main(["run", str(file)]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert record["base"] == {
        "path": str(pair / "base"), "revision": None, "dtype": "bfloat16", "device": None, "offload": True,
    }  # fmt: skip
    sources = open_models(tmp_path / "run")[1]
    assert {model.dtype for model in sources.models.values()} == {torch.bfloat16}


def test_diff_takes_a_dtype_and_goes_on_where_it_stopped(pair, tmp_path):
    def run_diff(out: Path, **settings: object):
        return diff(
            base=pair / "base", distilled=pair / "distilled", text=pair / "text.jsonl", out=out, n_latents=64,
            activation_fn=BatchTopK(k=4), dtype="bfloat16",
            data=DataConfig(sequence_length=64, batch_tokens=128, held_out_tokens=500, splice_tokens=0),
            training=TrainerConfig(lr=3e-3, checkpoint_every_steps=5), **settings,
        )  # fmt: skip

    first = run_diff(tmp_path / "a")
    assert {m.dtype for m in RunConfig.from_dict(recorded(tmp_path / "a")).models().values()} == {"bfloat16"}
    with pytest.raises(FileExistsError, match="holds checkpoints"):
        run_diff(tmp_path / "a")
    again = run_diff(tmp_path / "a", resume=True)
    assert torch.equal(first.crosscoder.W_dec, again.crosscoder.W_dec)


def recorded(out: Path) -> dict:
    return json.loads((out / "run.json").read_text())["config"]


def test_a_device_that_is_not_there_ends_the_run_before_models_load(pair, tmp_path, capsys):
    absent = f'device = "cuda:{torch.cuda.device_count()}"'
    assert run_cli(pair, tmp_path / "run", tmp_path, absent) == 2
    assert "cannot be used on this machine" in capsys.readouterr().err


def losses(out: Path) -> list[float]:
    header, *rows = (out / "training.csv").read_text().splitlines()
    return [float(row.split(",")[header.split(",").index("loss")]) for row in rows]


def test_a_warm_start_begins_with_the_saved_weights_and_is_recorded(pair, tmp_path, capsys):
    file, saved = tmp_path / "run.toml", str(tmp_path / "a" / "crosscoder")
    file.write_text(config_text(pair, tmp_path / "a") + "log_every_steps = 1\n")
    assert main(["run", str(file)]) == 0
    text = config_text(pair, tmp_path / "b").replace("k = 4", "k = 6") + "log_every_steps = 1\n"
    file.write_text(text)
    assert main(["run", str(file), "--warm-start", saved]) == 0
    assert json.loads((tmp_path / "b" / "run.json").read_text())["data"]["warm_start"]["path"] == saved
    assert losses(tmp_path / "b")[0] < losses(tmp_path / "a")[-1] < 0.8 * losses(tmp_path / "a")[0]
    file.write_text(config_text(pair, tmp_path / "c").replace("n_latents = 64", "n_latents = 32"))
    assert main(["run", str(file), "--warm-start", saved]) != 0
    assert "it has 64 latents" in capsys.readouterr().err


def test_resuming_forgets_no_warm_start_and_a_mistyped_one_spoils_no_finished_run(pair, tmp_path, capsys):
    file, saved = tmp_path / "run.toml", str(tmp_path / "a" / "crosscoder")
    for name, arguments in (("a", []), ("b", ["--warm-start", saved]), ("b", ["--resume"])):
        file.write_text(config_text(pair, tmp_path / name) + "checkpoint_every_steps = 5\n")
        assert main(["run", str(file), *arguments]) == 0
    assert json.loads((tmp_path / "b" / "run.json").read_text())["data"]["warm_start"]["path"] == saved
    assert main(["run", str(file), "--warm-start", str(tmp_path / "nowhere")]) == 2
    assert "warm start from" in capsys.readouterr().err
    assert (tmp_path / "b" / "manifest.json").exists()


def test_a_warning_of_a_run_is_one_line(pair, tmp_path, capsys):
    file = tmp_path / "run.toml"
    text = config_text(pair, tmp_path / "a").replace("sequence_length = 64", "sequence_length = 600")
    file.write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["run", str(file)]) == 0
    printed = capsys.readouterr().err.splitlines()
    assert any(line.startswith("crosscoders: warning: sequences of 600 tokens exceed") for line in printed)
    assert not any("UserWarning" in line for line in printed)
