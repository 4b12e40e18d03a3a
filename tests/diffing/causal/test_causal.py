"""The causal check: what is patched in, the KL that it closes, controls and intervals."""

import math

import pytest
import torch
from torch import Tensor

from crosscoders.activation_fns import ReLU, TopK
from crosscoders.crosscoder import Crosscoder
from crosscoders.diffing.causal import CausalCheck, causal_check
from crosscoders.diffing.causal.edits import (
    ALL_LATENTS,
    MEANS,
    NO_PATCH,
    RECONSTRUCTION,
    TRUE_DIFFERENCE,
    PatchTokens,
    control_patches,
    draw_controls,
    set_patch,
)
from crosscoders.diffing.causal.result import clustered_ratio
from crosscoders.harvest import ModelSources, load_sources
from tests.data.toy_models import toy_model
from tests.diffing.causal.cases import (
    COLUMNS,
    MASK,
    TOKENS,
    differences_by_hand,
    kl_by_hand,
    streams_by_hand,
)
from tests.interventions.steering_cases import HOOKS, hook_count, pair, paired_crosscoder

CHOSEN = torch.tensor([17, 2, 5])
LIVE = torch.ones(24, dtype=torch.bool)


@pytest.fixture(scope="module")
def sources() -> ModelSources:
    return pair()


@pytest.fixture
def crosscoder() -> Crosscoder:
    return paired_crosscoder(ReLU())


def check(crosscoder: Crosscoder, sources: ModelSources, **options: object) -> CausalCheck:
    given = {"tokens": TOKENS, "mask": MASK, "sets": {"chosen": CHOSEN}, "is_live": LIVE, "n_draws": 2}
    return causal_check(
        crosscoder, sources, generator=torch.Generator().manual_seed(0), **{**given, **options}
    )


def patched_tokens(crosscoder: Crosscoder, sources: ModelSources) -> PatchTokens:
    first, second = crosscoder.sources
    return PatchTokens(crosscoder, sources.harvest(TOKENS).flatten(0, 1), pair=(first, second))


@pytest.mark.parametrize(
    ("names", "folded"),
    [(("base", "distilled"), False), (("distilled", "base"), False), (("base", "distilled"), True)],
)
def test_every_patch_closes_what_a_forward_by_hand_says(
    crosscoder: Crosscoder, sources: ModelSources, names: tuple[str, str], folded: bool
) -> None:
    first, second = names
    x, streams = streams_by_hand(sources)
    parts = differences_by_hand(crosscoder, x, first, second)
    counted = MASK & (torch.arange(9) < 7)
    mean = (streams[second] - streams[first])[MASK].mean(dim=0)
    bias = crosscoder.denormalize(crosscoder.b_dec[None]).detach().double()[0]
    added = {
        NO_PATCH: torch.zeros_like(streams[first]),
        MEANS: mean.expand_as(streams[first]),
        ALL_LATENTS: parts.sum(dim=2),
        RECONSTRUCTION: parts.sum(dim=2) + bias[COLUMNS[second]] - bias[COLUMNS[first]],
        "chosen": parts[:, :, CHOSEN].sum(dim=2),
    }
    used = crosscoder.fold() if folded else crosscoder
    found = check(used, sources, pair=names, counted=counted, mean_difference=mean.float(), n_draws=0)
    scores = {**found.anchors, "chosen": found.sets["chosen"].score}
    assert found.n_tokens == int(counted.sum())
    without = kl_by_hand(second, streams[first], counted)
    true = (streams[second] - streams[first])[MASK].norm(dim=1).mean()
    for name, edit in added.items():
        by_hand = kl_by_hand(second, streams[first] + edit, counted)
        assert scores[name].kl.mean == pytest.approx(float(by_hand), rel=2e-5)
        assert scores[name].share_closed.mean == pytest.approx(float(1 - by_hand / without), abs=2e-5)
        size = float(edit[MASK].norm(dim=1).mean() / true)
        assert scores[name].relative_size == pytest.approx(size, rel=1e-5)


def test_the_true_difference_gives_the_second_model_back(
    crosscoder: Crosscoder, sources: ModelSources
) -> None:
    found = check(crosscoder, sources, n_draws=0)
    true = found.anchors[TRUE_DIFFERENCE]
    assert abs(true.kl.mean) < 1e-7 < found.anchors[NO_PATCH].kl.mean
    assert true.share_closed.mean == pytest.approx(1.0, abs=1e-6)
    assert true.relative_size == 1.0
    assert found.anchors[NO_PATCH].share_closed.mean == found.anchors[NO_PATCH].relative_size == 0.0


def test_a_set_of_every_latent_is_the_anchor_of_all(crosscoder: Crosscoder, sources: ModelSources) -> None:
    found = check(crosscoder, sources, sets={"every": torch.arange(24)}, n_draws=0)
    every, anchor = found.sets["every"].score, found.anchors[ALL_LATENTS]
    assert every.share_closed.mean == pytest.approx(anchor.share_closed.mean, abs=1e-5)
    assert every.share_closed.low == pytest.approx(anchor.share_closed.low, abs=1e-5)


def test_a_latent_that_is_the_mean_difference_does_as_much(
    crosscoder: Crosscoder, sources: ModelSources
) -> None:
    vector = torch.linspace(-2, 3, 16)
    with torch.no_grad():
        crosscoder.W_enc[5], crosscoder.b_enc[5], crosscoder.W_dec[5] = 0.0, 2.0, 0.0
        crosscoder.W_dec[5, 16:] = vector * 0.25 / 2.0
    found = check(crosscoder, sources, sets={"one": torch.tensor([5])}, mean_difference=vector, n_draws=0)
    one, means = found.sets["one"].score, found.anchors[MEANS]
    assert one.kl.mean == pytest.approx(means.kl.mean, rel=1e-5)
    assert one.relative_size == pytest.approx(means.relative_size, rel=1e-5)


def test_controls_keep_what_they_say_they_keep(crosscoder: Crosscoder, sources: ModelSources) -> None:
    tokens, drawn = patched_tokens(crosscoder, sources), torch.tensor([8, 11, 20])
    own = set_patch(CHOSEN)(tokens).added
    controls = {kind: patch(tokens) for kind, patch in control_patches(CHOSEN, drawn).items()}
    parts = differences_by_hand(crosscoder, sources.harvest(TOKENS).double(), "base", "distilled")
    plain = parts[:, :, drawn].sum(dim=2).flatten(0, 1)
    torch.testing.assert_close(controls["count"].added.double(), plain, rtol=1e-4, atol=1e-5)
    wanted, there = own.norm(dim=1) > 0, plain.norm(dim=1) > 0
    for kind, at in (("norm", there), ("identity", wanted)):
        torch.testing.assert_close(controls[kind].added.norm(dim=1)[at], own.norm(dim=1)[at])
    assert 0 < controls["norm"].n_unscalable == int((~there & wanted).sum())
    assert (controls["norm"].added[~there] == 0).all()
    cosines = torch.cosine_similarity(controls["norm"].added.double(), plain)[there & wanted]
    torch.testing.assert_close(cosines, torch.ones_like(cosines), rtol=1e-6, atol=1e-6)
    assert controls["identity"].n_unscalable == controls["count"].n_wanted == 0
    assert controls["identity"].n_wanted == int(wanted.sum())


def test_the_identity_control_has_the_sets_codes_and_the_others_directions(
    crosscoder: Crosscoder, sources: ModelSources
) -> None:
    tokens, one, other = patched_tokens(crosscoder, sources), torch.tensor([2]), torch.tensor([20])
    control = control_patches(one, other)["identity"](tokens).added.double()
    rows = crosscoder.denormalize(crosscoder.W_dec).detach().double()
    direction = rows[20, 16:] - rows[20, :16]
    fires = set_patch(one)(tokens).added.norm(dim=1) > 0
    assert torch.equal(control.norm(dim=1) > 0, fires)
    assert 5 < int(fires.sum()) < 45
    cosines = torch.cosine_similarity(control[fires], direction.expand(int(fires.sum()), -1))
    torch.testing.assert_close(cosines, torch.ones_like(cosines))


def test_controls_draw_as_many_other_live_latents(generator: torch.Generator) -> None:
    live = torch.arange(24) % 2 == 0
    draws = draw_controls(torch.tensor([0, 3, 8]), live, n_draws=400, generator=generator)
    assert {len(set(draw.tolist())) for draw in draws} == {3}
    counts = torch.bincount(torch.cat(draws), minlength=24)
    allowed = set(range(0, 24, 2)) - {0, 8}
    assert set(counts.nonzero().flatten().tolist()) == allowed
    expected = 400 * 3 / len(allowed)  # 120 each, standard deviation below 11
    assert (counts[sorted(allowed)] - expected).abs().max() < 45
    assert draw_controls(torch.arange(24), live, n_draws=0, generator=generator) == []


def test_controls_are_scored_as_sets_of_their_own(crosscoder: Crosscoder, sources: ModelSources) -> None:
    live = torch.zeros(24, dtype=torch.bool)
    live[[8, 11, 20]] = True  # so that every draw is this set
    found = check(crosscoder, sources, is_live=live, n_draws=2)
    other = check(crosscoder, sources, sets={"drawn": torch.tensor([8, 11, 20])}, n_draws=0)
    control, chosen = found.sets["chosen"].controls["count"], found.sets["chosen"].score.share_closed
    drawn = other.sets["drawn"].score.share_closed.mean
    assert control.share_closed == pytest.approx([drawn, drawn], abs=1e-6)
    assert control.advantage.mean == pytest.approx(chosen.mean - drawn, abs=1e-6)
    assert control.advantage.low < control.advantage.mean < control.advantage.high
    assert control.spread == pytest.approx(0.0, abs=1e-6)
    assert math.isnan(control.unscalable)
    scaled = found.sets["chosen"].controls["norm"]
    assert 0 < scaled.unscalable < 1
    assert scaled.share_closed != control.share_closed
    assert found.sets["chosen"].controls["identity"].relative_size == pytest.approx(
        [found.sets["chosen"].score.relative_size] * 2, rel=1e-5
    )


def test_batches_only_share_the_work(sources: ModelSources) -> None:
    crosscoder = paired_crosscoder(TopK(k=6)).train()
    whole, rows = (check(crosscoder, sources, batch_size=size) for size in (5, 1))
    assert crosscoder.training
    a, b = whole.sets["chosen"], rows.sets["chosen"]
    assert a.score.share_closed.low == pytest.approx(b.score.share_closed.low, abs=1e-5)
    for kind in ("count", "norm", "identity"):
        assert a.controls[kind].share_closed == pytest.approx(b.controls[kind].share_closed, abs=1e-5)
        assert a.controls[kind].unscalable == pytest.approx(b.controls[kind].unscalable, nan_ok=True)
    assert [hook_count(model.causal_lm) for model in sources.models.values()] == [0, 0]


def test_positions_outside_the_mask_keep_the_second_models_activation(
    crosscoder: Crosscoder, sources: ModelSources
) -> None:
    later = torch.arange(9).expand(5, 9) >= 6
    found = check(crosscoder, sources, mask=later, counted=~later, n_draws=0)
    assert abs(found.anchors[NO_PATCH].kl.mean) < 1e-9  # patches act on later tokens only


def test_sequences_without_counted_tokens_take_no_part(crosscoder: Crosscoder, sources: ModelSources) -> None:
    counted = MASK.clone()
    counted[[1, 3]] = False
    found = check(crosscoder, sources, counted=counted, n_draws=0)
    kept = torch.tensor([0, 2, 4])
    alone = check(crosscoder, sources, tokens=TOKENS[kept], mask=MASK[kept], n_draws=0)
    assert found.n_sequences == alone.n_sequences == 3
    a, b = found.sets["chosen"].score.share_closed, alone.sets["chosen"].score.share_closed
    assert [a.mean, a.low, a.high] == pytest.approx([b.mean, b.low, b.high], abs=1e-5)
    sizes = [each.sets["chosen"].score.relative_size for each in (found, alone)]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-6)


def test_a_model_against_itself_has_nothing_to_close(crosscoder: Crosscoder) -> None:
    same = pair(base=toy_model(), distilled=toy_model())
    found = check(crosscoder, same, n_draws=1)
    assert found.anchors[NO_PATCH].kl.mean == 0.0
    assert math.isnan(found.sets["chosen"].score.share_closed.mean)
    assert math.isnan(found.sets["chosen"].score.relative_size)
    assert found.sets["chosen"].score.kl.mean > 0  # a wrong patch does harm


def brute_ratio(numerators: Tensor, denominators: Tensor, counts: Tensor) -> tuple[float, float]:
    values = sorted(
        sum(c * a for c, a in zip(row, numerators.tolist(), strict=True))
        / sum(c * b for c, b in zip(row, denominators.tolist(), strict=True))
        for row in counts.tolist()
    )
    ends = [q * (len(values) - 1) for q in (0.025, 0.975)]
    return tuple(
        values[int(e)] + (e - int(e)) * (values[min(int(e) + 1, len(values) - 1)] - values[int(e)])
        for e in ends
    )


def test_the_ratio_is_of_sums_and_its_interval_resamples_sequences(generator: torch.Generator) -> None:
    a, b = torch.rand(2, 7, generator=generator, dtype=torch.float64) + 0.1
    drawn = torch.randint(7, (200, 7), generator=generator)
    counts = torch.stack([torch.bincount(row, minlength=7) for row in drawn]).double()
    found = clustered_ratio(a, b, counts=counts)
    assert found.mean == pytest.approx(float(a.sum() / b.sum()), rel=1e-12)
    assert (found.low, found.high) == pytest.approx(brute_ratio(a, b, counts), rel=1e-9)
    one = clustered_ratio(a[:1], b[:1], counts=counts[:, :1])
    assert math.isnan(one.low)
    assert one.mean == pytest.approx(float(a[0] / b[0]))


def test_the_text_names_sets_anchors_and_controls(crosscoder: Crosscoder, sources: ModelSources) -> None:
    found = check(crosscoder, sources)
    lines = found.lines()
    assert lines[0].startswith(f"base patched toward distilled, {int(MASK.sum())} tokens of 5 sequences")
    share = f"{found.sets['chosen'].score.share_closed.mean:.1%}"
    assert any(share in line for line in lines if "chosen (3 latents)" in line)
    assert sum("control by" in line for line in lines) == 3
    assert found.summary() == "\n".join(lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sets": {"none": CHOSEN[:0]}}, r"empty ones: \['none'\]; without survivors"),
        ({"sets": {}}, "has empty ones"),
        ({"sets": {"far": torch.tensor([24])}}, r"set 'far': latents \[24\] are outside 0..23"),
        ({"is_live": torch.ones(23, dtype=torch.bool)}, "speaks of 23 latents"),
        ({"is_live": torch.arange(24) < 2}, "outside the set of 3 there are 2"),
        ({"counted": torch.zeros_like(MASK)}, "counted asks for 0 tokens"),
        (
            {"mask": torch.arange(5)[:, None] + 0 * TOKENS > 0, "counted": MASK},
            "needs at least one, and all in",
        ),
        ({"n_draws": -1}, "n_draws >= 0"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"pair": ("base", "base")}, "two different sources"),
        ({"mean_difference": torch.zeros(8)}, "width 8, the sources have 16"),
    ],
)
def test_what_cannot_be_checked_raises(
    crosscoder: Crosscoder, sources: ModelSources, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check(crosscoder, sources, **options)


def test_models_that_do_not_fit_raise(
    crosscoder: Crosscoder, sources: ModelSources, tmp_path: object
) -> None:
    with pytest.raises(ValueError, match="needs one width, but 'base' has 8 and 'distilled' has 16"):
        check(paired_crosscoder(ReLU(), widths=(8, 16)), sources)
    other = load_sources({"base": toy_model(), "distilled": toy_model()}, hook_name="blocks.0.hook_resid_pre")
    with pytest.raises(ValueError, match=r"the crosscoder reads .*but the models are"):
        check(crosscoder, other)
    toy_model(seed=1).save_pretrained(f"{tmp_path}/base")
    toy_model().save_pretrained(f"{tmp_path}/distilled")
    folders = {name: f"{tmp_path}/{name}" for name in HOOKS}
    short = load_sources(folders, hook_name=HOOKS, truncate=True)
    with pytest.raises(ValueError, match="the causal check needs more"):
        check(crosscoder, short)
