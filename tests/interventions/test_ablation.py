"""Ablating sets of latents and reading the targets' logits."""

from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from crosscoders.bootstrap import clustered_mean
from crosscoders.crosscoder import Crosscoder
from crosscoders.harvest import ModelSources, load_sources
from crosscoders.interventions.ablation.codes import latent_contribution, read_codes
from crosscoders.interventions.ablation.effects import AblationEffects, LatentEdit, ablation_effects
from crosscoders.interventions.ablation.occurrences import choose_occurrences, single_token_id
from crosscoders.interventions.ablation.replay import replayed_prefix
from crosscoders.models.id_policy import IdPolicy, IdRule
from tests.data.toy_models import toy_model, toy_tokenizer
from tests.interventions.ablation_cases import (
    COLUMNS,
    HOOKS,
    N_LATENTS,
    SCALES,
    SILENT,
    TOKENS,
    at,
    codes_by_hand,
    logits_by_hand,
    toy_crosscoder,
    toy_sources,
)

PLACES = ((0, 3), (2, 8), (0, 7), (3, 1))
SET = torch.tensor([1, 4, 12])


@pytest.fixture
def crosscoder() -> Crosscoder:
    return toy_crosscoder()


@pytest.fixture
def sources() -> ModelSources:
    return toy_sources()


def effects_of(crosscoder: Crosscoder, sources: ModelSources, **edits: LatentEdit) -> AblationEffects:
    return ablation_effects(crosscoder, sources, TOKENS, at(*PLACES), edits, batch_size=3)


def scores_by_hand(logits: Tensor, row: int, position: int) -> list[float]:
    read = logits[position - 1]
    target = read[TOKENS[row, position]]
    return [float(v) for v in (target, target - read.mean(), target - read.exp().sum().log())]


@pytest.mark.parametrize("mode", ["error_preserving", "replacement"])
@pytest.mark.parametrize("source", ["base", "distilled"])
def test_effects_equal_a_forward_by_hand_in_float64(
    crosscoder: Crosscoder,
    sources: ModelSources,
    source: str,
    mode: Literal["error_preserving", "replacement"],
) -> None:
    effects = effects_of(crosscoder, sources, e=LatentEdit(latents=SET, mode=mode))
    activations = sources.harvest(TOKENS)
    f, columns = codes_by_hand(crosscoder, activations), COLUMNS[source]
    rows = crosscoder.W_dec.detach().double()[:, columns] / SCALES[source]
    own = activations[..., columns].double()
    new = own - f[..., SET] @ rows[SET]
    if mode == "replacement":
        f[..., SET] = 0
        new = f @ rows + crosscoder.b_dec.detach().double()[columns] / SCALES[source]
    for which, (row, position) in enumerate(PLACES):
        for found, stream in ((effects.edited["e"], new), (effects.clean, own)):
            logits = logits_by_hand(sources, source, row, stream[row])
            got = [float(getattr(found[source], m)[which]) for m in ("logit", "centered", "log_probability")]
            assert_close(got, scores_by_hand(logits, row, position), rtol=1e-4, atol=1e-4)
        moved = (new - own)[row, position - 1].norm() / own[row, position - 1].norm()
        assert_close(float(effects.relative_size["e"][source][which]), float(moved), rtol=1e-4, atol=0)
    assert effects.change("e", source).logit.abs().max() > 0.01


@pytest.mark.parametrize("latents", [[], [SILENT]])
def test_ablating_nothing_or_a_silent_latent_changes_no_logit_at_all(
    crosscoder: Crosscoder, sources: ModelSources, latents: list[int]
) -> None:
    edit = LatentEdit(latents=torch.tensor(latents, dtype=torch.int64))
    effects = effects_of(crosscoder, sources, e=edit)
    for source in HOOKS:
        change = effects.change("e", source)
        assert max(float(v.abs().max()) for v in vars(change).values()) == 0
        assert float(effects.relative_size["e"][source].abs().max()) == 0


def test_a_set_contributes_the_sum_of_its_latents(crosscoder: Crosscoder, sources: ModelSources) -> None:
    codes = read_codes(crosscoder, sources.harvest(TOKENS).flatten(0, 1))
    whole = latent_contribution(crosscoder, codes, SET)
    singles = [latent_contribution(crosscoder, codes, SET[i : i + 1]) for i in range(len(SET))]
    assert_close(whole, torch.stack(singles).sum(dim=0), rtol=1e-5, atol=1e-5 * float(whole.abs().max()))
    everything = latent_contribution(crosscoder, codes, torch.arange(N_LATENTS))
    bias = crosscoder.denormalize(crosscoder.b_dec.detach()[None])
    assert_close(everything + bias, crosscoder.decode(codes).detach())


def test_folding_changes_no_effect(crosscoder: Crosscoder, sources: ModelSources) -> None:
    edits = {m: LatentEdit(latents=SET, mode=m) for m in ("error_preserving", "replacement")}
    plain = effects_of(crosscoder, sources, **edits)
    folded = effects_of(crosscoder.fold(), sources, **edits)
    for mode in edits:
        before, after = (e.change(mode, "distilled").logit for e in (plain, folded))
        assert_close(before, after, rtol=1e-4, atol=1e-5)


def test_matching_norms_gives_the_same_relative_size_token_by_token(
    crosscoder: Crosscoder, sources: ModelSources
) -> None:
    edits = {
        "plain": LatentEdit(latents=SET),
        "matched": LatentEdit(latents=SET, norm_from="distilled", sources=("base",)),
    }
    effects = effects_of(crosscoder, sources, **edits)
    size = effects.relative_size
    assert_close(size["matched"]["base"], size["plain"]["distilled"], rtol=1e-5, atol=0)
    assert float((size["matched"]["base"] / size["plain"]["base"] - 1).abs().max()) > 0.1
    assert list(effects.edited["matched"]) == ["base"]
    assert effects.n_unscalable["matched"] == {"base": 0}


def test_an_edit_that_cannot_be_rescaled_is_counted_and_left_out(
    crosscoder: Crosscoder, sources: ModelSources
) -> None:
    with torch.no_grad():
        crosscoder.W_dec[4, COLUMNS["base"]] = 0
    edit = LatentEdit(latents=torch.tensor([4]), norm_from="distilled")
    effects = effects_of(crosscoder, sources, e=edit)
    f = codes_by_hand(crosscoder, sources.harvest(TOKENS))[..., 4]
    read = {(row, at) for row, position in PLACES for at in range(position)}  # (0, 3) lies within (0, 7)
    fired = sum(bool(f[row, at] > 0) for row, at in read)
    assert effects.n_unscalable["e"] == {"base": fired, "distilled": 0}
    assert float(effects.change("e", "base").logit.abs().max()) == 0
    assert float(effects.change("e", "distilled").logit.abs().max()) > 0


def test_an_edit_takes_the_size_of_another_set_in_each_source(
    crosscoder: Crosscoder, sources: ModelSources
) -> None:
    other = torch.tensor([3])
    edits = {
        "set": LatentEdit(latents=SET),
        "drawn": LatentEdit(latents=other),
        "sized": LatentEdit(latents=other, size_of=SET),
        "itself": LatentEdit(latents=SET, size_of=SET),
    }
    effects = effects_of(crosscoder, sources, **edits)
    codes = codes_by_hand(crosscoder, sources.harvest(TOKENS))
    fires = torch.tensor([bool(codes[row, position - 1, 3] > 0) for row, position in PLACES])
    of_set = codes[..., SET].sum(dim=-1) > 0
    read = {(row, at) for row, position in PLACES for at in range(position)}
    silent = sum(bool(of_set[row, at]) and codes[row, at, 3] == 0 for row, at in read)
    assert 0 < silent < len(read)
    assert int(fires.sum()) > 0
    for source in HOOKS:
        size = {name: effects.relative_size[name][source] for name in edits}
        assert_close(size["sized"], torch.where(fires, size["set"], 0.0), rtol=1e-5, atol=0)
        assert float((size["drawn"] - size["set"])[fires].abs().max()) > 0.01
        assert effects.n_unscalable["sized"][source] == int(silent)
        itself, plain = (effects.change(name, source).logit for name in ("itself", "set"))
        assert_close(itself, plain, rtol=1e-4, atol=1e-5)


def test_a_sized_edit_keeps_its_direction(crosscoder: Crosscoder, sources: ModelSources) -> None:
    hundredth = crosscoder.W_dec.detach()[SET] / 100
    edits = {
        "set": LatentEdit(latents=SET),
        "small": LatentEdit(latents=SET, decoder=hundredth),
        "sized": LatentEdit(latents=SET, decoder=hundredth, size_of=SET),
    }
    effects = effects_of(crosscoder, sources, **edits)
    change = {name: effects.change(name, "base").logit for name in edits}
    assert_close(change["sized"], change["set"], rtol=1e-3, atol=1e-5)
    assert float((change["small"] - change["set"]).abs().max()) > 0.01


def test_only_chosen_positions_are_edited(crosscoder: Crosscoder, sources: ModelSources) -> None:
    where = torch.zeros_like(TOKENS, dtype=torch.bool)
    for row, position in PLACES:
        where[row, position - 1] = True
    apart = at(*(place for place in PLACES if place != (0, 7)))  # one target a row
    edits = {"e": LatentEdit(latents=SET)}
    by_option = ablation_effects(crosscoder, sources, TOKENS, apart, edits, positions="target")
    by_mask = ablation_effects(crosscoder, sources, TOKENS, apart, edits, where=where)
    everywhere = ablation_effects(crosscoder, sources, TOKENS, apart, edits)
    logit = [e.edited["e"]["distilled"].logit for e in (by_option, by_mask, everywhere)]
    assert torch.equal(logit[0], logit[1])
    assert float((logit[0] - logit[2])[:2].abs().max()) > 1e-4
    nowhere = ablation_effects(crosscoder, sources, TOKENS, apart, edits, where=torch.zeros_like(where))
    assert torch.equal(nowhere.edited["e"]["base"].logit, nowhere.clean["base"].logit)


def test_two_targets_of_a_row_do_not_disturb_each_other(
    crosscoder: Crosscoder, sources: ModelSources
) -> None:
    edits = {"e": LatentEdit(latents=SET)}
    both = ablation_effects(crosscoder, sources, TOKENS, at((0, 3), (0, 7)), edits, positions="target")
    alone = ablation_effects(crosscoder, sources, TOKENS, at((0, 7)), edits, positions="target")
    assert_close(both.edited["e"]["base"].logit[1:], alone.edited["e"]["base"].logit)


def test_edits_leave_no_trace(crosscoder: Crosscoder, sources: ModelSources) -> None:
    before = {name: model.logits(TOKENS) for name, model in sources.models.items()}
    crosscoder.train()
    effects_of(crosscoder, sources, e=LatentEdit(latents=SET))
    assert crosscoder.training
    for name, model in sources.models.items():
        assert torch.equal(model.logits(TOKENS), before[name])


@pytest.mark.parametrize("hook_name", ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_post"])
def test_a_replayed_prefix_gives_the_same_logits_and_runs_once(sources: ModelSources, hook_name: str) -> None:
    model, calls = sources.models["base"], []
    inner = model.causal_lm.model.layers[0].mlp
    forward = inner.forward
    inner.forward = lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    with model.edit(hook_name, lambda stream: 1.5 * stream):
        expected = model.logits(TOKENS)
    calls.clear()
    with replayed_prefix(model, TOKENS, hook_name=hook_name) as clean:
        for _ in range(3):
            with model.edit(hook_name, lambda stream: 1.5 * stream):
                assert torch.equal(model.logits(TOKENS), expected)
    assert len(calls) == (4 if "pre" in hook_name else 1)
    assert torch.equal(model.logits(TOKENS), clean)
    with pytest.raises(RuntimeError, match="boom"), replayed_prefix(model, TOKENS, hook_name=hook_name):
        raise RuntimeError("boom")
    assert torch.equal(model.logits(TOKENS), clean)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("part", ["layer", "mlp"])
def test_other_hooks_below_act_once(
    crosscoder: Crosscoder, sources: ModelSources, register: str, part: str
) -> None:
    layer = sources.models["distilled"].causal_lm.model.layers[0]
    module = layer if part == "layer" else layer.mlp

    def scaled(module: object, args: tuple, output: Tensor | None = None) -> Tensor | tuple:
        return 1.5 * output if output is not None else (1.5 * args[0], *args[1:])

    getattr(module, register)(scaled)
    nothing = LatentEdit(latents=torch.zeros(0, dtype=torch.int64))
    effects = effects_of(crosscoder, sources, e=nothing, f=LatentEdit(latents=SET))
    assert float(effects.change("e", "distilled").logit.abs().max()) == 0
    assert float(effects.change("f", "distilled").logit.abs().max()) > 0.001


def test_bad_input_says_what_is_wrong(crosscoder: Crosscoder, sources: ModelSources) -> None:
    edit = LatentEdit(latents=SET)
    with pytest.raises(ValueError, match=r"latents \[99\] are outside 0..19"):
        effects_of(crosscoder, sources, e=LatentEdit(latents=torch.tensor([99])))
    with pytest.raises(ValueError, match="named more than once"):
        effects_of(crosscoder, sources, e=LatentEdit(latents=torch.tensor([1, 1])))
    with pytest.raises(ValueError, match=r"names \['other'\]; the sources are \['base', 'distilled'\]"):
        effects_of(crosscoder, sources, e=LatentEdit(latents=SET, norm_from="other"))
    with pytest.raises(ValueError, match="go with mode='error_preserving' only"):
        LatentEdit(latents=SET, mode="replacement", norm_from="distilled")
    with pytest.raises(ValueError, match="go with mode='error_preserving' only"):
        LatentEdit(latents=SET, mode="replacement", size_of=SET)
    with pytest.raises(ValueError, match="norm_from or size_of, not both"):
        LatentEdit(latents=SET, norm_from="distilled", size_of=SET)
    with pytest.raises(ValueError, match=r"size_of of edit 'e': latents \[99\] are outside 0..19"):
        effects_of(crosscoder, sources, e=LatentEdit(latents=SET, size_of=torch.tensor([99])))
    with pytest.raises(ValueError, match="one decoder row per latent, got 1 rows for 3"):
        LatentEdit(latents=SET, decoder=torch.zeros(1, 24))
    with pytest.raises(ValueError, match="width 5, but the crosscoder's have 24"):
        effects_of(crosscoder, sources, e=LatentEdit(latents=SET, decoder=torch.zeros(3, 5)))
    with pytest.raises(ValueError, match="positions 9 to 9; a position must be at least 1"):
        ablation_effects(crosscoder, sources, TOKENS, at((0, 9)), {"e": edit})
    wider = load_sources({"base": toy_model(), "distilled": toy_model()}, hook_name=HOOKS)
    with pytest.raises(ValueError, match="'distilled', 16"):
        effects_of(crosscoder, wider, e=edit)
    none = choose_occurrences(TOKENS < 0, n=1, generator=torch.Generator().manual_seed(0), when_none="skip")
    with pytest.raises(ValueError, match="got no occurrences"):
        ablation_effects(crosscoder, sources, TOKENS, none, {"e": edit})


def test_occurrences_spread_over_rows_and_follow_a_counted_token() -> None:
    mask, counted = torch.zeros(6, 10, dtype=torch.bool), torch.ones(6, 10, dtype=torch.bool)
    mask[:5, ::2] = True
    counted[0] = counted[1, 3] = False  # the target at (1, 4) follows a token that does not count
    chosen = choose_occurrences(mask, n=6, generator=torch.Generator().manual_seed(1), counted=counted)
    assert (len(chosen), chosen.n_rows, chosen.n_available, chosen.n_asked) == (6, 4, 15, 6)
    assert bool((mask[chosen.rows, chosen.positions] & counted[chosen.rows, chosen.positions - 1]).all())
    assert len(set(zip(chosen.rows.tolist(), chosen.positions.tolist(), strict=True))) == 6
    again = choose_occurrences(mask, n=6, generator=torch.Generator().manual_seed(1), counted=counted)
    other = choose_occurrences(mask, n=6, generator=torch.Generator().manual_seed(2), counted=counted)
    assert torch.equal(chosen.positions, again.positions)
    assert not torch.equal(chosen.positions, other.positions)
    few = choose_occurrences(mask, n=100, generator=torch.Generator().manual_seed(1), counted=counted)
    assert (len(few), few.n_asked) == (15, 100)


def test_a_category_without_occurrences_raises_or_is_skipped(generator: torch.Generator) -> None:
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[:, 0] = True
    with pytest.raises(ValueError, match="2 target tokens in 2 rows, and none"):
        choose_occurrences(mask, n=5, generator=generator)
    assert len(choose_occurrences(mask, n=5, generator=generator, when_none="skip")) == 0
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        choose_occurrences(mask, n=0, generator=generator)


def test_a_target_word_must_be_one_token() -> None:
    tokenizer = toy_tokenizer()
    assert single_token_id(tokenizer, "w9") == 9
    with pytest.raises(ValueError, match=r"'w9 w4' is 2: \['w9', 'w4'\]"):
        single_token_id(tokenizer, "w9 w4")
    with pytest.raises(ValueError, match="not in the vocabulary"):
        single_token_id(tokenizer, "Wait")
    with pytest.raises(ValueError, match="is 0"):
        single_token_id(tokenizer, "")


def test_intervals_resample_whole_rows(generator: torch.Generator) -> None:
    rows = torch.arange(40).repeat_interleave(5)
    of_row = torch.randn(40, generator=generator).double()
    values = of_row[rows]
    clustered = clustered_mean(values, rows, generator=generator, n_resamples=4000)
    standard_error = float(of_row.std(correction=0)) / 40**0.5
    assert_close(clustered.mean, float(values.mean()))
    assert_close(clustered.high - clustered.low, 2 * 1.96 * standard_error, rtol=0.08, atol=0)
    assert (clustered.n, clustered.is_below_zero) == (40, clustered.high < 0)
    naive = clustered_mean(values, torch.arange(200), generator=generator, n_resamples=4000)
    assert naive.high - naive.low < 0.6 * (clustered.high - clustered.low)


def test_intervals_of_one_row_are_undefined_and_bad_values_raise(generator: torch.Generator) -> None:
    one = clustered_mean(torch.tensor([1.0, 3.0]), torch.tensor([4, 4]), generator=generator)
    assert one.mean == 2
    assert one.low != one.low
    assert not one.is_below_zero
    with pytest.raises(ValueError, match="got 1 of which 1 are not"):
        clustered_mean(torch.tensor([torch.nan]), torch.tensor([0]), generator=generator)
    with pytest.raises(ValueError, match="confidence lie between 0 and 1"):
        clustered_mean(torch.ones(2), torch.arange(2), generator=generator, confidence=1.0)


def test_each_source_is_ablated_on_what_it_reads(crosscoder: Crosscoder, sources: ModelSources) -> None:
    row, position = PLACES[0]
    replaced = int(TOKENS[row, 0])
    sources.id_policy = IdPolicy(
        rules=(IdRule(action="replace", token_ids=(replaced,), source="base", neutral=(replaced + 1) % 40),)
    )
    effects = effects_of(crosscoder, sources, e=LatentEdit(latents=SET))
    read = torch.where(replaced == TOKENS, (replaced + 1) % 40, TOKENS)
    logits = sources.models["base"].logits(read)[row].double()
    expected = scores_by_hand(logits, row, position)[0]
    assert_close(float(effects.clean["base"].logit[0]), expected, rtol=1e-4, atol=1e-4)
    raw = sources.models["base"].logits(TOKENS)[row].double()
    assert abs(scores_by_hand(raw, row, position)[0] - expected) > 1e-3
