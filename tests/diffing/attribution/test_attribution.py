"""Effects of latents on logits, against finite differences and ablation by brute force."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from crosscoders.crosscoder import Crosscoder
from crosscoders.diffing.attribution.stream_gradient import Method, path_points
from crosscoders.diffing.attribution.targets import (
    Attribution,
    attribute,
    centered_logit,
    logit_difference,
    target_log_probability,
    target_logit,
)
from crosscoders.diffing.attribution.tokens import attribute_tokens
from crosscoders.harvest import ModelSources, load_sources
from crosscoders.models import load_model
from tests.diffing.attribution.cases import (
    HOOKS,
    N_LATENTS,
    OTHER,
    PLACES,
    SILENT,
    TOKENS,
    WIDTHS,
    contributions,
    lost_by_hand,
    metric_by_hand,
    stream_of,
    targets,
    toy_crosscoder,
    toy_gpt2,
    toy_sources,
)

SOURCES = ("base", "distilled")
SET = torch.tensor([1, 12, 4])


@pytest.fixture
def crosscoder() -> Crosscoder:
    return toy_crosscoder()


@pytest.fixture
def sources() -> ModelSources:
    return toy_sources()


def difference(logits: Tensor) -> Tensor:
    """At the last position but one: the logit of the token that comes minus that of OTHER."""
    read = logits[:, -2]
    return read.gather(1, TOKENS[:, -1:])[:, 0] - read[:, OTHER]


def attributed(
    crosscoder: Crosscoder,
    sources: ModelSources,
    *,
    latents: Tensor | None = None,
    method: Method = "integrated",
    n_steps: int = 12,
    batch_size: int = 3,
) -> Attribution:
    return attribute(
        crosscoder,
        sources,
        TOKENS,
        targets(),
        metric=logit_difference(OTHER),
        latents=latents,
        method=method,
        n_steps=n_steps,
        batch_size=batch_size,
    )


@pytest.mark.parametrize("at_source", [0, 1])
def test_gradient_effects_are_the_slope_of_taking_a_latent_out_of_one_token(
    crosscoder: Crosscoder, sources: ModelSources, at_source: int
) -> None:
    source, step = SOURCES[at_source], 1e-4
    found = attribute_tokens(crosscoder, sources, TOKENS, metric=difference, method="gradient")
    f, rows = contributions(crosscoder, sources, source)
    assert len(found.latents) == int((f > 0).sum())
    for entry in range(0, len(found.latents), 23):
        row, position, latent = (int(each[entry]) for each in (found.rows, found.positions, found.latents))
        assert float(found.activations[entry]) == pytest.approx(float(f[row, position, latent]), rel=1e-9)
        slope, clean = 0.0, stream_of(sources, source)[row]
        for sign in (1, -1):
            stream = clean.clone()
            stream[position] += sign * step * f[row, position, latent] * rows[latent]
            slope += sign * metric_by_hand(source, row, 8, stream) / (2 * step)
        assert float(found.effects[entry, at_source]) == pytest.approx(slope, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("latent", [0, 4, 12])
def test_integrated_effect_of_one_latent_is_its_exact_ablation(
    crosscoder: Crosscoder, sources: ModelSources, latent: int
) -> None:
    found = attributed(crosscoder, sources, latents=torch.tensor([latent]), n_steps=24)
    for at_source, source in enumerate(SOURCES):
        expected = lost_by_hand(crosscoder, sources, source, [latent])
        assert max(abs(e) for e in expected) > 1e-3
        assert_close(found.effects[:, 0, at_source].tolist(), expected, rtol=1e-7, atol=1e-9)
        assert_close(found.removed[:, at_source].tolist(), expected, rtol=1e-9, atol=1e-10)


def test_integrated_effects_of_a_set_add_up_to_what_taking_it_out_does(
    crosscoder: Crosscoder, sources: ModelSources
) -> None:
    for latents in (None, SET):
        chosen = list(range(N_LATENTS)) if latents is None else latents.tolist()
        found = attributed(crosscoder, sources, latents=latents, n_steps=48)
        first_order = attributed(crosscoder, sources, latents=latents, method="gradient")
        for at_source, source in enumerate(SOURCES):
            expected = lost_by_hand(crosscoder, sources, source, chosen)
            assert_close(found.effects[..., at_source].sum(dim=1).tolist(), expected, rtol=1e-6, atol=1e-7)
        assert found.latents.tolist() == chosen
        assert float(found.gap.abs().max()) < 1e-6 * float(first_order.gap.abs().max())


def test_effects_do_not_depend_on_batches_folding_or_the_order_of_the_set(
    crosscoder: Crosscoder, sources: ModelSources
) -> None:
    whole = attributed(crosscoder, sources)
    for other in (
        attributed(crosscoder, sources, batch_size=1),
        attributed(crosscoder.fold(), sources),
    ):
        assert_close(other.effects, whole.effects, rtol=1e-9, atol=1e-12)
    part, turned = (attributed(crosscoder, sources, latents=s) for s in (SET, SET.flip(0)))
    assert_close(part.effects, turned.effects.flip(1), rtol=1e-12, atol=0)
    assert bool((whole.effects[:, SILENT] == 0).all())
    assert whole.rows.tolist() == [row for row, _ in PLACES]


def test_positions_that_do_not_count_have_no_effect(crosscoder: Crosscoder, sources: ModelSources) -> None:
    where = torch.ones_like(TOKENS, dtype=torch.bool)
    where[:, :2] = False
    options = {"metric": difference, "method": "gradient"}
    whole, part = (attribute_tokens(crosscoder, sources, TOKENS, where=w, **options) for w in (None, where))
    is_kept = whole.positions >= 2
    assert_close(part.effects, whole.effects[is_kept])
    assert not bool(is_kept.all())
    found = attribute(crosscoder, sources, TOKENS, targets(), where=where, batch_size=1)
    assert PLACES[3][1] == 1  # nothing that counts stands before this target
    assert bool((found.effects[3] == 0).all() & (found.removed[3] == 0).all())
    assert bool((found.effects[:3] != 0).flatten(1).any(dim=1).all())


def test_metrics_are_what_they_say(crosscoder: Crosscoder, sources: ModelSources) -> None:
    row, position = PLACES[1]
    logits = sources.models["base"].logits(TOKENS[row : row + 1])[0, position - 1]
    target = logits[TOKENS[row, position]]
    expected = {
        target_logit: target,
        centered_logit: target - logits.mean(),
        target_log_probability: target - logits.exp().sum().log(),
        logit_difference(OTHER): target - logits[OTHER],
    }
    for metric, value in expected.items():
        found = attribute(crosscoder, sources, TOKENS, targets(), metric=metric, method="gradient")
        assert_close(found.metric[1, 0], value.double(), rtol=1e-9, atol=1e-12)


def test_models_keep_their_flags_and_get_no_gradients(crosscoder: Crosscoder, sources: ModelSources) -> None:
    lm = sources.models["base"].causal_lm.train()
    lm.transformer.wpe.weight.requires_grad_(False)
    before = {name: p.requires_grad for name, p in lm.named_parameters()}
    crosscoder.train()
    with torch.no_grad():
        found = attributed(crosscoder, sources)
    assert lm.training
    assert crosscoder.training
    assert before == {name: p.requires_grad for name, p in lm.named_parameters()}
    assert all(p.grad is None for p in (*lm.parameters(), *crosscoder.parameters()))
    assert not found.effects.requires_grad
    assert_close(found.effects, attributed(toy_crosscoder(), toy_sources()).effects)


def test_a_bridge_gives_the_same_effects(crosscoder: Crosscoder) -> None:
    models = {name: toy_gpt2(name).float() for name in WIDTHS}
    bridges = {name: load_model(model, name=name).bridge for name, model in models.items()}
    plain, bridged = (load_sources(each, hook_name=HOOKS) for each in (models, bridges))
    crosscoder = crosscoder.float()
    found = [attributed(crosscoder, s, method="gradient").effects for s in (plain, bridged)]
    assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)


def test_quadrature_is_exact_for_polynomials() -> None:
    points = path_points("integrated", n_steps=5)
    for degree in range(10):
        integral = sum(weight * place**degree for place, weight in points)
        assert integral == pytest.approx(1 / (degree + 1), rel=1e-12)
    assert path_points("gradient", n_steps=5) == [(1.0, 1.0)]
    with pytest.raises(ValueError, match="n_steps must be at least 1, got 0"):
        path_points("integrated", n_steps=0)


def test_metrics_that_are_none_raise(crosscoder: Crosscoder, sources: ModelSources) -> None:
    cases = {
        "one floating-point number per row": lambda logits: logits.sum(),
        "the metric is nan for row 0": lambda logits: logits[:, -1, 0] * torch.nan,
        "does not depend on the logits": lambda logits: torch.ones(len(logits)),
    }
    for message, metric in cases.items():
        with pytest.raises(ValueError, match=message):
            attribute_tokens(crosscoder, sources, TOKENS, metric=metric)


def test_other_models_and_latents_that_do_not_exist_raise(
    crosscoder: Crosscoder, sources: ModelSources
) -> None:
    with pytest.raises(ValueError, match="latents \\[20\\] are outside"):
        attributed(crosscoder, sources, latents=torch.tensor([20]))
    with pytest.raises(ValueError, match="the crosscoder reads"):
        attributed(crosscoder, load_sources({"base": toy_gpt2("base")}, hook_name="half"))
    with pytest.raises(ValueError, match="no source is named 'teacher'"):
        attributed(crosscoder, sources, method="gradient").top("teacher")


def test_top_ranks_by_the_size_of_the_signed_mean(crosscoder: Crosscoder, sources: ModelSources) -> None:
    found = attributed(crosscoder, sources, latents=SET)
    by_hand = sorted(range(3), key=lambda j: -abs(float(found.effects[:, j, 1].mean())))
    assert found.top("distilled", n=2).tolist() == [int(SET[j]) for j in by_hand[:2]]
