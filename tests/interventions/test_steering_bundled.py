"""Steering the bundled pair with a crosscoder of its width."""

import pytest
import torch

from crosscoders.activation_fns import TopK
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.harvest import ModelSources, load_sources
from crosscoders.interventions import Ablate, Clamp, SteeringHook
from crosscoders.models import generate
from crosscoders.sources import scale_from_mean_norm
from crosscoders.zoo import model_path
from crosscoders.zoo.base_text import prompt
from crosscoders.zoo.measure import held_out_problems
from crosscoders.zoo.vocabulary import encode

PROMPTS = [list(encode(prompt(problem))) for problem in held_out_problems(3, seed=5)]
PROMPTS[1] = PROMPTS[1][:-2]  # another length
N_NEW = 12


@pytest.fixture(scope="module")
def sources() -> ModelSources:
    return load_sources(
        {name: model_path("tiny-reasoner", name) for name in ("base", "distilled")}, hook_name="half"
    )


@pytest.fixture(scope="module")
def crosscoder(sources: ModelSources) -> Crosscoder:
    """Untrained directions over real activations: scales and the decoder's bias are estimated from them."""
    x = sources.harvest(torch.tensor([PROMPTS[0]]))[0]
    parts = x.split([s.d_model for s in sources.sources], dim=1)
    scales = [scale_from_mean_norm(float(p.norm(dim=1).mean()), p.shape[1]) for p in parts]
    scaled = tuple(
        type(s)(**{**s.to_dict(), "scale": c}) for s, c in zip(sources.sources, scales, strict=True)
    )
    config = CrosscoderConfig(sources=scaled, n_latents=64, activation_fn=TopK(k=16), decoder_init_norm=0.3)
    crosscoder = Crosscoder(config).eval()
    crosscoder.initialize_bias(x)
    return crosscoder


def test_adding_and_subtracting_returns_the_logits(sources: ModelSources, crosscoder: Crosscoder) -> None:
    model, tokens = sources.models["distilled"], torch.tensor([PROMPTS[0]])
    plain = model.logits(tokens)
    for strength in (0.3, 1.0):
        there, back = (SteeringHook(crosscoder, {5: s * strength}, source="distilled") for s in (1, -1))
        with there.on(model):
            assert (model.logits(tokens) - plain).abs().max() > 0.1
            with back.on(model):
                assert (model.logits(tokens) - plain).abs().max() <= 1e-5 * plain.abs().max()
    with SteeringHook(crosscoder, {5: 0.0}, source="distilled").on(model):
        assert torch.equal(model.logits(tokens), plain)


def test_ablating_a_set_is_the_sum_of_the_single_edits(sources: ModelSources, crosscoder: Crosscoder) -> None:
    model, tokens = sources.models["distilled"], torch.tensor([PROMPTS[0]])
    edits = dict.fromkeys(range(0, 64, 3), Ablate())
    whole = SteeringHook(crosscoder, edits, source="distilled", sources=sources)
    halves = [
        SteeringHook(crosscoder, dict.fromkeys(part, Ablate()), source="distilled", sources=sources)
        for part in (list(edits)[::2], list(edits)[1::2])
    ]
    with whole.on(model):
        expected = model.logits(tokens)
    with halves[0].on(model), halves[1].on(model):
        assert (model.logits(tokens) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (model.logits(tokens) - expected).abs().max() > 0.01


@pytest.mark.parametrize("codes", ["lockstep", "swap", "own"])
def test_the_same_tokens_with_and_without_a_cache_and_batch(
    sources: ModelSources, crosscoder: Crosscoder, codes: str
) -> None:
    model = sources.models["distilled"]
    edits = {5: 0.3, 7: Clamp(0.3), **dict.fromkeys(range(20, 60), Ablate())}
    hook = SteeringHook(crosscoder, edits, source="distilled", sources=sources, codes=codes)
    with hook.on(model):
        answers = generate(model, PROMPTS, max_new_tokens=N_NEW, stop_ids=())
        alone = [generate(model, [p], max_new_tokens=N_NEW, stop_ids=())[0] for p in PROMPTS]
        uncached = [
            model.hf_model.generate(
                torch.tensor([p]), attention_mask=torch.ones(1, len(p)), max_new_tokens=N_NEW,
                do_sample=False, eos_token_id=None, pad_token_id=0, use_cache=False,
            )[0, len(p) :].tolist()
            for p in PROMPTS
        ]  # fmt: skip
    assert answers == alone == uncached
    assert answers != generate(model, PROMPTS, max_new_tokens=N_NEW, stop_ids=())
