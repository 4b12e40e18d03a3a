"""Families of models: which is recognized by what, and what each check at load catches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from crosscoders.errors import AdapterMismatchError
from crosscoders.models import LanguageModel, load_model
from crosscoders.models.adapters import (
    Generic,
    Qwen2,
    R1DistillQwen,
    adapter_for,
    adapter_for_config,
    validate_model,
)
from tests.data.toy_models import toy_gpt2, toy_model, toy_tokenizer
from tests.models.derived_configs import DERIVED, REAL, narrow_config, narrow_model

FAMILIES = {
    "qwen2": "qwen2", "qwen3": "qwen3", "llama": "llama", "deepseek-r1-distill-qwen": "r1-distill-qwen",
    "deepseek-r1-0528-qwen3": "r1-0528-qwen3", "deepseek-r1-distill-llama": "r1-distill-llama",
}  # fmt: skip


def expected_family(name: str, config: dict[str, Any]) -> str:
    published = next((family for start, family in FAMILIES.items() if name.lower().startswith(start)), None)
    return published or FAMILIES[config["model_type"]]


@pytest.mark.parametrize("name", [*REAL, *(f"{name} (derived)" for name in DERIVED)])
def test_every_config_is_resolved_and_its_narrow_model_is_valid(
    name: str, config_of: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    name = name.removesuffix(" (derived)")
    config = config_of(name)
    adapter = adapter_for_config(config, model_id=f"someone/{name}")
    assert adapter.family == expected_family(name, config)
    assert adapter_for_config(AutoConfig.for_model(**config), model_id=name).family == adapter.family
    hf_model = narrow_model(config)
    validate_model(LanguageModel(name="toy", hf_model=hf_model, model_id=name))
    folder = tmp_path / name
    hf_model.save_pretrained(folder)
    loaded = load_model(folder, name="loaded")
    validate_model(loaded)
    assert adapter_for(loaded).family == adapter.family
    assert loaded.causal_lm.config.tie_word_embeddings == config["tie_word_embeddings"]


@pytest.mark.parametrize("name", [*REAL, *(f"{name} (derived)" for name in DERIVED)])
def test_the_table_of_layer_parameters_is_the_real_models(
    name: str, config_of: Callable[[str], dict[str, Any]]
) -> None:
    config = config_of(name.removesuffix(" (derived)"))
    with torch.device("meta"):
        one_layer = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**{**config, "num_hidden_layers": 1})
        )
    expected = {key: tuple(value.shape) for key, value in one_layer.model.layers[0].named_parameters()}
    assert adapter_for_config(config).layer_parameters(config) == expected


def test_a_config_alone_does_not_tell_a_distill() -> None:
    config = {"model_type": "qwen2", "tie_word_embeddings": False, "max_position_embeddings": 131072}
    assert type(adapter_for_config(config)) is Qwen2
    for model_id in (
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        "/models/deepseek-r1-distill-qwen-14b",
        "/cache/models--deepseek-ai--DeepSeek-R1-Distill-Qwen-7B/snapshots/0123abcd",
    ):
        assert type(adapter_for_config(config, model_id=model_id)) is R1DistillQwen
    for model_id in ("/runs/DeepSeek-R1-Distill-Qwen-1.5B/base", "Qwen/Qwen2.5-Math-1.5B"):
        assert type(adapter_for_config(config, model_id=model_id)) is Qwen2
    llama = {**config, "model_type": "llama"}
    assert adapter_for_config(llama, model_id="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B").family == "llama"


QWEN_TOKENIZER = "tokenizers/qwen2.5"


def r1_tokenizer(data_file: Callable[[str], Path]) -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_file=str(data_file("tokenizers/r1_distill_qwen/tokenizer.assembled.json")),
        bos_token="<\uff5cbegin\u2581of\u2581sentence\uff5c>",
    )


def test_a_tokenizer_tells_a_distill_and_is_named_as_the_evidence(data_file: Callable[[str], Path]) -> None:
    config, r1 = {"model_type": "qwen2"}, r1_tokenizer(data_file)
    qwen = AutoTokenizer.from_pretrained(data_file(QWEN_TOKENIZER))
    found = adapter_for_config(config, tokenizer=r1)
    assert type(found) is R1DistillQwen
    assert "<think> as id 151648" in " ".join(found.recognized_by)
    assert type(adapter_for_config(config, tokenizer=qwen)) is Qwen2
    assert adapter_for_config({"model_type": "qwen3"}, tokenizer=r1).family == "r1-0528-qwen3"
    thinks_without_bos = toy_tokenizer()  # as Qwen3's own tokenizer does
    assert adapter_for_config({"model_type": "qwen3"}, tokenizer=thinks_without_bos).family == "qwen3"


def test_a_distill_with_the_base_models_tokenizer_is_refused(
    data_file: Callable[[str], Path], config_of: Callable[[str], dict[str, Any]]
) -> None:
    name = "DeepSeek-R1-Distill-Qwen-1.5B"
    config = narrow_config(config_of(name), n_layers=1, n_vocab=151936) | {"hidden_size": 8}
    hf_model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    validate_model(
        LanguageModel(name="toy", hf_model=hf_model, model_id=name, tokenizer=r1_tokenizer(data_file))
    )
    qwen = AutoTokenizer.from_pretrained(data_file(QWEN_TOKENIZER))
    with pytest.raises(
        AdapterMismatchError, match=r"'r1-distill-qwen'.* its id is .*at id 151646, found it at None"
    ):
        validate_model(LanguageModel(name="toy", hf_model=hf_model, model_id=name, tokenizer=qwen))


def test_other_architectures_are_checked_as_generic() -> None:
    model = load_model(toy_gpt2(), name="gpt2")
    validate_model(model)
    assert type(adapter_for(model)) is Generic
    assert all(family in repr(adapter_for(model)) for family in ("llama", "qwen2", "qwen3"))
    with pytest.raises(AdapterMismatchError, match=r"without one; known families: .*llama, .*qwen3"):
        adapter_for_config({"hidden_size": 8})


def test_a_bridge_is_checked_like_the_model_inside_it() -> None:
    for hf_model in (toy_model(), toy_gpt2()):
        validate_model(LanguageModel(name="bridge", bridge=load_model(hf_model, name="toy").bridge))
    bridge = load_model(toy_model(), name="toy").bridge
    bridge.original_model.model.layers[1].self_attn.q_proj.original_component.bias = None
    with pytest.raises(
        AdapterMismatchError, match=r"layer 1.*expected self_attn.q_proj.bias \[16\], found none"
    ):
        validate_model(LanguageModel(name="bridge", bridge=bridge))


def test_a_tokenizer_larger_than_the_embedding_is_refused() -> None:
    tokenizer = toy_tokenizer()
    tokenizer.add_tokens(["one more"])
    with pytest.raises(AdapterMismatchError, match="ids up to 40, but the model embeds only 40"):
        load_model(toy_model(), name="toy", tokenizer=tokenizer)
