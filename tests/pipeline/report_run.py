"""A finished run's folder without training: random weights, made-up figures, and a verification of it."""

import dataclasses
import math
from pathlib import Path

import torch

from crosscoders._io import atomic_write_json
from crosscoders.activation_fns import TopK
from crosscoders.bootstrap import Estimate
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.diffing.causal import CausalCheck
from crosscoders.diffing.causal.result import ControlScore, PatchScore, SetScore
from crosscoders.diffing.measures.alignment import Alignment
from crosscoders.diffing.verdicts import (
    SHARED,
    SPECIFIC,
    Judgement,
    NullReference,
    Power,
    PowerAtRate,
    Thresholds,
    Verdicts,
)
from crosscoders.latents import LatentTable
from crosscoders.metrics import decoder_norm_share, normalized_decoder_ratio
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.verify import Verification, VerifyOptions
from crosscoders.pipeline.verify.result import write_verification
from crosscoders.provenance import run_record
from crosscoders.sources import Source

N_LATENTS, N_TOKENS, SURVIVOR = 12, 4000, 5
SOURCES = tuple(
    Source(name=name, d_model=d, hook_name="blocks.1.hook_resid_pre", scale=0.5)
    for name, d in (("base", 4), ("distilled", 6))
)
ESTIMATE = Estimate(mean=0.2, low=0.1, high=0.3, n=9)


def toy_config(**changes: object) -> RunConfig:
    config = RunConfig(
        base="zoo-like/base",
        distilled="/" + "somewhere/of/mine/tuned",
        text="traces.txt",
        out="runs/toy",
        n_latents=N_LATENTS,
        activation_fn=TopK(k=2),
    )
    return dataclasses.replace(config, **changes)


def toy_crosscoder(seed: int = 0) -> Crosscoder:
    config = CrosscoderConfig(sources=SOURCES, n_latents=N_LATENTS, activation_fn=TopK(k=2))
    crosscoder = Crosscoder(config, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        strength = torch.rand(N_LATENTS, generator=torch.Generator().manual_seed(seed))
        crosscoder.W_dec[:, :4] *= (strength + torch.linspace(0, 3, N_LATENTS))[:, None]
        crosscoder.W_dec[4, :4] *= 0.01  # NRN near 1
        crosscoder.W_dec[7, 4:] *= 0.01  # NRN near 0
    return crosscoder.eval()


def toy_table(crosscoder: Crosscoder) -> LatentTable:
    """Latents 0 and 1 never fire."""
    nrn = normalized_decoder_ratio(crosscoder.decoder_norms().detach().double())
    frequency = torch.arange(N_LATENTS).sub(1).clamp(min=0).double() / 100
    columns = {"latent": torch.arange(N_LATENTS), "nrn_l2": nrn, "frequency": frequency}
    return LatentTable(columns, N_TOKENS)


def toy_alignment(*, is_aligned: bool = True) -> Alignment:
    gain = 0.9 if is_aligned else 0.1
    return Alignment(
        pair=("base", "distilled"),
        n_rows=N_TOKENS,
        r_squared=(gain, gain),
        permuted=(0.05, 0.05),
        shifted=(math.nan, 0.3),
        min_gain=0.1,
    )


def toy_verdicts(crosscoder: Crosscoder) -> Verdicts:
    norms = crosscoder.decoder_norms().detach().double() / torch.tensor([2.0, 6**0.5])
    n = N_LATENTS
    columns = {
        "latent": torch.arange(n),
        "n_firings": (toy_table(crosscoder)["frequency"] * N_TOKENS).round().long(),
        "norm_share": decoder_norm_share(norms)[:, 1],
        "stronger": torch.ones(n, dtype=torch.int64),
        "ratio": torch.linspace(0.0, 1.0, n).double(),
        "kappa": torch.full((n,), math.nan).double(),
        "stability": torch.full((n,), math.nan).double(),
    }
    calls = [SPECIFIC if latent == SURVIVOR else SHARED for latent in range(n)]
    rates = (PowerAtRate(rate=0.02, n_planted=4, n_recovered=3, n_specific=2),)
    return Verdicts(
        pair=("base", "distilled"),
        evidence=LatentTable(columns, N_TOKENS),
        judgements=tuple(Judgement(verdict=call, reason=f'because, "{call}"') for call in calls),
        thresholds=Thresholds(absent=0.2),
        alignment=toy_alignment(),
        nulls=(NullReference(name="benign drift", n_crosscoders=2, n_live={-3: 15, -4: 5}, n_false={-3: 3}),),
        power=Power(rates=rates, known_direction_specific=1, known_direction_planted=4, strength=0.3),
    )


def toy_causal() -> CausalCheck:
    score = PatchScore(kl=ESTIMATE, share_closed=ESTIMATE, relative_size=0.1)
    draws = ControlScore(
        share_closed=(0.1, 0.2, 0.3), relative_size=(1.0,) * 3, unscalable=math.nan, advantage=ESTIMATE
    )
    found = SetScore(latents=(SURVIVOR,), score=score, controls={"count": draws})
    return CausalCheck(
        pair=("base", "distilled"), n_tokens=900, n_sequences=9, anchors={}, sets={"survivors": found}
    )


def write_toy_verification(
    out: Path, verdicts: Verdicts, config: RunConfig, *, weights: str | None = None
) -> Verification:
    """Without a digest of the weights it is one that an older version wrote."""
    found = Verification(verdicts=verdicts, others={}, causal={"story": toy_causal()}, baselines=(), out=out)
    done = {"run": config.to_dict(), "verify": dataclasses.asdict(VerifyOptions.short())}
    models = {source.name: source.to_dict() for source in SOURCES}
    data = {"sources": models} | ({} if weights is None else {"weights_sha256": weights})
    write_verification(found, record=run_record(config=done, seed=0, data=data))
    return found


def write_toy_run(folder: Path) -> None:
    """`evaluation.json`, `training.csv` and `categories.json`."""
    scores = {"n_tokens": N_TOKENS, "l0": 2.0, "explained_variance": {"base": 0.9, "distilled": 0.8}}
    baseline = {"token_means": {"base": 0.3, "distilled": 0.2}, "token_means_difference": None}
    spliced = {"n_tokens": 50, "kl": 0.1, "ce_clean": 1.0, "ce_spliced": 1.5, "ce_ablated": 3.0}
    splice = {"base": spliced, "distilled": {**spliced, "ce_ablated": 1.0}}
    evaluation = {
        "reconstruction": {"all": {**scores, **baseline, "difference": None}},
        "splice": {"story": splice},
    }
    atomic_write_json(folder / "evaluation.json", evaluation)
    (folder / "training.csv").write_text(
        "step,tokens,loss,l0,ev/base,evaluate/ev\n"
        + "".join(
            f"{step},{64 * step},{1 / step},2.0,{'' if step == 1 else 0.5},\n" for step in range(1, 1501)
        )
        + "1500,96000,,,,0.9\n"
    )
    question = {"auroc_chosen": 0.9, "bound": None, "n_yes": 3, "n_no": 4}
    asked = [("onset", "deductive", 3), ("function", "deductive", 3), ("onset", "contrastive", SURVIVOR)]
    chosen = [{"kind": k, "category": c, "latent": n, "auroc": 0.81, **question} for k, c, n in asked]
    atomic_write_json(folder / "categories.json", chosen)
