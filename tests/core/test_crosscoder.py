"""The crosscoder: scales, folding, inference, configuration, bad input."""

import copy
import dataclasses
import json

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor
from torch.testing import assert_close

from crosscoders.activation_fns import ActivationFn, BatchTopK, ReLU, TopK
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.kernels import SparseLatents
from crosscoders.sources import Source
from tests.core.toy import ACTIVATION_FNS, SOURCES, kind_of, toy_crosscoder, toy_rows


def dense(latents: Tensor | SparseLatents) -> Tensor:
    return latents if isinstance(latents, Tensor) else latents.to_dense()


def ready(activation_fn: ActivationFn) -> Crosscoder:
    """In eval mode and float64, with a threshold where one is needed."""
    crosscoder = toy_crosscoder(activation_fn).double().train()
    crosscoder.encode(toy_rows(400, seed=4).double())
    return crosscoder.eval()


@pytest.mark.parametrize("activation_fn", ACTIVATION_FNS, ids=kind_of)
@pytest.mark.parametrize("training", [False, True])
def test_folding_changes_no_firing_and_no_reconstruction(activation_fn: ActivationFn, training: bool) -> None:
    crosscoder, x = ready(activation_fn).train(training), toy_rows(300).double()
    folded = crosscoder.fold()
    assert folded.config.is_folded
    assert not torch.equal(folded.W_enc, crosscoder.W_enc)
    before, after = dense(crosscoder.encode(x)), dense(folded.encode(x))
    assert (before != 0).any()
    assert torch.equal(before != 0, after != 0)
    for there in (folded, folded.unfold()):
        expected = crosscoder.reconstruct(x)
        assert ((there.reconstruct(x) - expected).norm() / expected.norm()).item() < 1e-12
        assert_close(there.decoder_norms(), crosscoder.decoder_norms())
        assert_close(there.decoder_norms(space="raw"), crosscoder.decoder_norms(space="raw"))
        assert_close(there(x).reconstruction, crosscoder(x).reconstruction)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_unfold_refuses_another_ranking_and_only_that(dtype: torch.dtype) -> None:
    folded = ready(BatchTopK(k=3)).to(dtype).fold()
    assert not folded.unfold().config.is_folded
    assert not copy.deepcopy(folded).float().unfold().config.is_folded
    folded.selection_weight[0] *= 1.1
    with pytest.raises(ValueError, match="would select other latents; pass rank_by_norms=True"):
        folded.unfold()
    norms = folded.decoder_norms().sum(dim=1)
    other = folded.unfold(rank_by_norms=True)
    torch.testing.assert_close(other.selection_scale(), norms.detach(), rtol=0.02, atol=0)
    folded.selection_weight.zero_()
    folded.W_dec.data.zero_()
    assert not folded.unfold().selection_scale().any()


def test_norms_summed_after_folding_would_select_other_latents() -> None:
    """The reason for the stored selection weight: with scales 0.2 and 0.8 the ranking changes."""
    folded = ready(BatchTopK(k=3)).train().fold()
    resummed = copy.deepcopy(folded)
    resummed.selection_weight.copy_(folded.decoder_norms(space="raw").sum(dim=1))
    x = toy_rows(300).double()
    kept, other = dense(folded.encode(x)) != 0, dense(resummed.encode(x)) != 0
    assert (kept & other).sum() < 0.97 * kept.sum()


@pytest.mark.parametrize("activation_fn", ACTIVATION_FNS, ids=kind_of)
def test_inference_is_independent_of_the_batch(activation_fn: ActivationFn) -> None:
    crosscoder, x = ready(activation_fn), toy_rows(30).double()
    whole = dense(crosscoder.encode(x))
    alone = torch.cat([dense(crosscoder.encode(row[None])) for row in x])
    assert torch.equal(whole != 0, alone != 0)
    assert_close(whole, alone)


def test_forward_agrees_with_the_public_pieces() -> None:
    crosscoder, x = ready(TopK(k=3)), toy_rows(20).double()
    output = crosscoder(x)
    assert_close(output.inputs, crosscoder.normalize(x))
    assert_close(crosscoder.denormalize(output.reconstruction), crosscoder.reconstruct(x))
    assert_close(crosscoder.denormalize(output.inputs), x)
    by_hand = torch.relu(crosscoder.normalize(x) @ crosscoder.W_enc.T + crosscoder.b_enc)
    assert_close(output.pre_acts.relu(), by_hand)


def test_dense_and_sparse_latents_decode_alike() -> None:
    crosscoder, x = ready(TopK(k=3)), toy_rows(20).double()
    latents = crosscoder.encode(x)
    assert isinstance(latents, SparseLatents)
    assert_close(crosscoder.decode(latents), crosscoder.decode(latents.to_dense()))


@pytest.mark.parametrize("is_folded", [False, True])
def test_steering_direction_is_what_one_unit_adds_to_the_raw_activation(is_folded: bool) -> None:
    crosscoder = ready(ReLU())
    crosscoder = crosscoder.fold() if is_folded else crosscoder
    latents = torch.zeros(2, 32, dtype=torch.float64)
    latents[1, 5] = 1.0
    base, moved = crosscoder.decode(latents)
    for source, columns in (("base", slice(0, 6)), ("distilled", slice(6, 12))):
        assert_close(crosscoder.steering_direction(5, source), (moved - base)[columns])
    with pytest.raises(ValueError, match="latent 32"):
        crosscoder.steering_direction(32, "base")


def test_initial_directions_are_independent_and_of_the_given_norm() -> None:
    config = CrosscoderConfig(sources=SOURCES, n_latents=50, activation_fn=ReLU(), decoder_init_norm=0.3)
    crosscoder = Crosscoder(config, generator=torch.Generator().manual_seed(1))
    assert_close(crosscoder.decoder_norms(), torch.full((50, 2), 0.3))
    assert torch.equal(crosscoder.W_enc, crosscoder.W_dec)
    cosine = torch.cosine_similarity(crosscoder.decoder("base"), crosscoder.decoder("distilled"))
    assert cosine.abs().mean() < 0.6
    again = Crosscoder(config, generator=torch.Generator().manual_seed(1))
    other = Crosscoder(config)
    assert torch.equal(again.W_dec, crosscoder.W_dec)
    assert not torch.equal(other.W_dec, crosscoder.W_dec)


def test_the_initial_weights_do_not_touch_the_global_generator() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    toy_crosscoder(ReLU())
    assert torch.equal(torch.rand(1), expected)


def test_initialized_bias_reconstructs_the_mean() -> None:
    crosscoder, x = toy_crosscoder(ReLU()), toy_rows(100) + 9
    crosscoder.initialize_bias(x)
    silent = crosscoder.decode(torch.zeros(1, 32))
    assert_close(silent[0], x.mean(dim=0), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="not finite"):
        crosscoder.initialize_bias(torch.full((2, 12), torch.nan))


def test_set_scale_replaces_scales_only() -> None:
    crosscoder, x = toy_crosscoder(ReLU()), toy_rows(4)
    crosscoder.normalize(x)
    crosscoder.set_scale([dataclasses.replace(source, scale=2.0) for source in SOURCES])
    assert_close(crosscoder.normalize(x), 2.0 * x)
    with pytest.raises(ValueError, match="other"):
        crosscoder.set_scale([Source(name="other", d_model=6), SOURCES[1]])
    folded = crosscoder.fold()
    with pytest.raises(ValueError, match="unfold"):
        folded.set_scale(SOURCES)


def test_other_float_dtypes_are_upcast() -> None:
    crosscoder, x = toy_crosscoder(ReLU()), toy_rows(4).bfloat16()
    assert_close(crosscoder.reconstruct(x), crosscoder.reconstruct(x.float()))


def test_wrong_width_names_the_widths() -> None:
    with pytest.raises(ValueError, match=r"\(4, 11\).*\[batch, 12\] \(base: 6, distilled: 6\)"):
        toy_crosscoder(ReLU()).encode(torch.ones(4, 11))


def test_wrong_rank_and_integers_raise() -> None:
    for bad in (torch.ones(12), torch.ones(2, 12, dtype=torch.int64)):
        with pytest.raises((ValueError, TypeCheckError)):
            toy_crosscoder(ReLU()).encode(bad)


def test_unknown_source_lists_the_known() -> None:
    with pytest.raises(ValueError, match="'base', 'distilled'"):
        toy_crosscoder(ReLU()).decoder("chat")


@pytest.mark.parametrize("activation_fn", ACTIVATION_FNS, ids=kind_of)
def test_config_round_trips_through_json(activation_fn: ActivationFn) -> None:
    config = toy_crosscoder(activation_fn).config
    assert CrosscoderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_config_key_raises_listing_the_known() -> None:
    data = toy_crosscoder(ReLU()).config.to_dict()
    with pytest.raises(ValueError, match=r"\['n_latent'\].*n_latents"):
        CrosscoderConfig.from_dict({**data, "n_latent": 3})
    del data["n_latents"]
    with pytest.raises(ValueError, match=r"missing keys \['n_latents'\]"):
        CrosscoderConfig.from_dict(data)


def test_state_dict_keys_are_public() -> None:
    weights = ["W_enc", "b_enc", "W_dec", "b_dec", "selection_weight"]
    own = {"batch_topk": ["activation.threshold"], "jumprelu": ["activation.log_threshold"]}
    for activation_fn in ACTIVATION_FNS:
        keys = list(toy_crosscoder(activation_fn).state_dict())
        assert keys == weights + own.get(activation_fn.kind, [])
