"""Write one source of a crosscoder as an SAE that SAELens 6 reads."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from crosscoders._io import atomic_directory
from crosscoders._typing import typed
from crosscoders._version import __version__
from crosscoders.activation_fns.batch_topk import BatchTopK
from crosscoders.activation_fns.jumprelu import JumpReLU
from crosscoders.activation_fns.relu import ReLU
from crosscoders.activation_fns.topk import TopK
from crosscoders.crosscoder import Crosscoder
from crosscoders.sources import column_slices, source_index

# Configs without a version, or with one below 6, are rewritten by SAELens' migration of old configs.
_SAELENS_VERSION = "6.0.0"


@typed
@torch.no_grad()
def export_saelens(crosscoder: Crosscoder, source: str, out: Path | str) -> None:
    """Write `cfg.json` and `sae_weights.safetensors` for one source, reading and writing raw activations.

    A crosscoder of one source becomes an SAE exactly. Of several, the SAE has one source's own columns: its
    latents are those of `codes="own"`, where the other sources contribute nothing to the pre-activation, and
    it writes that source alone; its latents are not those of the whole crosscoder. The metadata says so.

    ReLU becomes "standard". BatchTopK becomes "jumprelu" with the threshold theta / selection weight for each
    latent, rounded so that exactly the same pre-activations pass; its activations are unchanged. TopK becomes
    "topk", which ranks by the activation itself: each latent is multiplied by its selection weight and its
    decoder row divided by it, so activations have another unit unless all weights are equal; the metadata
    says which.

    Args:
        crosscoder: The crosscoder.
        source: Name of the source.
        out: Folder to write, all or nothing; it must not exist or be empty.

    Raises:
        ValueError: No such source, BatchTopK without a threshold, or an activation function SAELens lacks.
        OSError: Writing failed, or `out` holds something.
    """
    index = source_index(crosscoder.sources, source)
    folded = crosscoder.fold()
    weights = {
        "W_enc": folded.encoder(source),
        "b_enc": folded.b_enc,
        "W_dec": folded.decoder(source),
        "b_dec": folded.b_dec[column_slices(folded.sources)[source]],
    }
    weights, cfg, unit = _for_activation(folded, weights)
    cfg |= {
        "d_in": crosscoder.sources[index].d_model,
        "d_sae": crosscoder.n_latents,
        "dtype": str(crosscoder.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": _metadata(crosscoder, index, unit),
    }
    weights["W_enc"] = weights["W_enc"].T
    with atomic_directory(Path(out), marker="cfg.json") as folder:
        stored = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in weights.items()}
        save_file(stored, folder / "sae_weights.safetensors")
        (folder / "cfg.json").write_text(json.dumps(cfg, indent=2) + "\n", encoding="utf-8")


def _for_activation(
    folded: Crosscoder, weights: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Weights, the config's part on the activation function, and the unit of the activations."""
    spec, weight, same = folded.config.activation_fn, folded.selection_scale(), "as in the crosscoder"
    state = dict(folded.activation.state_dict())
    if isinstance(spec, ReLU):
        return weights, {"architecture": "standard"}, same
    if isinstance(spec, JumpReLU):
        threshold = state["log_threshold"].exp()
        return {**weights, "threshold": threshold}, {"architecture": "jumprelu"}, same
    if isinstance(spec, BatchTopK):
        if bool(state["threshold"] < 0):
            raise ValueError("export_saelens: this BatchTopK has no threshold yet; calibrate it first.")
        threshold = _raw_threshold(state["threshold"].to(weight.dtype), weight)
        return {**weights, "threshold": threshold}, {"architecture": "jumprelu"}, same
    if isinstance(spec, TopK):
        cfg = {"architecture": "topk", "k": spec.k, "rescale_acts_by_decoder_norm": False}
        if bool((weight == weight[0]).all()) and bool(weight[0] > 0):
            return weights, cfg, same
        return _in_units_of_score(weights, weight), cfg, "times the selection weight of each latent"
    raise ValueError(f"export_saelens: SAELens has no activation function for {spec!r}.")


def _in_units_of_score(weights: dict[str, Tensor], weight: Tensor) -> dict[str, Tensor]:
    """Multiply each latent by its weight; one of weight 0 is never selected, and becomes zero."""
    inverse = torch.where(weight > 0, 1 / weight, 0.0)
    return {
        **weights,
        "W_enc": weights["W_enc"] * weight[:, None],
        "b_enc": weights["b_enc"] * weight,
        "W_dec": weights["W_dec"] * inverse[:, None],
    }


def _raw_threshold(threshold: Tensor, weight: Tensor) -> Tensor:
    """The largest float t with t * weight <= threshold, so that pre > t is pre * weight > threshold."""
    up = torch.full_like(weight, torch.inf)
    raw = threshold / weight
    for _ in range(4):
        raw = torch.where(raw * weight > threshold, torch.nextafter(raw, -up), raw)
    for _ in range(4):
        above = torch.nextafter(raw, up)
        raw = torch.where(above * weight <= threshold, above, raw)
    return torch.where(weight > 0, raw, up)


def _metadata(crosscoder: Crosscoder, index: int, unit: str) -> dict[str, Any]:
    source = crosscoder.sources[index]
    return {
        "sae_lens_version": _SAELENS_VERSION,
        "sae_lens_training_version": None,
        "model_name": source.model_id or None,
        "hook_name": source.hook_name or None,
        "crosscoders": {
            "library_version": __version__,
            "source": source.name,
            "sources": [other.name for other in crosscoder.sources],
            "codes": "own",
            "activation_unit": unit,
        },
    }
