"""Hooks at one place: clean codes read once, edits that add up, and nothing left behind."""

import itertools
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from crosscoders.activation_fns import ReLU, TopK
from crosscoders.crosscoder import Crosscoder
from crosscoders.harvest import ModelSources
from crosscoders.interventions import Ablate, Add, AddVector, Clamp, Scale, SteeringHook
from crosscoders.interventions.site import _sites
from crosscoders.models import generate, load_model
from crosscoders.models.trace import _shared
from tests.data.toy_models import random_tokens
from tests.interventions.steering_cases import HOOKS, PROMPTS, hook_count, pair, paired_crosscoder

TOKENS = random_tokens(3, 9)
CODES = ("lockstep", "swap", "own")
Hooks = list[SteeringHook | AddVector]


@pytest.fixture(scope="module")
def sources() -> ModelSources:
    return pair()


@pytest.fixture(params=["relu", "topk"], scope="module")
def crosscoder(request: pytest.FixtureRequest) -> Crosscoder:
    return paired_crosscoder({"relu": ReLU(), "topk": TopK(k=8)}[request.param])


def hook(crosscoder: Crosscoder, edits: dict, sources: ModelSources, **options: object) -> SteeringHook:
    return SteeringHook(crosscoder, edits, source="distilled", sources=sources, **options)


def logits_under(sources: ModelSources, hooks: Hooks) -> Tensor:
    model = sources.models["distilled"]
    with ExitStack() as stack:
        for one in hooks:
            stack.enter_context(one.on(model.hf_model))
        return model.logits(TOKENS)


@pytest.mark.parametrize("codes", CODES)
def test_ablating_a_set_is_the_sum_of_the_single_edits(
    crosscoder: Crosscoder, sources: ModelSources, codes: str
) -> None:
    chosen = (1, 2, 7, 11, 20)
    together = hook(crosscoder, dict.fromkeys(chosen, Ablate()), sources, codes=codes)
    single = [hook(crosscoder, {j: Ablate()}, sources, codes=codes) for j in chosen]
    expected = logits_under(sources, [together])
    assert (expected - logits_under(sources, [])).abs().max() > 0.01
    bound = 1e-5 * expected.abs().max()
    assert (logits_under(sources, single) - expected).abs().max() <= bound
    assert (logits_under(sources, single[::-1]) - expected).abs().max() <= bound


@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_adding_and_subtracting_a_direction_returns_the_logits(
    crosscoder: Crosscoder, sources: ModelSources, strength: float
) -> None:
    plain = logits_under(sources, [])
    there, back = (hook(crosscoder, {7: sign * strength}, sources) for sign in (1, -1))
    assert (logits_under(sources, [there]) - plain).abs().max() > 0.1
    for pair_of_hooks in ([there, back], [back, there]):
        change = logits_under(sources, pair_of_hooks) - plain
        assert change.abs().max() <= 1e-5 * plain.abs().max()
    # and where the second place is not the first: after the addition was rounded into the stream
    model = sources.models["distilled"]
    with model.edit(HOOKS["distilled"], lambda stream: stream - there.vector):
        change = logits_under(sources, [there]) - plain
    assert change.abs().max() <= 1e-5 * plain.abs().max()


def test_every_kind_of_hook_adds_up_in_any_order(crosscoder: Crosscoder, sources: ModelSources) -> None:
    vector = torch.randn(16, generator=torch.Generator().manual_seed(3))
    hooks: Hooks = [
        hook(crosscoder, {7: Ablate(), 3: Add(0.2)}, sources),
        hook(crosscoder, {7: Clamp(0.5)}, sources, codes="own", from_position=3),
        hook(crosscoder, {2: Scale(2.0)}, sources, keep_error=False, at_tokens=range(4, 25)),
        AddVector(vector, hook_name=HOOKS["distilled"], positions=(1, 2)),
    ]
    expected = logits_under(sources, hooks)
    for order in itertools.permutations(hooks):
        assert_close(logits_under(sources, list(order)), expected, rtol=1e-5, atol=1e-6)


def test_edits_read_the_clean_activation(crosscoder: Crosscoder, sources: ModelSources) -> None:
    """Summed changes of the stream, each measured alone, are those of the hooks together."""
    model, name = sources.models["distilled"], HOOKS["distilled"]
    clean = model.capture(TOKENS, [name])[name]
    hooks = [hook(crosscoder, {7: 0.8}, sources), hook(crosscoder, {1: Ablate(), 11: Scale(3.0)}, sources)]
    total = clean.clone()
    for one in hooks:
        with one.on(model):
            total += model.capture(TOKENS, [name])[name] - clean
    with hooks[0].on(model), hooks[1].on(model):
        assert_close(model.capture(TOKENS, [name])[name], total, rtol=1e-5, atol=1e-5)


def test_two_full_replacements_drop_the_error_once(crosscoder: Crosscoder, sources: ModelSources) -> None:
    edits = {1: Ablate(), 7: Scale(2.0)}
    both = logits_under(sources, [hook(crosscoder, edits, sources, keep_error=False)])
    single = [hook(crosscoder, {j: edit}, sources, keep_error=False) for j, edit in edits.items()]
    assert_close(logits_under(sources, single), both, rtol=1e-5, atol=1e-5)
    other = hook(crosscoder, edits, sources, keep_error=False, codes="own")
    with pytest.raises(ValueError, match="replace the activation by different reconstructions"):
        logits_under(sources, [single[0], other])
    assert len(_sites) == len(_shared) == 0


@pytest.mark.parametrize("codes", CODES)
def test_codes_are_computed_once_per_forward(sources: ModelSources, codes: str) -> None:
    crosscoder = paired_crosscoder(ReLU())
    hooks = [hook(crosscoder, {j: Ablate()}, sources, codes=codes) for j in (1, 2, 3)]
    encoded: list[int] = []
    crosscoder.activation.register_forward_hook(lambda module, args, output: encoded.append(1))
    logits_under(sources, [*hooks, hook(crosscoder, {4: 1.0}, sources)])
    assert len(encoded) == 1
    logits_under(sources, [hook(crosscoder, {4: 1.0}, sources)])
    assert len(encoded) == 1


@pytest.mark.parametrize("codes", CODES)
def test_composed_hooks_generate_like_one(crosscoder: Crosscoder, sources: ModelSources, codes: str) -> None:
    model = sources.models["distilled"]
    edits = {1: Ablate(), 7: 0.4, 11: Clamp(0.3)}
    with hook(crosscoder, edits, sources, codes=codes).on(model):
        expected = generate(model, PROMPTS, max_new_tokens=10, stop_ids=())
    assert expected != generate(model, PROMPTS, max_new_tokens=10, stop_ids=())
    with ExitStack() as stack:
        for j, edit in edits.items():
            stack.enter_context(hook(crosscoder, {j: edit}, sources, codes=codes).on(model))
        assert generate(model, PROMPTS, max_new_tokens=10, stop_ids=()) == expected


def test_hooks_may_leave_in_any_order(crosscoder: Crosscoder, sources: ModelSources) -> None:
    model = sources.models["distilled"]
    hooks = [hook(crosscoder, {j: Ablate()}, sources, from_position=1) for j in (1, 7)]
    first, second = (one.on(model) for one in hooks)
    with torch.no_grad():
        first.__enter__()
        second.__enter__()
        cache = model.hf_model(TOKENS, use_cache=True).past_key_values
        first.__exit__(None, None, None)
        alone = model.logits(TOKENS)
        second.__exit__(None, None, None)
    assert_close(alone, logits_under(sources, [hooks[1]]))
    assert "reorder_cache" not in vars(cache)
    assert hook_count(model.causal_lm) == len(_sites) == len(_shared) == 0


def test_one_hook_may_act_on_two_models_at_once(crosscoder: Crosscoder, sources: ModelSources) -> None:
    model = sources.models["distilled"]
    one, bridged = hook(crosscoder, {1: Ablate()}, sources), load_model(model.bridge, name="bridge")
    with one.on(model):
        expected = model.logits(TOKENS)
    with one.on(model), one.on(bridged):
        assert torch.equal(model.logits(TOKENS), expected)
        assert_close(bridged.logits(TOKENS), expected, rtol=1e-4, atol=2e-5)
        other = generate(bridged, PROMPTS, max_new_tokens=6, stop_ids=())
        assert generate(model, PROMPTS, max_new_tokens=6, stop_ids=()) == other


def fail_under(sources: ModelSources, hooks: Hooks) -> None:
    with ExitStack() as stack:
        for one in hooks:
            stack.enter_context(one.on(sources.models["distilled"]))
        sources.models["distilled"].logits(TOKENS)
        raise RuntimeError("inside the block")


def test_nothing_stays_behind_after_an_exception(crosscoder: Crosscoder, sources: ModelSources) -> None:
    model, base = sources.models["distilled"], sources.models["base"]
    plain = logits_under(sources, [])
    model.hf_model.train()
    hooks = [hook(crosscoder, {1: Ablate()}, sources, codes=codes, after=3) for codes in CODES]
    with pytest.raises(RuntimeError, match="inside the block"):
        fail_under(sources, hooks)
    with pytest.raises(ValueError, match="must lie in"), hooks[0].on(model):
        model.logits(TOKENS + 40)
    with pytest.raises(ValueError, match="needs input_ids"), hooks[0].on(model):
        model.hf_model(inputs_embeds=torch.zeros(1, 4, 16))
    assert all(child.training for child in model.hf_model.modules())
    model.hf_model.eval()
    assert not any(child.training for child in base.hf_model.modules())
    assert [hook_count(m.causal_lm) for m in (model, base)] == [0, 0]
    assert len(_sites) == len(_shared) == 0
    assert torch.equal(logits_under(sources, []), plain)
