"""Where codes come from, while generating with and without a cache, padded, batched and in beams."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import Qwen2Config, Qwen2ForCausalLM

from crosscoders.activation_fns import ReLU, TopK
from crosscoders.crosscoder import Crosscoder
from crosscoders.harvest import ModelSources, load_sources
from crosscoders.interventions import Ablate, Clamp, Edit, SteeringHook
from crosscoders.interventions.codes import latent_columns
from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.models import LanguageModel, generate, load_model
from crosscoders.models.follow import Follower
from crosscoders.models.hooks import residual_hook_names
from crosscoders.models.id_policy import IdPolicy, IdRule
from tests.data.toy_models import random_tokens, toy_gpt2, toy_model
from tests.interventions.steering_cases import (
    HOOKS,
    PROMPTS,
    codes_by_hand,
    greedy_by_hand,
    hook_count,
    pair,
    paired_crosscoder,
)

CODES = ("lockstep", "swap", "own")
EDITS: dict[int, Edit] = {
    **dict.fromkeys((1, 7, 11, 20), Ablate()),
    3: Clamp(6.0),
    9: Clamp(5.0, where_active=True),
}
N_NEW = 8


@pytest.fixture(scope="module")
def sources() -> ModelSources:
    return pair()


@pytest.fixture(params=["relu", "topk"], scope="module")
def crosscoder(request: pytest.FixtureRequest) -> Crosscoder:
    return paired_crosscoder({"relu": ReLU(), "topk": TopK(k=8)}[request.param])


def hook_of(crosscoder: Crosscoder, sources: ModelSources, codes: str, **options: object) -> SteeringHook:
    return SteeringHook(
        crosscoder, EDITS, source="distilled", unit="activation", codes=codes, sources=sources, **options
    )


def answers_by_hand(crosscoder: Crosscoder, sources: ModelSources, codes: str) -> list[list[int]]:
    """Every prompt alone, without a cache, each step from whole unedited forwards of both models."""
    rows = crosscoder.decoder("distilled").detach() / 0.25

    def addition(tokens: Tensor) -> Tensor:
        f = codes_by_hand(crosscoder, sources, tokens, codes)
        new = f.clone()
        new[..., [1, 7, 11, 20]] = 0.0
        new[..., 3] = 6.0
        new[..., 9] = torch.where(f[..., 9] > 0, 5.0, 0.0)
        return (new - f) @ rows

    return [greedy_by_hand(sources.models["distilled"], p, addition=addition, n=N_NEW) for p in PROMPTS]


def plain_answers(sources: ModelSources) -> list[list[int]]:
    return generate(sources.models["distilled"], PROMPTS, max_new_tokens=N_NEW, stop_ids=())


def padded(prompts: list[list[int]]) -> dict[str, Tensor]:
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(p)) + p for p in prompts]
    mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def hf_answers(hf_model: Qwen2ForCausalLM, prompts: list[list[int]], **options: object) -> list[list[int]]:
    out = hf_model.generate(
        **padded(prompts),
        max_new_tokens=N_NEW,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        **options,
    )
    return out[:, -N_NEW:].tolist()


@pytest.mark.parametrize("codes", CODES)
def test_generating_equals_a_computation_by_hand(
    crosscoder: Crosscoder, sources: ModelSources, codes: str
) -> None:
    model = sources.models["distilled"]
    by_hand = answers_by_hand(crosscoder, sources, codes)
    assert by_hand != plain_answers(sources)
    with hook_of(crosscoder, sources, codes).on(model):
        assert generate(model, PROMPTS, max_new_tokens=N_NEW, stop_ids=()) == by_hand
        assert generate(model, PROMPTS, max_new_tokens=N_NEW, stop_ids=(), batch_size=1) == by_hand
        assert hf_answers(model.hf_model, PROMPTS) == by_hand
        assert hf_answers(model.hf_model, PROMPTS, use_cache=False) == by_hand
        assert hf_answers(model.hf_model, PROMPTS, cache_implementation="static") == by_hand
    assert plain_answers(sources) != by_hand
    assert [hook_count(m.causal_lm) for m in sources.models.values()] == [0, 0]


def test_the_three_ways_differ(crosscoder: Crosscoder, sources: ModelSources) -> None:
    f = [codes_by_hand(crosscoder, sources, random_tokens(2, 8), codes) for codes in CODES]
    assert [torch.equal(a, b) for a, b in itertools.combinations(f, 2)] == [False] * 3


@pytest.mark.parametrize("which", ["steered", "followed", "both"])
def test_bridges_may_be_steered_and_followed(
    crosscoder: Crosscoder, sources: ModelSources, which: str
) -> None:
    steered = {"steered": "distilled", "followed": "base"}.get(which)
    bridges = {name: m.bridge for name, m in sources.models.items() if steered in (name, None)}
    models = {name: bridges.get(name, m.hf_model) for name, m in sources.models.items()}
    bridged = load_sources(models, hook_name=HOOKS)
    target = bridged.models["distilled"]
    with hook_of(crosscoder, bridged, "lockstep").on(target):
        answers = generate(target, PROMPTS, max_new_tokens=N_NEW, stop_ids=())
        from_hf = hf_answers(target.causal_lm, PROMPTS)
    assert answers == from_hf == answers_by_hand(crosscoder, sources, "lockstep")


def test_rows_that_stop_leave_the_followers_too(crosscoder: Crosscoder, sources: ModelSources) -> None:
    model = sources.models["distilled"]
    with hook_of(crosscoder, sources, "lockstep").on(model):
        free = generate(model, PROMPTS, max_new_tokens=16, stop_ids=())
        stop_ids = {free[0][1], free[3][2]}
        stopped = generate(model, PROMPTS, max_new_tokens=16, stop_ids=stop_ids)
    assert len({len(answer) for answer in stopped}) > 1
    for whole, answer in zip(free, stopped, strict=True):
        assert answer == whole[: len(answer)]


@pytest.mark.parametrize("n_beams", [2, 4])
def test_beam_search_carries_each_beams_codes_along(
    crosscoder: Crosscoder, sources: ModelSources, n_beams: int
) -> None:
    hf_model = sources.models["distilled"].hf_model
    plain = hf_answers(hf_model, PROMPTS, num_beams=n_beams)
    with hook_of(crosscoder, sources, "lockstep").on(hf_model):
        cached, whole = (hf_answers(hf_model, PROMPTS, num_beams=n_beams, use_cache=c) for c in (True, False))
        alone = [hf_answers(hf_model, [p], num_beams=n_beams)[0] for p in PROMPTS]
    assert cached == whole == alone != plain


def test_sources_of_one_model_are_read_in_lockstep_too(crosscoder: Crosscoder) -> None:
    one = toy_model()
    sources = pair(base=one, distilled=one)
    with hook_of(crosscoder, sources, "lockstep").on(one):
        answers = generate(sources.models["distilled"], PROMPTS, max_new_tokens=N_NEW, stop_ids=())
    assert answers == answers_by_hand(crosscoder, sources, "lockstep") != plain_answers(sources)


def test_two_steered_models_read_each_other_unsteered(crosscoder: Crosscoder, sources: ModelSources) -> None:
    model, base = sources.models["distilled"], sources.models["base"]
    other = SteeringHook(crosscoder, {5: 2.0, 6: Ablate()}, source="base", sources=sources)
    with other.on(base), hook_of(crosscoder, sources, "lockstep").on(model):
        answers = generate(model, PROMPTS, max_new_tokens=N_NEW, stop_ids=())
    assert answers == answers_by_hand(crosscoder, sources, "lockstep")


def test_models_of_unequal_widths_go_in_lockstep_but_not_in_swap() -> None:
    models = {"base": toy_model(d_model=8, seed=1), "distilled": toy_model()}
    sources = load_sources(models, hook_name=HOOKS)
    crosscoder, tokens = paired_crosscoder(ReLU(), widths=(8, 16)), random_tokens(2, 6)
    x = sources.harvest(tokens)
    f = crosscoder.encode(x.flatten(0, 1)).detach().view(2, 6, -1)
    rows = crosscoder.decoder("distilled").detach() / 0.25
    hook = SteeringHook(crosscoder, {7: Ablate()}, source="distilled", sources=sources)
    with hook.on(models["distilled"]) as model:
        stream = model.capture(tokens, [HOOKS["distilled"]])[HOOKS["distilled"]]
    assert_close(stream, x[..., 8:] - f[..., 7:8] * rows[7], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"the widths differ: {'base': 8, 'distilled': 16}"):
        SteeringHook(crosscoder, {7: 1.0}, source="distilled", codes="swap")


def test_a_source_reads_its_neutral_token_in_lockstep_as_in_training() -> None:
    sources = pair()
    tokens = random_tokens(2, 6)
    raw = sources.harvest(tokens)
    sources.id_policy = IdPolicy(
        rules=(IdRule(action="replace", token_ids=(int(tokens[0, 1]),), source="base", neutral=4),)
    )
    crosscoder, x = paired_crosscoder(ReLU()), sources.harvest(tokens)
    assert not torch.equal(x, raw)  # so that the follower below could be wrong
    f = crosscoder.encode(x.flatten(0, 1)).detach().view(2, 6, -1)
    row = crosscoder.steering_direction(7, "distilled")
    hook = SteeringHook(crosscoder, {7: Ablate()}, source="distilled", sources=sources)
    with hook.on(sources.models["distilled"]) as model:
        stream = model.capture(tokens, [HOOKS["distilled"]])[HOOKS["distilled"]]
    assert_close(stream, x[..., 16:] - f[..., 7:8] * row, rtol=1e-5, atol=1e-5)


def sliding_model() -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.3,
        use_sliding_window=True, sliding_window=3, max_window_layers=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Qwen2ForCausalLM(config).eval()


@pytest.mark.parametrize("make", [toy_model, toy_gpt2, sliding_model])
@pytest.mark.parametrize("hook_name", residual_hook_names(3))
def test_an_early_stopped_forward_goes_on_right_behind_its_cache(make: object, hook_name: str) -> None:
    read, leader = load_model(make(), name="read"), load_model(toy_model(seed=2), name="leader")
    tokens = random_tokens(2, 9)
    whole = read.capture(tokens, [hook_name])[hook_name]
    follower, cache, seen = Follower(read, [hook_name]), None, []
    with leader.trace_tokens() as trace, torch.no_grad():
        for new in tokens.split([3, 1, 1, 2, 1, 1], dim=1):
            cache = leader.hf_model(new, past_key_values=cache, use_cache=True).past_key_values
            seen.append(follower.read(trace)[hook_name])
    assert_close(torch.cat(seen, dim=1), whole, rtol=1e-4, atol=1e-5)
    assert hook_count(read.hf_model) == 0


def test_a_follower_reads_new_tokens_only_and_again_after_a_crop(sources: ModelSources) -> None:
    read, leader, name = sources.models["base"], sources.models["distilled"].hf_model, HOOKS["base"]
    follower, tokens, n_read = Follower(read, [name]), random_tokens(2, 8), []
    follower._twin.base_model.register_forward_pre_hook(
        lambda m, args, kwargs: n_read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    with sources.models["distilled"].trace_tokens() as trace, torch.no_grad():
        cache = leader(tokens[:, :5], use_cache=True).past_key_values
        follower.read(trace)
        leader(tokens[:, 5:7], past_key_values=cache)
        follower.read(trace)
        cache.crop(-3)
        leader(tokens[:, 6:], past_key_values=cache)
        last = follower.read(trace)[name]
    assert n_read == [5, 2, 6]
    kept = torch.cat([tokens[:, :4], tokens[:, 6:]], dim=1)
    assert_close(last, read.capture(kept, [name])[name][:, -2:], rtol=1e-4, atol=1e-5)


def test_a_follower_reads_without_dropout_and_leaves_the_flags(crosscoder: Crosscoder) -> None:
    base = toy_model(seed=1)
    sources = pair(base=base)
    model, tokens = sources.models["distilled"], random_tokens(2, 9)
    with hook_of(crosscoder, sources, "lockstep").on(model):
        expected = model.logits(tokens)
    base.train()
    for layer in base.model.layers:
        layer.self_attn.attention_dropout = 0.5
    with hook_of(crosscoder, sources, "lockstep").on(model):
        assert torch.equal(model.logits(tokens), expected)
    assert all(child.training for child in base.modules())


def test_columns_of_sparse_latents_are_those_of_dense_ones() -> None:
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)).relu()
    chosen = torch.tensor([31, 0, 39, 5])
    assert torch.equal(latent_columns(SparseLatents.from_dense(x), chosen), x[:, chosen])
    assert torch.equal(latent_columns(x, chosen), x[:, chosen])


def test_what_cannot_be_read_raises(crosscoder: Crosscoder, sources: ModelSources) -> None:
    with pytest.raises(ValueError, match=r"pass sources=load_sources\(.*'base', 'distilled'"):
        SteeringHook(crosscoder, {1: Ablate()}, source="distilled")
    other = load_sources({"base": toy_model(), "distilled": toy_model()}, hook_name="half")
    with pytest.raises(ValueError, match=r"the crosscoder reads .*but the models are"):
        hook_of(crosscoder, other, "lockstep")
    with pytest.raises(ValueError, match="edits source 'distilled', but 'base' is the model of 'base'"):
        hook_of(crosscoder, sources, "lockstep").on(sources.models["base"]).__enter__()
    wide = load_model(toy_model(d_model=32), name="wide")
    with pytest.raises(
        ValueError, match="'distilled' has width 16, but the residual stream of 'wide' has 32"
    ):
        hook_of(crosscoder, sources, "own").on(wide).__enter__()
    bridge = sources.models["distilled"].bridge
    both = load_sources({"base": bridge, "distilled": bridge}, hook_name=HOOKS)
    with pytest.raises(ValueError, match="instead of one bridge for both"):
        hook_of(crosscoder, both, "lockstep").on(bridge).__enter__()
    assert [hook_count(m.causal_lm) for m in sources.models.values()] == [0, 0]


def test_a_follower_names_tokens_that_it_cannot_read(sources: ModelSources) -> None:
    config = Qwen2Config(
        vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=6,
    )  # fmt: skip
    leader = LanguageModel(name="leader", hf_model=toy_model())
    follower = Follower(load_model(Qwen2ForCausalLM(config), name="small"), ["half"])
    with leader.trace_tokens() as trace:
        leader.logits(torch.tensor([[4, 39]]))
        with pytest.raises(ValueError, match="token id 39 lies outside its vocabulary of 20"):
            follower.read(trace)
        padded = torch.tensor([[39, 39, 4, 5]])
        with torch.no_grad():
            leader.hf_model(padded, attention_mask=torch.tensor([[0, 0, 1, 1]]))
        assert next(iter(follower.read(trace).values())).shape == (1, 4, 16)
        leader.logits(torch.full((1, 7), 4))
        with pytest.warns(UserWarning, match="7 tokens exceed the context of 1 model"):
            follower.read(trace)
