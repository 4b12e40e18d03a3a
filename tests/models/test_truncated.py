"""Reading a model only up to a hook: same activations, and not a byte more than they need."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel

from crosscoders.errors import AdapterMismatchError, CheckpointError
from crosscoders.models import generate, load_model
from crosscoders.models.follow import Follower
from crosscoders.models.model_config import cut_config, read_config
from crosscoders.models.trace import trace_tokens
from crosscoders.models.truncated import held_bytes, load_truncated, tensor_bytes, truncated_share
from tests.models.checkpoints import (
    LLAMA3,
    N_LAYERS,
    YARN,
    edit_json,
    gpt2,
    llama,
    qwen2,
    qwen3,
    rename_tensors,
    stored_tensors,
    tokens,
    write,
)

HALF = f"blocks.{N_LAYERS // 2}.hook_resid_pre"
HOOKS = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", HALF, "blocks.11.hook_resid_post"]
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen2": qwen2,
    "qwen2 tied": lambda: qwen2(tie_word_embeddings=True),
    "qwen2 sliding": lambda: qwen2(
        use_sliding_window=True, sliding_window=4, max_window_layers=2, layer_types=None
    ),
    "qwen3": qwen3,
    "llama": llama,
    "llama3 rope": lambda: llama(rope_parameters=LLAMA3),
    "yarn rope": lambda: qwen2(rope_parameters=YARN),
    "gpt2": gpt2,
}


def needed_bytes(folder: Path, *, n_layers: int) -> int:
    """Bytes of the embedding and the first blocks, by the names that save_pretrained gives."""
    first = tuple(f"{name}.{i}." for i in range(n_layers) for name in ("model.layers", "transformer.h"))
    embedding = ("model.embed_tokens.", "transformer.wte.", "transformer.wpe.")
    return sum(
        t.nbytes for name, t in stored_tensors(folder).items() if name.startswith((*first, *embedding))
    )


@pytest.mark.parametrize("is_sharded", [False, True])
@pytest.mark.parametrize("is_tied", [False, True])
def test_bytes_read_and_held_are_those_of_embedding_and_needed_blocks(
    tmp_path: Path, is_tied: bool, is_sharded: bool
) -> None:
    folder = write(tmp_path, qwen2(tie_word_embeddings=is_tied), is_sharded=is_sharded)
    for hook_name, n_layers in (("half", 6), ("blocks.3.hook_resid_post", 4), ("blocks.0.hook_resid_pre", 0)):
        loaded = load_truncated(folder, up_to=hook_name)
        expected = needed_bytes(folder, n_layers=n_layers)
        assert loaded.bytes_read == expected
        assert held_bytes(loaded.decoder) == expected
        assert expected < sum(tensor.nbytes for tensor in stored_tensors(folder).values())


@pytest.mark.parametrize(
    ("family", "dtype"),
    [*((family, torch.float32) for family in FAMILIES),
     *((family, torch.bfloat16) for family in ("qwen2 tied", "llama3 rope", "gpt2"))],
)  # fmt: skip
def test_activations_are_those_of_the_whole_model_bit_for_bit(
    tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    folder = write(tmp_path, FAMILIES[family](), is_sharded=True)
    whole = load_model(folder, name="whole", dtype=dtype)
    expected = whole.capture(tokens(3, 40), HOOKS)
    for hook_name in HOOKS:
        model = load_model(folder, name="part", dtype=dtype, up_to=hook_name)
        assert model.hf_model.config._attn_implementation == whole.hf_model.config._attn_implementation
        assert torch.equal(model.capture(tokens(3, 40), [hook_name])[hook_name], expected[hook_name])
    earlier = load_model(folder, name="part", dtype=dtype, up_to="half").capture(tokens(3, 40), HOOKS[:3])
    assert all(torch.equal(earlier[name], expected[name]) for name in HOOKS[:3])


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_the_dtype_on_disk_does_not_matter_beyond_its_rounding(tmp_path: Path, stored: torch.dtype) -> None:
    folder = write(tmp_path, qwen2().to(stored))
    for dtype in (torch.float32, torch.bfloat16):
        whole, part = (load_model(folder, name="m", dtype=dtype, up_to=up_to) for up_to in (None, "half"))
        assert part.dtype == dtype
        assert torch.equal(
            part.capture(tokens(2, 9), [HALF])[HALF], whole.capture(tokens(2, 9), [HALF])[HALF]
        )


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_names_with_and_without_the_base_models_prefix_are_read(tmp_path: Path, family: str) -> None:
    folder = write(tmp_path, FAMILIES[family]())
    expected = load_model(folder, name="part", up_to="half").capture(tokens(2, 9), [HALF])[HALF]
    rename_tensors(folder, lambda name: name.removeprefix("model.").removeprefix("transformer."))
    bare = load_model(folder, name="part", up_to="half")
    assert torch.equal(bare.capture(tokens(2, 9), [HALF])[HALF], expected)


def test_only_the_shards_that_hold_needed_tensors_are_opened(tmp_path: Path) -> None:
    folder = write(tmp_path, qwen2(), is_sharded=True)
    needed = load_truncated(folder, up_to="blocks.1.hook_resid_post").shards
    shards = sorted(folder.glob("*.safetensors"))
    assert 0 < len(needed) < len(shards) / 2
    for shard in shards:
        if shard.name not in needed:
            shard.unlink()
    assert load_truncated(folder, up_to="blocks.1.hook_resid_post").shards == needed
    with pytest.raises(CheckpointError, match="the index names this file, but it is missing"):
        load_truncated(folder, up_to="half")


def test_weights_that_are_merged_while_loading_are_read_in_part(tmp_path: Path) -> None:
    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=3, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    folder = write(tmp_path, MixtralForCausalLM(config).eval())
    name, rows = "blocks.2.hook_resid_pre", tokens(2, 9) % 64
    whole, loaded = load_model(folder, name="whole"), load_truncated(folder, up_to=name)
    part = load_model(folder, name="part", up_to=name)
    assert torch.equal(part.capture(rows, [name])[name], whole.capture(rows, [name])[name])
    assert loaded.bytes_read == held_bytes(loaded.decoder) == needed_bytes(folder, n_layers=2)


@pytest.mark.parametrize("family", ["qwen2", "qwen2 tied", "qwen3", "gpt2"])
def test_bytes_from_the_config_are_those_that_loading_holds(tmp_path: Path, family: str) -> None:
    folder = write(tmp_path, FAMILIES[family]())
    config = read_config(folder)
    for dtype in (torch.float32, torch.bfloat16):
        whole = held_bytes(load_model(folder, name="whole", dtype=dtype).causal_lm)
        assert tensor_bytes(config, up_to=None, dtype=dtype) == whole
        part = load_truncated(folder, up_to="half", dtype=dtype)
        assert tensor_bytes(config, up_to="half", dtype=dtype) == held_bytes(part.decoder)
    assert tensor_bytes(config, up_to="blocks.3.mlp.hook_out", dtype=dtype) == whole


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Qwen2.5-1.5B", 0.5756), ("Qwen2.5-7B", 0.5000), ("Qwen2.5-14B", 0.5000)],
)
def test_the_share_of_real_models_is_that_of_their_shapes(
    data_file: Callable[[str], Path], name: str, expected: float
) -> None:
    config = read_config(data_file(f"configs/{name}.json"))
    d, n_heads = config.hidden_size, config.num_attention_heads
    kv, hidden = d // n_heads * config.num_key_value_heads, config.intermediate_size
    block = 2 * d * d + d + 2 * (d * kv + kv) + 3 * d * hidden + 2 * d
    embedding, n_layers = config.vocab_size * d, config.num_hidden_layers
    whole = embedding * (1 if config.tie_word_embeddings else 2) + n_layers * block + d
    share = truncated_share(config)
    assert share == (embedding + n_layers // 2 * block) / whole
    assert round(share, 4) == expected


def test_a_truncated_model_says_how_far_it_goes(tmp_path: Path) -> None:
    model = load_model(write(tmp_path, qwen2()), name="part", up_to="half")
    assert (model.n_layers, model.n_layers_held, model.is_truncated) == (12, 6, True)
    assert model.resolve_hook("half") == HALF
    same = load_model(model, name="again")
    assert (same.n_layers, same.n_layers_held, same.is_truncated) == (12, 6, True)
    beyond = r"'part' was read only up to 'blocks.6.hook_resid_pre' \(6 of 12 layers\)"
    for name in ("blocks.6.hook_resid_post", "blocks.11.hook_resid_pre", "blocks.2.mlp.hook_out"):
        with pytest.raises(ValueError, match=beyond):
            model.capture(tokens(1, 4), [name])
    with pytest.raises(ValueError, match=f"{beyond}, and the logits"):
        model.logits(tokens(1, 4))
    with pytest.raises(ValueError, match=f"{beyond}, and generation"):
        generate(model, [[1, 2]], max_new_tokens=2, stop_ids=())
    with pytest.raises(ValueError, match=f"{beyond}, and a TransformerBridge"):
        _ = model.bridge
    with pytest.raises(ValueError, match=beyond), model.edit("blocks.7.hook_resid_pre", lambda x: x):
        pass
    with pytest.raises(ValueError, match=r"no hook 'blocks.6.hook_resid_pst'.*'blocks.6.hook_resid_post'"):
        model.resolve_hook("blocks.6.hook_resid_pst")


def test_what_a_layer_returns_is_what_the_next_would_read(tmp_path: Path) -> None:
    folder = write(tmp_path, qwen2())
    model = load_model(folder, name="part", up_to="blocks.3.hook_resid_post")
    both = model.capture(tokens(2, 9), ["blocks.3.hook_resid_post", "blocks.4.hook_resid_pre"])
    assert torch.equal(*both.values())


def test_a_truncated_model_is_edited_and_followed_like_a_whole_one(tmp_path: Path) -> None:
    folder = write(tmp_path, qwen2())
    whole, part = (load_model(folder, name="m", up_to=up_to) for up_to in (None, "half"))
    rows = tokens(2, 9)
    for model in (whole, part):
        with model.edit("blocks.2.hook_resid_post", lambda x: 2.0 * x):
            model.changed = model.capture(rows, [HALF])[HALF]
    assert torch.equal(whole.changed, part.changed)
    follower, seen = Follower(part, [HALF]), []
    with (
        trace_tokens(whole._decoder) as trace,
        whole.edit(HALF, lambda x: seen.append(follower.read(trace)) or x),
    ):
        whole.logits(rows)
    assert torch.equal(seen[0][HALF], whole.capture(rows, [HALF])[HALF])


def test_a_hook_outside_the_residual_stream_reads_the_whole_model(tmp_path: Path) -> None:
    folder = write(tmp_path, qwen2())
    model = load_model(folder, name="m", up_to="blocks.1.mlp.hook_out")
    assert not model.is_truncated
    assert model.capture(tokens(1, 4), ["blocks.1.mlp.hook_out"])["blocks.1.mlp.hook_out"].shape == (1, 4, 16)
    with pytest.raises(ValueError, match="no residual-stream hook"):
        load_truncated(folder, up_to="blocks.1.mlp.hook_out")


def test_hooks_that_do_not_exist_raise_before_anything_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path, qwen2())
    (folder / "model.safetensors").unlink()
    for name in ("blocks.12.hook_resid_pre", "blocks.3.hook_resid_pst"):
        with pytest.raises(ValueError, match=rf"up_to='{name}': a model of 12 layers has no such hook"):
            load_model(folder, name="m", up_to=name)
    with pytest.raises(ValueError, match="up_to='half' is for models that are loaded"):
        load_model(qwen2(), name="m", up_to="half")


def test_loading_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    folder = write(tmp_path, qwen2())
    before = torch.get_rng_state()
    load_model(folder, name="m", up_to="half")
    tensor_bytes(read_config(folder), up_to="half", dtype=torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


def test_lists_with_one_entry_per_layer_are_cut_and_the_given_config_stays() -> None:
    config = qwen2(use_sliding_window=True, sliding_window=4, max_window_layers=2, layer_types=None).config
    before = config.to_dict()
    cut = cut_config(config, n_layers=3)
    assert cut.layer_types == ["full_attention", "full_attention", "sliding_attention"]
    assert (cut.num_hidden_layers, config.to_dict()) == (3, before)


@pytest.mark.parametrize("up_to", [None, "half"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 32}, r"tensor '.*' should have shape \(512, 32\) by the config, got \(512, 16\)"),
        ({"vocab_size": 513}, r"should have shape \(513, 16\)"),
        ({"num_hidden_layers": 13, "layer_types": None}, "missing|layer 12 has no tensors"),
        ({"num_hidden_layers": 11, "layer_types": None}, r"no place in the.*layers\.11\."),
        ({"num_hidden_layers": 9999, "layer_types": None}, "9999 layers, but the files hold"),
        ({"model_type": "llama"}, r"no place in the.*layers\.0\.self_attn\.k_proj\.bias"),
        ({"model_type": "qwen3"}, "missing|should have shape"),
        ({"model_type": "gpt2"}, "missing"),
        ({"hidden_act": "nonsense"}, "cannot build a causal language model"),
        ({"num_attention_heads": "two"}, "no config that transformers can use"),
        ({"model_type": "unheard_of"}, "no config that transformers can use"),
        ({"num_hidden_layers": 10**9, "layer_types": None}, "should lie between 0 and 10000"),
        ({"transformers_weights": "../x.safetensors"}, "transformers_weights names a weight file"),
        ({"attn_implementation": "someone/kernel"}, "names code to be downloaded"),
        ({"model_type": "clip"}, "CLIPConfig"),
    ],
)  # fmt: skip
def test_the_config_of_another_model_is_refused(
    tmp_path: Path, up_to: str | None, changes: dict[str, object], message: str
) -> None:
    folder = write(tmp_path, qwen2())
    edit_json(folder / "config.json", **changes)
    with pytest.raises((CheckpointError, AdapterMismatchError), match=message):
        load_model(folder, name="m", up_to=up_to)


@pytest.mark.parametrize("up_to", [None, "half"])
def test_a_missing_tensor_is_named_and_one_beyond_the_cut_is_not_missed(
    tmp_path: Path, up_to: str | None
) -> None:
    folder = write(tmp_path, qwen2())
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.8.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    if up_to is None:
        with pytest.raises(CheckpointError, match=r"missing, such as model.layers.8.mlp.up_proj.weight"):
            load_model(folder, name="m")
    else:
        assert load_model(folder, name="m", up_to=up_to).n_layers_held == 6
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing, such as model.layers.2.mlp.up_proj.weight"):
        load_model(folder, name="m", up_to=up_to)


@pytest.mark.parametrize("up_to", [None, "half"])
def test_buffers_of_older_releases_are_passed_over(tmp_path: Path, up_to: str | None) -> None:
    folder = write(tmp_path, gpt2())
    expected = load_model(folder, name="m", up_to=up_to).capture(tokens(1, 5), [HALF])[HALF]
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 128, 128)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model = load_model(folder, name="m", up_to=up_to)
    assert torch.equal(model.capture(tokens(1, 5), [HALF])[HALF], expected)
    assert load_truncated(folder, up_to="half").bytes_read == needed_bytes(folder, n_layers=6) - 4 * 128 * 128


def test_quantized_weights_are_read_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = write(tmp_path, qwen2())
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(24, 16, dtype=torch.int8)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"is stored as torch.int8; quantized weights"):
        load_model(folder, name="m", up_to="half")
    edit_json(folder / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(AdapterMismatchError, match="quantized weights can only be read whole"):
        load_model(folder, name="m", up_to="half")
