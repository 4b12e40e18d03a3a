"""`crosscoders store`: what a run's store holds, and that damage is told and mended."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from crosscoders.errors import CheckpointError
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.corpus import training_batches
from crosscoders.pipeline.pair import load_pair, pair_corpus
from crosscoders.pipeline.store_command import add_store_arguments, store_command
from crosscoders.store import ActivationStore
from crosscoders.zoo.recipe import Architecture
from crosscoders.zoo.train import build_model
from crosscoders.zoo.vocabulary import build_tokenizer

SHAPE = Architecture(n_layers=2, d_model=16, d_mlp=16, n_heads=2, n_kv_heads=1)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    for seed, name in enumerate(("base", "distilled")):
        build_model(SHAPE, seed=seed).save_pretrained(folder / name)
        build_tokenizer().save_pretrained(folder / name)
    text = "".join(
        json.dumps({"text": f"Anna found the {color} ball. Wait, said {name}."}) + "\n"
        for color in ("red", "old")
        for name in ("Tom", "Mia") * 20
    )
    (folder / "text.jsonl").write_text(text)
    (folder / "run.toml").write_text(
        f'base = "{folder / "base"}"\ndistilled = "{folder / "distilled"}"\n'
        f'text = "{folder / "text.jsonl"}"\nout = "{folder / "run"}"\nn_latents = 128\n'
        "[data]\nsequence_length = 32\nheld_out_tokens = 100\nskip_positions = 1\nsequences_per_harvest = 4\n"
        f'[system]\nstore = "{folder / "rows"}"\nshard_bytes = 20000\n'
    )
    return folder / "run.toml"


def store_of(*words: object, said: list[str] | None = None) -> str:
    parser = argparse.ArgumentParser()
    add_store_arguments(parser)
    say = None if said is None else said.append
    return store_command(parser.parse_args([str(word) for word in words]), say=say)


def test_fill_harvests_what_a_run_would_and_nothing_twice(config: Path, tmp_path: Path) -> None:
    said: list[str] = []
    told = store_of("fill", config, "--store", tmp_path / "rows", said=said)
    store = ActivationStore(tmp_path / "rows")
    assert len(said) == store.layout.n_shards > 1
    assert f"{store.n_rows} rows of {store.n_batches} token batches" in told
    assert "base: width 16" in told
    assert told.endswith("Complete.")
    said.clear()
    assert store_of("fill", config, "--store", tmp_path / "rows", said=said) == told
    assert said == []
    settings = RunConfig.from_toml(config)
    sources = load_pair(settings, truncate=True)
    corpus = pair_corpus(settings, sources)
    tokens = training_batches(corpus, settings.data)[1]
    rows = sources.harvest(tokens)[corpus.kept(tokens, settings.data)].bfloat16()
    assert torch.equal(store.read(1), rows)
    assert store.about["hook_name"] == "half"


def test_verify_tells_all_faults_and_fill_mends_them(config: Path) -> None:
    store_of("fill", config)
    folder = config.parent / "rows"
    assert "Every byte is as it was written." in store_of("verify", folder)
    (folder / "shard-00000.safetensors").write_bytes(b"")
    (folder / "shard-00001.json").unlink()
    with pytest.raises(CheckpointError, match=r"(?s)2 faults.*shard-00000.*store fill.*shard-00001.*missing"):
        store_of("verify", folder)
    assert "1 shards are missing, the first is 1 (about" in store_of("show", folder)
    said: list[str] = []
    store_of("fill", config, said=said)
    assert [line.split(":")[0] for line in said] == [f"shard-0000{i}.safetensors" for i in (0, 0, 1)]
    assert "Complete." in store_of("show", folder)


def test_a_configuration_without_a_store_and_a_folder_without_one_raise(config: Path, tmp_path: Path) -> None:
    plain = tmp_path / "run.toml"
    plain.write_text(config.read_text().split("[system]")[0])
    with pytest.raises(ValueError, match=r"run.toml: names no store; set \[system\] store"):
        store_of("fill", plain)
    with pytest.raises(CheckpointError, match=r"store.json: no such file"):
        store_of("show", tmp_path)
