"""What each edit does to the stream and to the logits."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from crosscoders.activation_fns import BatchTopK, ReLU, TopK
from crosscoders.crosscoder import Crosscoder
from crosscoders.harvest import ModelSources
from crosscoders.interventions import Ablate, Add, Clamp, Edit, Scale, SteeringHook, spliced_logits
from tests.data.toy_models import random_tokens
from tests.interventions.steering_cases import HOOKS, codes_by_hand, pair, paired_crosscoder

TOKENS = random_tokens(3, 9)
CHOSEN = (2, 7, 11, 20)


@pytest.fixture(scope="module")
def sources() -> ModelSources:
    return pair()


@pytest.fixture(params=["relu", "topk", "batch_topk"], scope="module")
def crosscoder(request: pytest.FixtureRequest) -> Crosscoder:
    spec = {"relu": ReLU(), "topk": TopK(k=8), "batch_topk": BatchTopK(k=8)}[request.param]
    made = paired_crosscoder(spec)
    if isinstance(spec, BatchTopK):
        made.activation.calibrate(torch.tensor([0.8]))
    return made


def steered(
    crosscoder: Crosscoder, sources: ModelSources, edits: dict[int, Edit | float], **options: object
) -> tuple[Tensor, Tensor]:
    """The stream at the hook and the logits, under one hook with codes in lockstep unless said otherwise."""
    model = sources.models["distilled"]
    given = {"unit": "activation", "sources": sources, **options}
    with SteeringHook(crosscoder, edits, source="distilled", **given).on(model):
        stream = model.capture(TOKENS, [HOOKS["distilled"]])[HOOKS["distilled"]]
        return stream, model.logits(TOKENS)


def clean(sources: ModelSources) -> tuple[Tensor, Tensor]:
    model = sources.models["distilled"]
    return model.capture(TOKENS, [HOOKS["distilled"]])[HOOKS["distilled"]], model.logits(TOKENS)


@pytest.mark.parametrize("edit", [Add(0.7), Scale(-0.5), Clamp(1.5), Clamp(1.5, where_active=True), Ablate()])
def test_each_edit_adds_the_change_of_activation_times_the_raw_direction(
    crosscoder: Crosscoder, sources: ModelSources, edit: Edit
) -> None:
    f = codes_by_hand(crosscoder, sources, TOKENS, "lockstep")[..., list(CHOSEN)]
    new = {"add": f + 0.7, "scale": -0.5 * f, "ablate": 0.0 * f, "clamp": torch.full_like(f, 1.5)}[edit.kind]
    if isinstance(edit, Clamp) and edit.where_active:
        new = torch.where(f > 0, new, f)
    rows = crosscoder.decoder("distilled")[list(CHOSEN)].detach() / 0.25
    assert 0.1 < (f > 0).float().mean() < 0.9
    stream, _ = steered(crosscoder, sources, dict.fromkeys(CHOSEN, edit))
    assert_close(stream, clean(sources)[0] + (new - f) @ rows, rtol=1e-5, atol=1e-5)


def test_no_strength_and_never_firing_latents_change_no_logit_at_all(sources: ModelSources) -> None:
    crosscoder = paired_crosscoder(TopK(k=4))
    with torch.no_grad():
        crosscoder.b_enc[[2, 7]] = -1e6
    _, logits = clean(sources)
    silent = dict.fromkeys((2, 7), Ablate())
    none_of_it: list[tuple[dict, str]] = [({2: 0.0, 5: 0}, "own"), ({5: Scale(1.0)}, "lockstep")]
    none_of_it += [(silent, codes) for codes in ("lockstep", "swap", "own")]
    for edits, codes in none_of_it:
        assert torch.equal(steered(crosscoder, sources, edits, codes=codes)[1], logits)


def test_ablating_scaling_by_zero_and_clamping_to_zero_are_one(
    crosscoder: Crosscoder, sources: ModelSources
) -> None:
    ablated = steered(crosscoder, sources, dict.fromkeys(CHOSEN, Ablate()))[1]
    assert (ablated - clean(sources)[1]).abs().max() > 0.01
    for same in (Scale(0.0), Clamp(0.0), Clamp(0.0, where_active=True)):
        assert_close(steered(crosscoder, sources, dict.fromkeys(CHOSEN, same))[1], ablated)


def test_clamping_to_its_own_value_changes_nothing(crosscoder: Crosscoder, sources: ModelSources) -> None:
    f = codes_by_hand(crosscoder, sources, TOKENS, "lockstep")[0, 4]
    latent = int(f.argmax())
    model, row = sources.models["distilled"], TOKENS[:1]
    for unit, amount in (("activation", 1.0), ("max_activation", 4.0)):
        limits = {latent: amount} if unit == "max_activation" else None
        hook = SteeringHook(
            crosscoder,
            {latent: Clamp(float(f[latent]) / amount)},
            source="distilled",
            unit=unit,
            max_activations=limits,
            sources=sources,
            positions=(4,),
        )
        with hook.on(model):
            assert_close(model.logits(row), clean(sources)[1][:1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unit", ["residual_norm", "raw", "max_activation", "activation"])
def test_amounts_mean_the_same_to_add_and_to_clamp_a_silent_latent(sources: ModelSources, unit: str) -> None:
    crosscoder = paired_crosscoder(ReLU())
    with torch.no_grad():
        crosscoder.b_enc[7] = -1e6
    options = {"unit": unit, "max_activations": {7: 3.0} if unit == "max_activation" else None}
    added = steered(crosscoder, sources, {7: Add(0.4)}, **options)[0]
    clamped = steered(crosscoder, sources, {7: Clamp(0.4)}, **options)[0]
    assert_close(clamped, added, rtol=1e-5, atol=1e-5)
    assert (added - clean(sources)[0]).abs().max() > 0.01


@pytest.mark.parametrize("codes", ["lockstep", "swap", "own"])
def test_full_replacement_is_the_spliced_reconstruction_of_the_edited_codes(
    crosscoder: Crosscoder, sources: ModelSources, codes: str
) -> None:
    f = codes_by_hand(crosscoder, sources, TOKENS, codes)
    for edits in ({}, {7: Ablate(), 11: Scale(2.0), 2: Add(0.3)}):
        new = f.clone()
        if edits:
            new[..., 7], new[..., 11], new[..., 2] = 0.0, 2 * f[..., 11], f[..., 2] + 0.3
        decoded = crosscoder.decode(new.flatten(0, 1))[:, 16:].detach().view(*TOKENS.shape, 16)
        model = sources.models["distilled"]
        by_hand = spliced_logits(model, TOKENS, hook_name=HOOKS["distilled"], replacement=decoded)
        got = steered(crosscoder, sources, edits, codes=codes, keep_error=False)[1]
        assert_close(got, by_hand, rtol=1e-4, atol=2e-5)


def test_folding_changes_no_edit(crosscoder: Crosscoder, sources: ModelSources) -> None:
    edits = {7: Ablate(), 11: Clamp(2.0), 2: Add(0.3)}
    for keep_error in (True, False):
        plain = steered(crosscoder, sources, edits, unit="residual_norm", keep_error=keep_error)[1]
        folded = steered(crosscoder.fold(), sources, edits, unit="residual_norm", keep_error=keep_error)[1]
        assert_close(folded, plain, rtol=1e-4, atol=1e-4)


def test_positions_limit_every_kind_of_edit(crosscoder: Crosscoder, sources: ModelSources) -> None:
    before, _ = clean(sources)
    for edits, keep_error in (({7: Add(1.0)}, True), ({7: Clamp(1.0)}, True), ({}, False)):
        stream, _ = steered(crosscoder, sources, edits, positions=(0, 3, 5), keep_error=keep_error)
        changed = (stream != before).any(dim=2)
        assert changed.tolist() == [[p in (0, 3, 5) for p in range(9)]] * 3


def test_training_mode_and_gradients_are_left_alone(sources: ModelSources) -> None:
    crosscoder = paired_crosscoder(BatchTopK(k=8))
    crosscoder.activation.calibrate(torch.tensor([0.8]))
    expected = steered(crosscoder, sources, {7: Ablate()}, codes="own")[1]
    crosscoder.train()
    threshold = crosscoder.activation.threshold.clone()
    assert torch.equal(steered(crosscoder, sources, {7: Ablate()}, codes="own")[1], expected)
    assert crosscoder.activation.training
    assert torch.equal(crosscoder.activation.threshold, threshold)
    assert crosscoder.W_enc.grad is None


def test_a_hook_says_what_it_does(sources: ModelSources) -> None:
    crosscoder = paired_crosscoder(ReLU())
    hook = SteeringHook(crosscoder, {3: Clamp(2.0), 4: -0.5}, source="distilled", codes="swap", after=[3, 4])
    assert hook.describe() == {
        "kind": "steering",
        "source": "distilled",
        "hook_name": HOOKS["distilled"],
        "edits": [
            {"latent": 3, "kind": "clamp", "value": 2.0, "where_active": False},
            {"latent": 4, "kind": "add", "strength": -0.5},
        ],
        "unit": "residual_norm",
        "codes": "swap",
        "keep_error": True,
        "where": {"after": [3, 4], "from_position": 0, "positions": None, "at_tokens": None},
    }
    assert SteeringHook(crosscoder, {4: 1}, source="distilled").describe()["codes"] is None


def test_unusable_edits_raise(sources: ModelSources) -> None:
    crosscoder, nan = paired_crosscoder(ReLU()), float("nan")
    for kind in (Add, Scale, Clamp):
        with pytest.raises(ValueError, match="NaN or infinite"):
            kind(nan)
    with pytest.raises(ValueError, match="no entry for latent 0"):
        SteeringHook(
            crosscoder, {0: Clamp(1.0)}, source="base", unit="max_activation", max_activations={}, codes="own"
        )
    with pytest.raises(ValueError, match="finite number above 0 in max_activations, got nan"):
        SteeringHook(
            crosscoder,
            {0: Clamp(1.0)},
            source="base",
            unit="max_activation",
            max_activations={0: nan},
            codes="own",
        )
    with pytest.raises(ValueError, match="latent 24 is outside"):
        SteeringHook(crosscoder, {24: Ablate()}, source="base", codes="own")
    with pytest.raises(ValueError, match="positions is empty"):
        SteeringHook(crosscoder, {0: 1.0}, source="base", positions=())
    with pytest.raises(ValueError, match="at least 0, got from_position=0, positions="):
        SteeringHook(crosscoder, {0: 1.0}, source="base", positions=(2, -1))


@pytest.mark.parametrize("largest", [0.0, -2.0, float("inf"), float("nan")])
def test_a_maximum_that_gives_no_unit_raises(crosscoder: Crosscoder, largest: float) -> None:
    for edit in (1.0, Clamp(0.5)):
        with pytest.raises(ValueError, match=rf"latent 3 .*largest activation.*got {largest}"):
            SteeringHook(
                crosscoder,
                {3: edit},
                source="base",
                unit="max_activation",
                max_activations={3: largest},
                codes="own",
            )


def test_an_amount_of_zero_needs_no_unit(crosscoder: Crosscoder) -> None:
    hook = SteeringHook(crosscoder, {3: 0.0}, source="base", unit="max_activation", max_activations={3: 0.0})
    assert not hook.vector.any()
