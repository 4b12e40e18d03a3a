"""Every foreign format reads as its own library computes, and converts without loss."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from crosscoders._io import sha256_file
from crosscoders.crosscoder import Crosscoder
from crosscoders.hub.convert import convert
from crosscoders.hub.formats import read_foreign
from crosscoders.sources import Source
from tests.hub.formats.foreign_cases import CASES, SCALE, Case, ckkissane, dictionary_learning, rows, saelens

EACH_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
TOLERANCE = 1e-5


def read(case: Case, folder: Path) -> Crosscoder:
    """As the caller who knows what the files lack; train mode where they have no threshold."""
    foreign = read_foreign(case.write(folder), allow_pickle_files=True, **case.given)
    assert foreign.format_name == case.format_name
    assert not foreign.crosscoder.training
    return foreign.crosscoder.train(not case.is_calibrated)


def dense(latents: object) -> Tensor:
    result = latents if isinstance(latents, Tensor) else latents.to_dense()  # pyright: ignore
    return result.detach()


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).abs().max() / expected.abs().max())


@EACH_CASE
def test_encodes_and_decodes_as_by_hand(case: Case, tmp_path: Path) -> None:
    crosscoder, x = read(case, tmp_path), rows(case.n_sources)
    expected, got = case.encode(x), dense(crosscoder.encode(x))
    assert torch.equal(got != 0, expected != 0)
    assert 0.02 < float((expected != 0).double().mean()) < 0.9
    assert relative(got, expected) < TOLERANCE
    assert relative(crosscoder.decode(got).detach(), case.decode(expected)) < TOLERANCE


@EACH_CASE
def test_converted_and_reloaded_is_bit_identical(case: Case, tmp_path: Path) -> None:
    first = convert(case.write(tmp_path / "theirs"), tmp_path / "ours", **case.given).crosscoder
    again = Crosscoder.from_pretrained(tmp_path / "ours")
    assert again.config == first.config
    x = rows(case.n_sources)
    for crosscoder in (first, again):
        crosscoder.train(not case.is_calibrated)
    latents = dense(again.encode(x))
    assert torch.equal(latents, dense(first.encode(x)))
    assert torch.equal(again.decode(latents), first.decode(latents))
    theirs, ours = first.state_dict(), again.state_dict()
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs if key != "selection_weight")
    assert torch.equal(first.selection_scale(), again.selection_scale())


@pytest.mark.parametrize("name", ["ckkissane", "crosscode", "saelens, scaled"])
def test_folding_keeps_the_latents(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    crosscoder, x = read(case, tmp_path), rows(case.n_sources)
    folded = crosscoder.fold()
    assert relative(dense(folded.encode(x)), dense(crosscoder.encode(x)).double()) < TOLERANCE


def test_a_folded_file_unfolds_to_its_own_selection_weight(tmp_path: Path) -> None:
    folded = read(CASES["crosscode, folded"], tmp_path)
    assert folded.config.is_folded
    assert torch.allclose(folded.selection_scale(), folded.unfold().selection_scale())


def test_conversion_records_where_it_came_from(tmp_path: Path) -> None:
    case = ckkissane()
    convert(case.write(tmp_path / "theirs"), tmp_path / "ours", **case.given)
    content = json.loads((tmp_path / "ours" / "config.json").read_text())
    origin = content["training_summary"]["converted_from"]
    assert origin["format"] == "ckkissane"
    assert origin["config"] == case.config
    names = ("4.pt", "4_cfg.json")
    assert origin["files"] == {name: sha256_file(tmp_path / "theirs" / name) for name in names}


def test_sources_take_what_the_files_and_the_caller_say(tmp_path: Path) -> None:
    case = ckkissane(model_name_A="a/base", model_name_B="a/tuned")
    path = case.write(tmp_path)
    own = read_foreign(path, scale=SCALE, allow_pickle_files=True).crosscoder.sources
    assert [(s.name, s.model_id, s.scale) for s in own] == [
        ("model_0", "a/base", 0.5),
        ("model_1", "a/tuned", 0.2),
    ]
    assert own[0].hook_name == "blocks.1.hook_resid_pre"
    by_name = {"tuned": 0.2, "base": 0.5}
    named = read_foreign(path, sources=("base", "tuned"), scale=by_name, allow_pickle_files=True)
    assert [(s.name, s.model_id, s.scale) for s in named.crosscoder.sources] == [
        ("base", "a/base", 0.5),
        ("tuned", "a/tuned", 0.2),
    ]
    full = (Source(name="x", d_model=6, model_id="m"), Source(name="y", d_model=6))
    given = read_foreign(path, sources=full, scale=SCALE, allow_pickle_files=True).crosscoder.sources
    assert [(s.name, s.model_id) for s in given] == [("x", "m"), ("y", "")]


def test_layers_of_one_model_are_sources_too(tmp_path: Path) -> None:
    case = ckkissane(n_layers=2)
    foreign = read_foreign(case.write(tmp_path), scale=SCALE, allow_pickle_files=True)
    assert [s.name for s in foreign.crosscoder.sources] == ["layer_0", "layer_1"]


def test_one_factor_becomes_the_scale_and_selection_survives_unfolding(tmp_path: Path) -> None:
    """g is kept beside the weights, and CROSSCODER ranks by what an unfolded crosscoder computes itself."""
    case = dictionary_learning("CROSSCODER", normalizer="factor")
    crosscoder, x = read(case, tmp_path), rows(2)
    assert any("mean of each source" in note for note in read_foreign(tmp_path).notes)
    scales = torch.tensor([s.scale for s in crosscoder.sources])
    assert torch.allclose(scales, case.tensors["activation_global_scale"])
    unfolded = crosscoder.unfold()
    assert torch.equal(dense(unfolded.encode(x)) != 0, case.encode(x) != 0)
    norms = case.tensors["decoder.weight"].norm(dim=2).T
    assert torch.allclose(crosscoder.decoder_norms(), norms, rtol=1e-5)


@pytest.mark.parametrize(
    ("rule", "weight"), [("CROSSCODER", 7.0), ("SAE", 5.0), ("MIXED", 5.6), ("NONE", 1.0)]
)
def test_a_score_at_the_threshold_is_not_selected(rule: str, weight: float, tmp_path: Path) -> None:
    """Decoder rows (3, 0) and (4, 0); a pre-activation of 2, the next below and the next above."""
    encoder, decoder = torch.zeros(2, 6, 24), torch.zeros(2, 24, 6)
    encoder[0, 0], decoder[0, :, 0], decoder[1, :, 0] = 1.0, 3.0, 4.0
    case = dictionary_learning(rule)
    case.tensors.update({"encoder.weight": encoder, "decoder.weight": decoder})
    case.tensors["encoder.bias"].zero_()
    stored = torch.tensor(0.7) * 5 + torch.tensor(0.3) * 7 if rule == "MIXED" else torch.tensor(weight)
    case.tensors["threshold"] = 2.0 * stored
    x = torch.zeros(3, 12)
    two = torch.tensor(2.0)
    x[:, 0] = torch.stack([two.nextafter(torch.tensor(0.0)), two, 2.0001 * two])
    latents = dense(read(case, tmp_path).encode(x))
    assert (latents != 0).any(dim=1).tolist() == [False, False, True]


def test_a_pre_activation_at_its_jumprelu_threshold_is_not_selected(tmp_path: Path) -> None:
    """For thresholds of all sizes, though the logarithm that is stored is rounded."""
    case = saelens("jumprelu", apply_b_dec_to_input=False)
    thresholds = torch.logspace(-6, 4, 24)
    thresholds[0], thresholds[1] = 0.0, -1.0
    case.tensors["threshold"] = thresholds
    case.tensors["W_enc"].zero_()
    crosscoder = read(case, tmp_path)
    with torch.no_grad():
        crosscoder.b_enc.copy_(thresholds)
        at = dense(crosscoder.encode(torch.zeros(1, 6)))
        crosscoder.b_enc.copy_(thresholds * (1 + 3e-6) + 1e-12)
        above = dense(crosscoder.encode(torch.zeros(1, 6)))
    assert not at.any()
    assert (above > 0).tolist() == [[t >= 0 for t in thresholds.tolist()]]


def test_files_without_a_threshold_raise_in_eval_mode_and_say_so(tmp_path: Path) -> None:
    for number, name in enumerate(("jnward", "ckkissane, batch_top_k")):
        case = CASES[name]
        foreign = read_foreign(case.write(tmp_path / str(number)), allow_pickle_files=True, **case.given)
        assert any("no threshold" in note for note in foreign.notes)
        with pytest.raises(ValueError, match="needs a threshold"):
            foreign.crosscoder.encode(rows(2))


@pytest.mark.parametrize("value", [-1.0, None])
def test_an_unset_threshold_is_not_guessed(value: float | None, tmp_path: Path) -> None:
    case = dictionary_learning("CROSSCODER")
    del case.tensors["threshold"]
    if value is not None:
        case.tensors["threshold"] = torch.tensor(value)
    foreign = read_foreign(case.write(tmp_path))
    assert float(foreign.crosscoder.state_dict()["activation.threshold"]) == -1.0
    assert any("no threshold" in note for note in foreign.notes)


def test_half_precision_is_read_as_the_same_numbers(tmp_path: Path) -> None:
    case = dictionary_learning(None)
    halves = {key: tensor.bfloat16() for key, tensor in case.tensors.items()}
    case.tensors.update(halves)
    crosscoder = read(case, tmp_path)
    assert crosscoder.W_enc.dtype == torch.float32
    assert torch.equal(crosscoder.b_enc.bfloat16(), halves["encoder.bias"])


@pytest.mark.parametrize("name", ["trainer_config.json", "config.json"])
def test_a_rule_that_only_the_trainers_config_states_is_followed(name: str, tmp_path: Path) -> None:
    """Runs of dictionary_learning leave it in config.json; published folders beside it."""
    case, x = dictionary_learning("MIXED"), rows(2)
    del case.tensors["code_normalization_id"]
    alphas = {key: value for key, value in (case.config or {}).items() if "alpha" in key}
    stated = {"trainer": {**alphas, "code_normalization": "MIXED", "dict_size": 24}}
    (case.write(tmp_path) / "config.json").write_text("{}")
    (tmp_path / name).write_text(json.dumps(stated))
    foreign = read_foreign(tmp_path)
    assert torch.equal(dense(foreign.crosscoder.encode(x)) != 0, case.encode(x) != 0)
    assert not any("No code_normalization_id" in note for note in foreign.notes)


def test_a_factor_for_each_dimension_is_said_with_what_norms_then_mean(tmp_path: Path) -> None:
    case = dictionary_learning("CROSSCODER", normalizer="per dimension")
    foreign = read_foreign(case.write(tmp_path))
    std = case.tensors["activation_std"] + 1e-8
    raw = (case.tensors["decoder.weight"] * std[:, None]).norm(dim=2).T
    assert torch.allclose(foreign.crosscoder.decoder_norms(), raw, rtol=1e-5)
    assert any("norms of its decoder are those of raw activations" in note for note in foreign.notes)
    with pytest.raises(ValueError, match="rank_by_norms"):
        foreign.crosscoder.unfold()


@pytest.mark.parametrize("name", ["dl, SAE", "dl SAE", "dfc, masks", "jnward", "sparsify", "saelens, topk"])
def test_a_rule_of_its_own_is_never_dropped_in_silence(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    foreign = read_foreign(case.write(tmp_path), allow_pickle_files=True, **case.given)
    assert any("stored as selection_weight" in note for note in foreign.notes)
    with pytest.raises(ValueError, match="would select other latents"):
        foreign.crosscoder.unfold()


def test_saelens_scaling_factor_of_ones_means_nothing(tmp_path: Path) -> None:
    case = saelens("standard", normalize_activations=None)
    case.tensors["scaling_factor"] = torch.ones(24)
    crosscoder, x = read(case, tmp_path), rows(1)
    assert relative(crosscoder.reconstruct(x).detach(), case.decode(case.encode(x))) < TOLERANCE
