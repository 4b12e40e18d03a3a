"""What each method says of every latent; a method is a function of the measured figures alone."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.planted.measure import Measured
from crosscoders.diffing.planted import SPECIFIC
from crosscoders.diffing.verdicts import Thresholds, judge_all
from crosscoders.latents import LatentTable

OUT_OF_REACH = 1 - 1e-9  # a threshold that nothing passes: the test is left out
NORM_SHARES = (0.9, 5 / 6)  # 5/6 is the field's 0.9 in its own convention (Minder et al. 2025)
NU_ERROR, NU_RECONSTRUCTION = 0.2, 0.5


@dataclass(frozen=True, kw_only=True)
class Claims:
    """One verdict per latent, and the source that each is said to be specific to.

    Args:
        verdicts: Ours, or model-specific against shared for methods that know no other.
        owners: None where the latent is not called model-specific, or the method cannot tell.
    """

    verdicts: list[str]
    owners: list[int | None] | None


Method = Callable[[Measured, Thresholds], Claims]


def evidence_of(found: Measured) -> LatentTable:
    """The evidence, which a method for crosscoders needs."""
    assert found.evidence is not None, "an autoencoder of the difference has no evidence on two sources"
    return found.evidence


def _claims(specific: Tensor, owner: Tensor, found: Measured) -> Claims:
    """Claims of a method that knows only specific and not; latents that never fire make none."""
    called = (specific & (found.match.frequency > 0)).tolist()
    return Claims(
        verdicts=[SPECIFIC if yes else "shared" for yes in called],
        owners=[int(at) if yes else None for yes, at in zip(called, owner.tolist(), strict=True)],
    )


def ours(found: Measured, thresholds: Thresholds) -> Claims:
    """The library's verdicts."""
    verdicts = [judgement.verdict for judgement in judge_all(evidence_of(found), thresholds)]
    stronger = evidence_of(found)["stronger"].tolist()
    owners = [int(at) if said == SPECIFIC else None for said, at in zip(verdicts, stronger, strict=True)]
    return Claims(verdicts=verdicts, owners=owners)


def without_reuse(found: Measured, thresholds: Thresholds) -> Claims:
    """Ours without the test for known directions."""
    return ours(found, replace(thresholds, reused=OUT_OF_REACH))


def without_partner(found: Measured, thresholds: Thresholds) -> Claims:
    """Ours without the test for decoupled pairs."""
    return ours(found, replace(thresholds, partner=OUT_OF_REACH))


def norm_bins(share: float) -> Method:
    """Model-specific where one source holds more than this share of the width-adjusted decoder norms."""

    def claim(found: Measured, thresholds: Thresholds) -> Claims:
        of_second = evidence_of(found)["norm_share"]
        return _claims((of_second > share) | (of_second < 1 - share), of_second > 0.5, found)

    return claim


def latent_scaling(found: Measured, thresholds: Thresholds) -> Claims:
    """Both published gates: |nu_error| < 0.2 and |nu_reconstruction| < 0.5."""
    return _claims(_passes_gates(found), found.scaling["reference"], found)


def latent_scaling_and_norms(found: Measured, thresholds: Thresholds) -> Claims:
    """Both published gates on the latents that the norms call exclusive."""
    of_second = evidence_of(found)["norm_share"]
    edge = NORM_SHARES[1]
    one_sided = (of_second > edge) | (of_second < 1 - edge)
    return _claims(_passes_gates(found) & one_sided, found.scaling["reference"], found)


def _passes_gates(found: Measured) -> Tensor:
    """False where either figure is refused (NaN)."""
    error, reconstruction = found.scaling["nu_error"].abs(), found.scaling["nu_reconstruction"].abs()
    return (error < NU_ERROR) & (reconstruction < NU_RECONSTRUCTION)


def dedicated(n_per_source: tuple[int, int]) -> Method:
    """Model-specific where the structure dedicates the latent to one source."""

    def claim(found: Measured, thresholds: Thresholds) -> Claims:
        at = torch.arange(len(found.match.frequency))
        return _claims(at < sum(n_per_source), (at >= n_per_source[0]).long(), found)

    return claim


def every_live_latent(found: Measured, thresholds: Thresholds) -> Claims:
    """A sparse autoencoder of the difference claims with every latent that fires, and names no source."""
    fires = found.match.frequency > 0
    return Claims(verdicts=[SPECIFIC if yes else "shared" for yes in fires.tolist()], owners=None)


METHODS: dict[str, Method] = {
    "ours": ours,
    "norm share > 0.9": norm_bins(NORM_SHARES[0]),
    "norm share > 0.833": norm_bins(NORM_SHARES[1]),
    "latent scaling": latent_scaling,
    "latent scaling, norm share > 0.833": latent_scaling_and_norms,
    "ours without re-use test": without_reuse,
    "ours without partner test": without_partner,
}
