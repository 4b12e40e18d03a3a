"""Verdicts on several crosscoders alike: seeds are compared with each other, plants with what was found."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosscoders.crosscoder import Crosscoder
from crosscoders.diffing.measures.stability import stability
from crosscoders.diffing.planted import match_features
from crosscoders.diffing.planted.spike_in import Spikes, typical_strength
from crosscoders.diffing.verdicts import (
    RESCALED,
    ROTATED,
    SHARED,
    SPECIFIC,
    Judgement,
    Power,
    PowerAtRate,
    count_verdicts,
    gather_evidence,
    judge_all,
)
from crosscoders.latents import LatentTable
from crosscoders.pipeline.verify.jobs import Job
from crosscoders.pipeline.verify.options import VerifyOptions
from crosscoders.pipeline.verify.rows import HeldOutRows
from crosscoders.sources import column_slices


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """One crosscoder with its verdicts.

    Args:
        crosscoder: The crosscoder.
        evidence: One row per latent.
        judgements: One per latent.
    """

    crosscoder: Crosscoder
    evidence: LatentTable
    judgements: tuple[Judgement, ...]

    @property
    def frequency(self) -> Float[Tensor, " latent"]:
        """Share of tokens on which each latent fires."""
        return self.evidence["n_firings"].double() / self.evidence.n_tokens

    @property
    def mean_activation(self) -> Float[Tensor, " latent"]:
        """Mean activation of each latent where it fires."""
        return self.evidence["mean_activation"]

    @property
    def typical_strength(self) -> float:
        """Share of the mean activation norm that a typical latent writes where it fires."""
        norms = self.crosscoder.decoder_norms().detach().double().cpu()
        return typical_strength(norms, self.mean_activation, sources=self.crosscoder.sources)

    @property
    def is_specific(self) -> Bool[Tensor, " latent"]:
        """Whether each latent is called model-specific."""
        return torch.tensor([found.verdict == SPECIFIC for found in self.judgements])

    @property
    def n_live(self) -> int:
        """Latents that fire."""
        return int((self.frequency > 0).sum())

    def counts(self) -> dict[str, int]:
        """Live latents of each verdict, in the order of `VERDICTS`."""
        return count_verdicts(self.judgements, self.frequency > 0)

    @property
    def n_specific(self) -> int:
        """Latents called model-specific."""
        return int(self.is_specific.sum())


def judge_group(
    crosscoders: Sequence[Crosscoder],
    jobs: Sequence[Job],
    rows: HeldOutRows,
    options: VerifyOptions,
    *,
    is_compared: bool,
) -> tuple[Judged, ...]:
    """Verdicts on crosscoders that differ in their seed alone.

    Args:
        crosscoders: The crosscoders.
        jobs: What each reads.
        rows: Held-out rows.
        options: Thresholds.
        is_compared: Whether stability counts, where there are two or more.
    """
    found = []
    for at, (crosscoder, job) in enumerate(zip(crosscoders, jobs, strict=True)):
        others = [other for number, other in enumerate(crosscoders) if is_compared and number != at]
        stable = stability([crosscoder, *others], rows.of(job)) if others else None
        evidence = gather_evidence(
            crosscoder, lambda job=job: rows.of(job), stability=stable, thresholds=options.thresholds
        )
        judgements = judge_all(evidence, options.thresholds)
        found.append(Judged(crosscoder=crosscoder, evidence=evidence, judgements=judgements))
    return tuple(found)


def known_rows(crosscoder: Crosscoder, judged: Judged) -> Tensor:
    """Raw decoder rows of the latents that both models write.

    Args:
        crosscoder: The crosscoder.
        judged: Its verdicts.
    """
    is_known = torch.tensor([found.verdict in (SHARED, RESCALED, ROTATED) for found in judged.judgements])
    return crosscoder.fold().W_dec.detach().cpu()[is_known]


def power_of(judged: Judged, job: Job, rows: HeldOutRows, *, typical: float) -> Power:
    """What became of the plants.

    Args:
        judged: Verdicts on the crosscoder that was trained on planted rows.
        job: Its plants.
        rows: Held-out rows.
        typical: What a typical latent of the run writes, for comparison.
    """
    assert job.spikes is not None
    with torch.no_grad():
        match = match_features(
            (activations, judged.crosscoder.encode(batch.rows.to(judged.crosscoder.W_enc.device)))
            for activations, batch in zip(rows.planted(job), rows.of(job), strict=True)
        )
    features, recovered = job.spikes.features, match.is_recovered.tolist()
    latent = match.latent.tolist()
    stronger = judged.evidence["stronger"].tolist()
    called = [
        recovered[i]
        and judged.judgements[latent[i]].verdict == SPECIFIC
        and stronger[latent[i]] == feature.owner
        for i, feature in enumerate(features)
    ]
    exclusive = [i for i, feature in enumerate(features) if feature.kind == "exclusive"]
    known = [i for i, feature in enumerate(features) if feature.kind == "reused"]
    return Power(
        rates=tuple(
            _at_rate(rate, [i for i in exclusive if features[i].rate == rate], recovered, called)
            for rate in dict.fromkeys(features[i].rate for i in exclusive)
        ),
        known_direction_specific=sum(called[i] for i in known),
        known_direction_planted=len(known),
        strength=_strength(job.spikes),
        typical_strength=typical,
    )


def _at_rate(rate: float, which: list[int], recovered: list[bool], called: list[bool]) -> PowerAtRate:
    return PowerAtRate(
        rate=rate,
        n_planted=len(which),
        n_recovered=sum(recovered[i] for i in which),
        n_specific=sum(called[i] for i in which),
    )


def _strength(spikes: Spikes) -> float:
    """Mean norm of the plants over their source's mean norm, which is sqrt(d_model) over the scale."""
    shares = [
        spikes.directions[:, columns].norm(dim=1) * source.scale / source.d_model**0.5
        for source, columns in zip(spikes.sources, column_slices(spikes.sources).values(), strict=True)
    ]
    return float(torch.stack(shares).amax(dim=0).mean())
