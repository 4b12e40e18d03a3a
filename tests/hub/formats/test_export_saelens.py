"""One source of a crosscoder as a SAELens SAE: the file's own rule, and the way back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from crosscoders.activation_fns import ActivationFn, BatchTopK, JumpReLU, ReLU, TopK
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.hub.formats import export_saelens, read_foreign
from crosscoders.sources import Source

ACTIVATION_FNS = [ReLU(), TopK(k=3), BatchTopK(k=3), JumpReLU()]
EACH_FN = pytest.mark.parametrize("fn", ACTIVATION_FNS, ids=lambda fn: fn.kind)
SOURCES = (
    Source(name="base", d_model=5, scale=0.3, hook_name="blocks.2.hook_resid_pre", model_id="a/base"),
    Source(name="tuned", d_model=6, scale=0.8, hook_name="blocks.2.hook_resid_pre", model_id="a/tuned"),
)


def made(fn: ActivationFn, *, n_sources: int = 2) -> Crosscoder:
    generator = torch.Generator().manual_seed(0)
    config = CrosscoderConfig(
        sources=SOURCES[:n_sources], n_latents=20, activation_fn=fn, decoder_init_norm=1.0
    )
    crosscoder = Crosscoder(config, generator=generator)
    with torch.no_grad():
        crosscoder.b_enc.normal_(std=0.2, generator=generator)
        crosscoder.b_dec.normal_(generator=generator)
        crosscoder.W_dec.mul_(0.2 + 2 * torch.rand(20, 1, generator=generator))
        state = crosscoder.activation.state_dict()
        if "log_threshold" in state:
            state["log_threshold"].normal_(generator=generator)
        if "threshold" in state:
            state["threshold"].fill_(1.3)
    return crosscoder.eval()


def activations(crosscoder: Crosscoder, source: str) -> tuple[Tensor, Tensor, slice]:
    """Rows of one source, the same with nothing in the other columns, and its columns."""
    x = 4 * torch.randn(50, crosscoder.width, generator=torch.Generator().manual_seed(3))
    columns = slice(0, 5) if source == "base" else slice(5, 11)
    alone = torch.zeros_like(x)
    alone[:, columns] = x[:, columns]
    return x[:, columns], alone, columns


def saelens_encode(folder: Path, x: Tensor) -> Tensor:
    """SAELens 6 by its definition, in float64."""
    cfg = json.loads((folder / "cfg.json").read_text())
    weights = {key: tensor.double() for key, tensor in load_file(folder / "sae_weights.safetensors").items()}
    assert (cfg["apply_b_dec_to_input"], cfg["normalize_activations"]) == (False, "none")
    pre = x.double() @ weights["W_enc"] + weights["b_enc"]
    if cfg["architecture"] == "topk":
        assert not cfg["rescale_acts_by_decoder_norm"]
        best = pre.topk(cfg["k"], dim=1)
        return torch.zeros_like(pre).scatter(1, best.indices, best.values.relu())
    return pre.relu() * (pre > weights.get("threshold", torch.zeros(20)).relu())


def dense(latents: Any) -> Tensor:
    return (latents if isinstance(latents, Tensor) else latents.to_dense()).detach()


@EACH_FN
@pytest.mark.parametrize("source", ["base", "tuned"])
def test_the_file_computes_the_sources_own_codes(fn: ActivationFn, source: str, tmp_path: Path) -> None:
    crosscoder = made(fn)
    export_saelens(crosscoder, source, tmp_path / "sae")
    x, alone, columns = activations(crosscoder, source)
    own, theirs = dense(crosscoder.encode(alone)), saelens_encode(tmp_path / "sae", x)
    unit = crosscoder.selection_scale().detach() if isinstance(fn, TopK) else torch.ones(20)
    assert torch.equal(own != 0, theirs != 0)
    assert torch.allclose(theirs, (own * unit).double(), rtol=1e-5, atol=1e-6)
    weights = load_file(tmp_path / "sae" / "sae_weights.safetensors")
    written = theirs @ weights["W_dec"].double() + weights["b_dec"]
    assert torch.allclose(written, crosscoder.decode(own)[:, columns].double(), rtol=1e-5, atol=1e-5)


@EACH_FN
@pytest.mark.parametrize("n_sources", [1, 2])
def test_read_back_it_encodes_and_decodes_the_same(fn: ActivationFn, n_sources: int, tmp_path: Path) -> None:
    crosscoder = made(fn, n_sources=n_sources)
    export_saelens(crosscoder, "base", tmp_path / "sae")
    again = read_foreign(tmp_path / "sae").crosscoder
    x, alone, columns = activations(crosscoder, "base")
    own, back = dense(crosscoder.encode(alone)), dense(again.encode(x))
    unit = crosscoder.selection_scale().detach() if isinstance(fn, TopK) else torch.ones(20)
    assert torch.equal(own != 0, back != 0)
    assert torch.allclose(back, own * unit, rtol=1e-5, atol=1e-6)
    assert torch.allclose(again.decode(back), crosscoder.decode(own)[:, columns], rtol=1e-5, atol=1e-5)
    (source,) = again.sources
    assert (source.d_model, source.hook_name, source.model_id) == (5, SOURCES[0].hook_name, "a/base")


@EACH_FN
def test_what_was_read_is_written_back_bit_for_bit(fn: ActivationFn, tmp_path: Path) -> None:
    export_saelens(made(fn, n_sources=1), "base", tmp_path / "first")
    export_saelens(read_foreign(tmp_path / "first").crosscoder, "source", tmp_path / "second")
    first, second = (load_file(tmp_path / name / "sae_weights.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first.keys() - {"threshold"})
    if "threshold" in first:
        assert torch.allclose(first["threshold"], second["threshold"], rtol=1e-6)


def test_the_threshold_of_each_latent_passes_exactly_the_same_pre_activations(tmp_path: Path) -> None:
    crosscoder = made(BatchTopK(k=3))
    export_saelens(crosscoder, "base", tmp_path / "sae")
    threshold = load_file(tmp_path / "sae" / "sae_weights.safetensors")["threshold"]
    weight = crosscoder.fold().selection_scale()
    up = torch.full_like(threshold, torch.inf)
    for pre in (
        threshold.nextafter(-up),
        threshold,
        threshold.nextafter(up),
        threshold.nextafter(up) * 1.0001,
    ):
        assert torch.equal(pre > threshold, pre * weight > crosscoder.activation.state_dict()["threshold"])


def test_the_config_says_that_the_codes_are_one_sources_own(tmp_path: Path) -> None:
    export_saelens(made(TopK(k=3)), "tuned", tmp_path / "sae")
    cfg = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert (cfg["d_in"], cfg["d_sae"], cfg["k"], cfg["dtype"]) == (6, 20, 3, "float32")
    assert (cfg["metadata"]["model_name"], cfg["metadata"]["sae_lens_version"]) == ("a/tuned", "6.0.0")
    ours = cfg["metadata"]["crosscoders"]
    assert (ours["source"], ours["sources"], ours["codes"]) == ("tuned", ["base", "tuned"], "own")
    assert ours["activation_unit"] == "times the selection weight of each latent"


def test_what_cannot_be_exported_says_why_and_writes_nothing(tmp_path: Path) -> None:
    uncalibrated = Crosscoder(CrosscoderConfig(sources=SOURCES, n_latents=20, activation_fn=BatchTopK(k=3)))
    with pytest.raises(ValueError, match="has no threshold yet"):
        export_saelens(uncalibrated, "base", tmp_path / "sae")
    with pytest.raises(ValueError, match="other"):
        export_saelens(made(ReLU()), "other", tmp_path / "sae")
    assert not (tmp_path / "sae").exists()
    export_saelens(made(ReLU()), "base", tmp_path / "sae")
    with pytest.raises(FileExistsError):
        export_saelens(made(ReLU()), "tuned", tmp_path / "sae")
