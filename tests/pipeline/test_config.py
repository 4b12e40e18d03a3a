"""What a configuration says of its models, ids and devices, and what it refuses before anything loads."""

import json
import tomllib
from pathlib import Path

import pytest
import torch

from crosscoders.models.id_policy import IdPolicy, IdRule
from crosscoders.pipeline.config import DataConfig, ModelConfig, RunConfig
from crosscoders.pipeline.model_config import check_device_exists
from crosscoders.pipeline.sweep import Sweep

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES, FIELD = ROOT / "examples", ROOT / "configs" / "field"
OWN = {"base": "a", "distilled": "b", "text": "t.txt", "out": "o", "n_latents": 200}


def test_a_path_and_a_table_name_a_model() -> None:
    config = RunConfig.from_dict({**OWN, "distilled": {"path": "b", "dtype": "bfloat16", "offload": True}})
    assert config.base == "a"
    assert config.models()["base"] == ModelConfig(path="a", dtype="float32", device=None, offload=False)
    assert config.models()["distilled"] == ModelConfig(path="b", dtype="bfloat16", offload=True)
    assert config.models()["distilled"].torch_dtype == torch.bfloat16
    again = RunConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert config.to_dict()["base"] == "a"


@pytest.mark.parametrize(
    "id_policy",
    [
        None,
        "drop",
        "mask",
        [{"action": "mask", "token_ids": [5, 9]}],
        [{"action": "replace", "token_ids": [5], "source": "base", "neutral": "<pad>"}],
    ],
)
def test_the_policy_for_ids_survives_its_own_record(id_policy: object) -> None:
    config = RunConfig.from_dict({**OWN, "data": {"id_policy": id_policy}})
    if isinstance(id_policy, list):
        rule = id_policy[0]
        expected = IdPolicy(rules=(IdRule(**{**rule, "token_ids": tuple(rule["token_ids"])}),))
        assert config.data.id_policy == expected
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base": {"path": "a", "dtyp": "float32"}}, r"unknown keys \['dtyp'\]"),
        ({"base": {"dtype": "float32"}}, r"missing keys \['path'\]"),
        ({"base": {"path": "a", "dtype": "fp8"}}, "dtype must be one of .*got 'fp8'"),
        ({"base": {"path": ""}}, "path is empty"),
        ({"base": {"path": "a", "offload": "yes"}}, "offload must be bool"),
        ({"base": 3}, "base must be"),
        ({"base": {"path": "a", "device": "gpu"}}, "device must be a torch device .*got 'gpu'"),
        ({"device": "graphics"}, "device must be a torch device"),
        ({"n_latents": 0}, "n_latents must be at least 1"),
        ({"n_latents": 50}, "keeps k=100 latents but the crosscoder has only 50"),
        ({"data": {"id_policy": "replace"}}, "id_policy must be 'drop', 'mask' or a list"),
        ({"data": {"id_policy": [{"action": "mask"}]}}, "action and token_ids"),
        ({"data": {"splice_tokens": -1}}, "splice_tokens must not be negative"),
        ({"system": []}, r"\[system\] must be a table"),
        ({"system": {"store": ""}}, "store is empty"),
        ({"system": {"overlap": "async"}}, r"overlap must be one of .*got 'async'"),
        ({"system": {"rows_dtype": "float16"}}, r"rows_dtype must be one of .*got 'float16'"),
        ({"system": {"loggers": ["mlflow"]}}, r"loggers must be one of .*got 'mlflow'"),
        ({"system": {"loggers": ["wandb", "wandb"]}}, "loggers names one twice"),
        ({"system": {"latent_shards": 0}}, "latent_shards must be at least 1"),
        ({"data": {"tokenizer": "r1"}}, "tokenizer must be 'base' or 'distilled' or left out, got 'r1'"),
    ],
)
def test_what_a_configuration_cannot_mean_is_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunConfig.from_dict({**OWN, **values})


def test_a_device_that_this_machine_lacks_is_named_before_anything_loads() -> None:
    check_device_exists("cpu", where="run")
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ValueError, match=f"run: device '{absent}' cannot be used on this machine"):
        check_device_exists(absent, where="run")


def test_the_section_system_survives_its_own_record() -> None:
    values = {"store": "rows", "rows_dtype": "float32", "overlap": "process", "loggers": ["wandb"]}
    config = RunConfig.from_dict({**OWN, "system": values})
    assert (config.system.torch_dtype, config.system.loggers) == (torch.float32, ("wandb",))
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.toml")), ids=lambda path: path.stem)
def test_every_example_configuration_parses(path: Path) -> None:
    if "n_latents" not in (content := tomllib.loads(path.read_text())) and "preset" not in content:
        assert "project" in content  # a package of its own among the examples
        return
    if "sweep" in content:
        assert len(Sweep.from_toml(path).members) > 1
        return
    config = RunConfig.from_toml(path)
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("size", ["1_5b", "7b", "14b"])
def test_the_papers_pairs_are_read_in_bfloat16_within_their_context(size: str) -> None:
    config = RunConfig.from_toml(FIELD / f"r1_distill_qwen_{size}.toml")
    assert {model.dtype for model in config.models().values()} == {"bfloat16"}
    assert (config.device, config.n_latents, config.hook_name) == ("cuda", 32_768, "half")
    assert (config.data.id_policy, config.data.tokenizer) == ("mask", "distilled")
    assert config.data.sequence_length <= 4096
    assert config.data.splice_tokens == (0 if size == "14b" else DataConfig().splice_tokens)
