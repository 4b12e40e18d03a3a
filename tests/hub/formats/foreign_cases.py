"""Small files in each foreign format, with that format's own encode and decode written out in float64."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

D, F, K = 6, 24, 4
SCALE = (0.5, 0.2)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One foreign crosscoder: what its files hold, what the caller gives, and its own rule by hand."""

    format_name: str
    tensors: dict[str, Any]
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    config: dict[str, Any] | None = None
    config_name: str = "config.json"
    weights_name: str = "model.safetensors"
    given: dict[str, Any] = field(default_factory=dict)
    n_sources: int = 2
    is_calibrated: bool = True

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.weights_name
        if path.suffix == ".safetensors":
            save_file({key: tensor.contiguous() for key, tensor in self.tensors.items()}, path)
        else:
            torch.save(self.tensors, path)
        if self.config is not None:
            text = to_yaml(self.config) if self.config_name.endswith("yaml") else json.dumps(self.config)
            (folder / self.config_name).write_text(text)
        return folder


def to_yaml(config: dict[str, Any]) -> str:
    """JSON is YAML."""
    return json.dumps(config)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(31 * s for s in shape))
    return scale * torch.randn(*shape, generator=generator)


def rows(n_sources: int, n_rows: int = 40) -> Tensor:
    return random(n_rows, n_sources * D, seed=5, scale=3.0)


def split(x: Tensor, n_sources: int) -> Tensor:
    """[batch source d_model] in float64."""
    return x.double().view(len(x), n_sources, D)


def keep_topk(values: Tensor, k: int, *, score: Tensor | None = None) -> Tensor:
    """Keep the k best of each row."""
    best = (values if score is None else score).topk(k, dim=1).indices
    return torch.zeros_like(values).scatter(1, best, values.gather(1, best))


def keep_batch_topk(values: Tensor, k: int, score: Tensor) -> Tensor:
    flat = keep_topk(values.reshape(1, -1), k * len(values), score=score.reshape(1, -1))
    return flat.view_as(values)


def ckkissane(**config: Any) -> Case:
    W_enc, W_dec = random(2, D, F), random(F, 2, D, seed=1)
    b_enc, b_dec = random(F, seed=2), random(2, D, seed=3)
    scale = torch.tensor(SCALE, dtype=torch.float64)

    def encode(x: Tensor) -> Tensor:
        pre = torch.einsum("bmd,mdf->bf", split(x, 2) * scale[:, None], W_enc.double()) + b_enc
        if config.get("sparsity_type") != "batch_top_k":
            return pre.relu()
        return keep_batch_topk(pre.relu(), K, pre.relu() * W_dec.double().norm(dim=2).sum(dim=1))

    def decode(f: Tensor) -> Tensor:
        x = torch.einsum("bf,fmd->bmd", f, W_dec.double()) + b_dec
        return (x / scale[:, None]).flatten(1)

    return Case(
        format_name="ckkissane",
        tensors={"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec},
        config={"d_in": D, "dict_size": F, "hook_point": "blocks.1.hook_resid_pre", **config},
        weights_name="4.pt",
        config_name="4_cfg.json",
        given={"scale": SCALE},
        encode=encode,
        decode=decode,
        is_calibrated="sparsity_type" not in config,
    )


def dictionary_learning(
    rule: str | None = "CROSSCODER", *, normalizer: str = "", prefix: str = "", threshold: float = 9.0
) -> Case:
    """Without a rule: the old L1 files. `normalizer`: "", "unused", "factor" or "per dimension"."""
    enc, dec = random(2, D, F), random(2, F, D, seed=1)
    b_enc, b_dec = random(F, seed=2), random(2, D, seed=3)
    tensors = {"encoder.weight": enc, "encoder.bias": b_enc, "decoder.weight": dec, "decoder.bias": b_dec}
    if rule is not None:
        number = ["CROSSCODER", "SAE", "MIXED", "NONE", "DECOUPLED"].index(rule) + 1
        tensors["code_normalization_id"] = torch.tensor(number)
        tensors["k"], tensors["threshold"] = torch.tensor(K, dtype=torch.int32), torch.tensor(threshold)
    mean, gain_in, gain_out = _normalizer(tensors, normalizer)
    norms = dec.double().norm(dim=2)
    weight = {
        "CROSSCODER": norms.sum(dim=0),
        "SAE": norms.square().sum(dim=0).sqrt(),
        "MIXED": 0.7 * norms.square().sum(dim=0).sqrt() + 0.3 * norms.sum(dim=0),
        "NONE": torch.ones(F, dtype=torch.float64),
    }.get(rule or "")

    def encode(x: Tensor) -> Tensor:
        x_norm = (split(x, 2) - mean) * gain_in
        f = (torch.einsum("bld,ldf->bf", x_norm, enc.double()) + b_enc).relu()
        return f if weight is None else f * (f * weight > threshold)

    def decode(f: Tensor) -> Tensor:
        x_norm = torch.einsum("bf,lfd->bld", f, dec.double()) + b_dec
        return (x_norm * gain_out + mean).flatten(1)

    alphas = {"code_normalization_alpha_sae": 0.7, "code_normalization_alpha_cc": 0.3}
    return Case(
        format_name="dictionary_learning",
        tensors={prefix + key: tensor for key, tensor in tensors.items()},
        config={"activation_dim": D, "dict_size": F, "num_layers": 2, **alphas},
        weights_name="model_final.pt" if prefix else "model.safetensors",
        encode=encode,
        decode=decode,
    )


def _normalizer(tensors: dict[str, Tensor], kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Add the normalizer's tensors; give its mean, what it multiplies by and what undoes that."""
    mean, std = random(2, D, seed=8), random(2, D, seed=9).abs() + 0.1
    ones = torch.ones(2, D, dtype=torch.float64)
    factor = 2.0 / (std.double().square().sum(dim=1) + 1e-8).sqrt()
    if kind == "unused":
        empty = torch.full((2, D), torch.nan)
        stored = (empty, empty.clone(), torch.ones(2), torch.tensor(torch.nan))
    elif kind == "factor":
        stored = (mean, std, factor.float(), torch.tensor(2.0))
    else:
        stored = (mean, std, torch.ones(2), torch.tensor(torch.nan))
    if kind:
        names = ("activation_mean", "activation_std", "activation_global_scale", "target_rms")
        tensors.update(zip(names, stored, strict=True))
    if kind == "factor":
        gain = stored[2].double()[:, None] * ones
        return mean, gain, 1 / (gain + 1e-8)
    if kind == "per dimension":
        return mean, 1 / (std.double() + 1e-8), std.double() + 1e-8
    return torch.zeros(2, D), ones, ones


def dictionary_learning_sae() -> Case:
    enc, dec, b_enc, b_dec = random(F, D), random(D, F, seed=1), random(F, seed=2), random(D, seed=3)

    def encode(x: Tensor) -> Tensor:
        f = ((x.double() - b_dec) @ enc.double().T + b_enc).relu()
        return f * (f > 2.5)

    return Case(
        format_name="dictionary_learning_sae",
        tensors={
            **{"encoder.weight": enc, "encoder.bias": b_enc, "decoder.weight": dec, "b_dec": b_dec},
            **{"k": torch.tensor(K), "threshold": torch.tensor(2.5)},
        },
        encode=encode,
        decode=lambda f: f @ dec.double().T + b_dec,
        n_sources=1,
    )


def dfc_masked() -> Case:
    enc_mask, dec_mask = torch.ones(2, F), torch.ones(F, 2)
    enc_mask[1, :3], enc_mask[0, 3:5], dec_mask[:3, 1], dec_mask[3:5, 0] = 0, 0, 0, 0
    W_enc, W_dec = random(2, D, F), random(F, 2, D, seed=1)
    b_enc, b_dec = random(F, seed=2), random(2, D, seed=3)

    def encode(x: Tensor) -> Tensor:
        weight = W_enc.double() * enc_mask[:, None]
        return keep_topk((torch.einsum("bmd,mdf->bf", split(x, 2), weight) + b_enc).relu(), K)

    def decode(f: Tensor) -> Tensor:
        return (torch.einsum("bf,fmd->bmd", f, W_dec.double() * dec_mask[:, :, None]) + b_dec).flatten(1)

    return Case(
        format_name="dfc",
        tensors={
            **{"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec},
            **{"enc_mask": enc_mask, "dec_mask": dec_mask},
        },
        config={"activation_dim": D, "dict_size": F, "k": K, "n_a": 3, "n_b": 2},
        weights_name="model.pt",
        given={"scale": (1.0, 1.0)},
        encode=encode,
        decode=decode,
    )


def dfc_partitioned() -> Case:
    plain = dictionary_learning("CROSSCODER")
    enc, dec = plain.tensors["encoder.weight"], plain.tensors["decoder.weight"]
    enc[1, :, :3], enc[0, :, 3:5], dec[1, :3], dec[0, 3:5] = 0, 0, 0, 0
    norms = dec.double().norm(dim=2).sum(dim=0)

    def encode(x: Tensor) -> Tensor:
        f = torch.einsum("bld,ldf->bf", split(x, 2), enc.double()) + plain.tensors["encoder.bias"]
        return f.relu() * (f.relu() * norms > 9.0)

    partition = {"dict_size": F, "model_a_exclusive": 3, "model_b_exclusive": 2}
    return Case(
        format_name="dfc",
        tensors={**plain.tensors, "_partition_config": partition},
        config=plain.config,
        weights_name="dfc.pt",
        encode=encode,
        decode=plain.decode,
    )


def crosscode(*, is_folded: bool = False, jumprelu: bool = True) -> Case:
    """Two models with two hooks each."""
    W_enc, W_dec = random(2, 2, D, F), random(F, 2, 2, D, seed=1)
    b_enc, b_dec, log_t = random(F, seed=2), random(2, 2, D, seed=3), random(F, seed=4)
    scale = torch.tensor([[0.5, 0.25], [0.2, 0.1]])
    used = torch.ones(2, 2) if is_folded else scale

    def encode(x: Tensor) -> Tensor:
        x = x.double().view(len(x), 2, 2, D) * used[..., None].double()
        pre = torch.einsum("bmpd,mpdf->bf", x, W_enc.double()) + b_enc
        return pre * (pre > log_t.double().exp()) if jumprelu else pre.relu()

    def decode(f: Tensor) -> Tensor:
        x = torch.einsum("bf,fmpd->bmpd", f, W_dec.double()) + b_dec
        return (x / used[..., None].double()).flatten(1)

    factors = scale if is_folded else torch.zeros(2, 2)
    thresholds = {"_activation_fn.log_threshold_L": log_t} if jumprelu else {}
    fn = {"classname": "AnthropicSTEJumpReLUActivation", "cfg": {"size": F, "bandwidth": 2.0}}
    return Case(
        format_name="crosscode",
        tensors={
            **{"_W_enc_XiDiL": W_enc, "_W_dec_LXoDo": W_dec, "b_enc_L": b_enc, "_b_dec_XoDo": b_dec},
            **{"is_folded": torch.tensor(is_folded), "folded_scaling_factors_in_Xi": factors},
            **{"folded_scaling_factors_out_Xo": factors.clone()},
            **thresholds,
        },
        config={
            **{"n_models": 2, "n_hookpoints": 2, "d_model": D, "n_latents": F, "dtype": "float32"},
            "activation_fn": fn if jumprelu else {"classname": "ReLUActivation", "cfg": {}},
        },
        weights_name="model.pt",
        config_name="model_cfg.yaml",
        given={} if is_folded else {"scale": tuple(scale.flatten().tolist())},
        encode=encode,
        decode=decode,
        n_sources=4,
    )


def jnward(*, in_file: bool = True) -> Case:
    W_enc, W_dec, b_enc, b_dec = random(2 * D, F), random(F, 2 * D, seed=1), random(F), random(2 * D)

    def encode(x: Tensor) -> Tensor:
        f = (x.double() * SCALE[0] @ W_enc.double() + b_enc).relu()
        return keep_batch_topk(f, K, f * W_dec.double().norm(dim=1))

    return Case(
        format_name="jnward",
        tensors={
            **{"W_encoder_ZF": W_enc, "W_decoder_FZ": W_dec, "b_encoder_F": b_enc, "b_decoder_Z": b_dec},
            **({"k": K} if in_file else {}),
        },
        weights_name="crosscoder-layer14.pt",
        given={"scale": (SCALE[0], SCALE[0]), **({} if in_file else {"k": K})},
        encode=encode,
        decode=lambda f: (f @ W_dec.double() + b_dec) / SCALE[0],
        is_calibrated=False,
    )


def saelens(architecture: str, **config: Any) -> Case:
    W_enc, W_dec, b_enc, b_dec = random(D, F), random(F, D, seed=1), random(F, seed=2), random(D, seed=3)
    extra: dict[str, Tensor] = {}
    if architecture == "jumprelu":
        extra["threshold"] = random(F, seed=4)
    if architecture == "batchtopk":
        extra["topk_threshold"] = torch.tensor(7.5, dtype=torch.float64)
    rescale = config.get("rescale_acts_by_decoder_norm", False)
    norms = W_dec.double().norm(dim=1) if rescale else torch.ones(F, dtype=torch.float64)
    scale = 0.25 if config.get("normalize_activations") == "expected_average_only_in" else 1.0

    def encode(x: Tensor) -> Tensor:
        x = x.double() * scale
        x = x - b_dec if config.get("apply_b_dec_to_input", True) else x
        pre = (x @ W_enc.double() + b_enc) * norms
        if architecture == "topk":
            return keep_topk(pre, K).relu()
        threshold = extra.get("threshold", extra.get("topk_threshold", torch.tensor(0.0)))
        return pre.relu() * (pre > threshold.double().relu())

    full = {"architecture": architecture, "d_in": D, "d_sae": F, "k": K, "dtype": "float32", **config}
    return Case(
        format_name="saelens",
        tensors={"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec, **extra},
        config={**full, "metadata": {"hook_name": "blocks.2.hook_resid_pre", "model_name": "gpt2"}},
        config_name="cfg.json",
        weights_name="sae_weights.safetensors",
        given={"scale": (scale,)} if scale != 1.0 else {},
        encode=encode,
        decode=lambda f: ((f / norms) @ W_dec.double() + b_dec) / scale,
        n_sources=1,
    )


def sparsify() -> Case:
    enc, W_dec, b_enc, b_dec = random(F, D), random(F, D, seed=1), random(F, seed=2), random(D, seed=3)

    def encode(x: Tensor) -> Tensor:
        return keep_topk(((x.double() - b_dec) @ enc.double().T + b_enc).relu(), K)

    return Case(
        format_name="sparsify",
        tensors={"encoder.weight": enc, "encoder.bias": b_enc, "W_dec": W_dec, "b_dec": b_dec},
        config={"k": K, "activation": "topk", "d_in": D, "normalize_decoder": True},
        config_name="cfg.json",
        weights_name="sae.safetensors",
        encode=encode,
        decode=lambda f: f @ W_dec.double() + b_dec,
        n_sources=1,
    )


CASES: dict[str, Case] = {
    "ckkissane": ckkissane(),
    "ckkissane, models named": ckkissane(model_name_A="a/base", model_name_B="a/tuned"),
    "ckkissane, batch_top_k": ckkissane(sparsity_type="batch_top_k", k_sparsity=K),
    "dl, old L1": dictionary_learning(None),
    "dl, CROSSCODER": dictionary_learning("CROSSCODER"),
    "dl, SAE": dictionary_learning("SAE"),
    "dl, MIXED": dictionary_learning("MIXED"),
    "dl, NONE": dictionary_learning("NONE", threshold=2.0),
    "dl, compiled": dictionary_learning("CROSSCODER", prefix="_orig_mod."),
    "dl, normalizer unused": dictionary_learning("CROSSCODER", normalizer="unused"),
    "dl, one factor": dictionary_learning("CROSSCODER", normalizer="factor"),
    "dl, one factor, SAE": dictionary_learning("SAE", normalizer="factor"),
    "dl, per dimension": dictionary_learning("MIXED", normalizer="per dimension"),
    "dl, L1 with factor": dictionary_learning(None, normalizer="factor"),
    "dl SAE": dictionary_learning_sae(),
    "dfc, masks": dfc_masked(),
    "dfc, partition": dfc_partitioned(),
    "crosscode": crosscode(),
    "crosscode, folded": crosscode(is_folded=True),
    "crosscode, ReLU": crosscode(jumprelu=False),
    "jnward": jnward(),
    "jnward, k given": jnward(in_file=False),
    "saelens, standard": saelens("standard"),
    "saelens, b_dec kept out": saelens("standard", apply_b_dec_to_input=False),
    "saelens, scaled": saelens("standard", normalize_activations="expected_average_only_in"),
    "saelens, topk": saelens("topk"),
    "saelens, topk rescaled": saelens("topk", rescale_acts_by_decoder_norm=True),
    "saelens, jumprelu": saelens("jumprelu"),
    "saelens, batchtopk": saelens("batchtopk", rescale_acts_by_decoder_norm=True),
    "sparsify": sparsify(),
}
