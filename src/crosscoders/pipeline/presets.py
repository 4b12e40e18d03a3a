"""Named recipes: the paper's and the field's, as values that a configuration starts from."""

from collections.abc import Mapping
from typing import Any

from crosscoders._typing import typed

# The paper's code was adapted from a public replication; where the paper's own text is silent these are that
# code's values (lr, decay, clip, batch, weight and its warm-up; position 0 is never trained on).
PAPER: dict[str, Any] = {
    "n_latents": 32_768,
    "hook_name": "half",
    "activation_fn": {"kind": "relu"},
    "objective": [
        {"term": "reconstruction"},
        {"term": "decoder_norm_l1", "weight": 2.0, "warmup_fraction": 0.05},
    ],
    "data": {
        "n_tokens": 400_000_000,
        "batch_tokens": 4096,
        "sequence_length": 1024,
        "skip_positions": 1,
    },
    "training": {
        "lr": 5e-5,
        "betas": [0.9, 0.999],
        "warmup_fraction": 0.0,
        "decay_fraction": 0.2,
        "max_grad_norm": 1.0,
        "checkpoint_every_steps": 2000,
    },
}
# Minder, Dumas et al. 2025 (arXiv 2504.02922): no shrinkage, few artifacts in decoder norms.
FIELD: dict[str, Any] = {
    "n_latents": 32_768,
    "hook_name": "half",
    "activation_fn": {"kind": "batch_topk", "k": 100},
    "objective": [{"term": "reconstruction"}, {"term": "auxk", "weight": 1 / 32}],
    "data": {
        "n_tokens": 100_000_000,
        "batch_tokens": 2048,
        "sequence_length": 1024,
        "skip_positions": 2,
        "max_norm_multiple": 10.0,
    },
    "training": {
        "lr": 1e-4,
        "warmup_fraction": 0.02,
        "decay_fraction": 0.2,
        "max_grad_norm": 1.0,
        "checkpoint_every_steps": 2000,
    },
}
PRESETS: dict[str, dict[str, Any]] = {"paper": PAPER, "field": FIELD}


@typed
def with_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the preset that `values["preset"]` names; what `values` says itself stands.

    The sections `data` and `training` are filled key by key. An own activation function without an own
    objective drops the preset's objective, which belongs to the preset's activation function.

    Args:
        values: A configuration as plain values.

    Returns:
        The configuration without the key `preset`.

    Raises:
        ValueError: No such preset.
    """
    given = {key: value for key, value in values.items() if key != "preset"}
    name = values.get("preset")
    if name is None:
        return given
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {name!r}.")
    preset = dict(PRESETS[name])
    if "activation_fn" in given and "objective" not in given:
        del preset["objective"]
    sections = {key: {**preset[key], **given.get(key, {})} for key in ("data", "training")}
    return {**preset, **given, **sections}
