"""How well verdicts on latents agree with the planted truth, per kind and base rate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from crosscoders._typing import typed
from crosscoders.diffing.planted.config import KINDS, Kind
from crosscoders.diffing.planted.features import PlantedFeature
from crosscoders.diffing.planted.matching import FeatureMatch
from crosscoders.diffing.planted.tables import KindScore, PlantedScore, SpecificScore

SPECIFIC = "model-specific"
RIGHT_VERDICT: dict[Kind, str] = {
    "shared": "shared",
    "exclusive": SPECIFIC,
    "reused": "re-used",
    "rotated": "rotated",
    "rescaled": "re-scaled",
}
UNDECIDED = ("undecided", "unstable")  # verdicts that say nothing: neither right nor misjudged


@typed
def score(
    features: Sequence[PlantedFeature],
    *,
    match: FeatureMatch,
    verdicts: Sequence[str],
    rates: Sequence[float],
    owners: Sequence[int | None] | None = None,
    unmatched_are_false: bool = True,
) -> PlantedScore:
    """Compare the verdict on every latent with what the feature that it follows truly is.

    A feature has the verdict of its latent. A latent called model-specific is a false call if it follows a
    feature of another kind or source, or none; a second latent of a feature that was called rightly counts
    neither way. False calls belong to the base rate nearest, in logarithms, to the rate of the feature or
    else to the frequency of the latent.

    Args:
        features: The truth.
        match: Which latents follow which features.
        verdicts: One verdict per latent.
        rates: Base rates, one row each.
        owners: Source that each latent is said to be specific to, None where it is not; left out, calls are
            not held to the source.
        unmatched_are_false: Whether a call on a latent that follows nothing planted is false: so in a planted
            world, but not where features were planted into real activations.

    Returns:
        The scores.

    Raises:
        ValueError: Not one verdict or owner per latent, not one feature per matched one, or no rate.
    """
    _check(features, match=match, verdicts=verdicts, rates=rates, owners=owners)
    judged = _Judged(features=features, match=match, verdicts=verdicts, rates=rates, owners=owners)
    recovered = match.is_recovered.tolist()
    return PlantedScore(
        kinds=tuple(judged.kind_score(kind, rate, recovered) for rate in rates for kind in KINDS),
        specific=tuple(judged.specific_score(rate, recovered, unmatched_are_false) for rate in rates),
    )


@typed
def nearest_rate(rate: float, rates: Sequence[float]) -> float:
    """The base rate nearest to a rate in logarithms; the lowest one for a rate of 0.

    Args:
        rate: Share of tokens.
        rates: Base rates.
    """
    if rate == 0:
        return min(rates)
    return min(rates, key=lambda base: abs(math.log(base / rate)))


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class _Judged:
    """The truth, the verdicts and which belongs to which."""

    features: Sequence[PlantedFeature]
    match: FeatureMatch
    verdicts: Sequence[str]
    rates: Sequence[float]
    owners: Sequence[int | None] | None

    def is_right(self, feature: int, latent: int) -> bool:
        """Whether the latent's verdict is what the feature is; model-specific also names the source."""
        truth = self.features[feature]
        names_source = truth.kind != "exclusive" or self.owners is None or self.owners[latent] == truth.owner
        return names_source and self.verdicts[latent] == RIGHT_VERDICT[truth.kind]

    def kind_score(self, kind: Kind, rate: float, recovered: Sequence[bool]) -> KindScore:
        """What became of the features of one kind near one base rate."""
        members = self._members(kind, rate)
        latent = {i: int(self.match.latent[i]) for i in members if recovered[i]}
        said = [self.verdicts[j] for j in latent.values()]
        right = [self.is_right(i, j) for i, j in latent.items()]
        return KindScore(
            kind=kind,
            rate=rate,
            n_features=len(members),
            n_recovered=len(latent),
            n_called=said.count(SPECIFIC),
            n_right=sum(right),
            n_undecided=sum(verdict in UNDECIDED for verdict in said),
        )

    def specific_score(
        self, rate: float, recovered: Sequence[bool], unmatched_are_false: bool
    ) -> SpecificScore:
        """How good the calls near one base rate are."""
        row = self.kind_score("exclusive", rate, recovered)
        false = self._false_calls(rate)
        n_unmatched = sum(feature is None for feature in false) if unmatched_are_false else 0
        return SpecificScore(
            rate=rate,
            n_true=row.n_right,
            n_false=sum(feature is not None for feature in false) + n_unmatched,
            n_unmatched=n_unmatched,
            n_missed=row.n_recovered - row.n_right,
            n_not_recovered=row.n_not_recovered,
        )

    def _members(self, kind: Kind, rate: float) -> list[int]:
        return [
            i
            for i, feature in enumerate(self.features)
            if feature.kind == kind and nearest_rate(feature.rate, self.rates) == rate
        ]

    def _false_calls(self, rate: float) -> list[int | None]:
        """For each false call near this base rate, the feature that the latent follows, if any."""
        found: list[int | None] = []
        has_feature, feature = self.match.has_feature.tolist(), self.match.feature.tolist()
        frequency = self.match.frequency.tolist()
        for j in (j for j, verdict in enumerate(self.verdicts) if verdict == SPECIFIC):
            follows = feature[j] if has_feature[j] else None
            near = frequency[j] if follows is None else self.features[follows].rate
            is_true = follows is not None and self.is_right(follows, j)
            if nearest_rate(near, self.rates) == rate and not is_true:
                found.append(follows)
        return found


def _check(
    features: Sequence[PlantedFeature],
    *,
    match: FeatureMatch,
    verdicts: Sequence[str],
    rates: Sequence[float],
    owners: Sequence[int | None] | None,
) -> None:
    n_latents = len(match.feature)
    n_owners = n_latents if owners is None else len(owners)
    if len(verdicts) != n_latents or n_owners != n_latents:
        raise ValueError(
            f"score: expected one verdict and one owner for each of {n_latents} latents, got "
            f"{len(verdicts)} and {n_owners}."
        )
    if len(features) != len(match.latent):
        raise ValueError(f"score: {len(match.latent)} features were matched and {len(features)} given.")
    if not rates or min(rates) <= 0:
        raise ValueError(f"score: expected base rates above 0, got {rates}.")
