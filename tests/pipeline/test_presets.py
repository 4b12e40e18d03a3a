"""Named recipes fill in what a configuration leaves out, and nothing else."""

import pytest

from crosscoders.activation_fns import BatchTopK, ReLU, TopK
from crosscoders.losses import AuxK, DecoderNormL1, Reconstruction
from crosscoders.pipeline.bundled import demo_config, is_bundled
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.presets import PRESETS

OWN = {"base": "a", "distilled": "b", "text": "t.txt", "out": "o"}


def test_the_paper_preset_is_the_papers_recipe():
    config = RunConfig.from_dict({**OWN, "preset": "paper"})
    assert config.activation_fn == ReLU()
    assert config.objective == (Reconstruction(), DecoderNormL1(weight=2.0, warmup_fraction=0.05))
    assert (config.n_latents, config.hook_name) == (32_768, "half")
    assert (config.data.n_tokens, config.data.batch_tokens) == (400_000_000, 4096)
    training = config.training
    assert (training.lr, training.betas, training.max_grad_norm) == (5e-5, (0.9, 0.999), 1.0)
    assert (training.warmup_fraction, training.decay_fraction) == (0.0, 0.2)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_own_values_stand_key_by_key(name):
    own = {**OWN, "preset": name, "n_latents": 700, "data": {"n_tokens": 5}, "training": {"lr": 0.5}}
    config = RunConfig.from_dict(own)
    assert (config.n_latents, config.data.n_tokens, config.training.lr) == (700, 5, 0.5)
    assert config.data.batch_tokens == PRESETS[name]["data"]["batch_tokens"]
    assert config.training.decay_fraction == 0.2


def test_an_own_activation_function_does_not_inherit_a_foreign_objective():
    own = {**OWN, "preset": "paper", "activation_fn": {"kind": "topk", "k": 3}}
    assert RunConfig.from_dict(own).objective == ()
    assert RunConfig.from_dict(own).activation_fn == TopK(k=3)
    field = RunConfig.from_dict({**OWN, "preset": "field"})
    assert field.activation_fn == BatchTopK(k=100)
    assert field.objective == (Reconstruction(), AuxK(weight=1 / 32))


def test_a_config_from_a_preset_round_trips_without_it():
    config = RunConfig.from_dict({**OWN, "preset": "paper", "text": [{"path": "x.txt", "weight": 2}]})
    assert RunConfig.from_dict(config.to_dict()) == config
    assert "preset" not in config.to_dict()


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match=r"preset must be one of \['field', 'paper'\], got 'best'"):
        RunConfig.from_dict({**OWN, "preset": "best"})


def test_the_bundled_pair_brings_its_own_text():
    own = {**OWN, "base": "zoo:tiny-reasoner/base", "text": "mine.txt", "n_latents": 800}
    with pytest.raises(ValueError, match="come with their own text"):
        is_bundled(RunConfig.from_dict(own))
    assert not is_bundled(RunConfig.from_dict({**OWN, "n_latents": 800}))
    assert is_bundled(demo_config("out"))


@pytest.mark.parametrize(
    ("section", "key", "value"), [("data", "n_tokens", -5), ("data", "skip_positions", -1)]
)
def test_numbers_out_of_range_are_refused(section, key, value):
    with pytest.raises(ValueError, match=f"{key} must"):
        RunConfig.from_dict({**OWN, "n_latents": 800, section: {key: value}})
