"""Latent scaling: how much of a latent's decoder direction either source carries when the latent fires."""

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.diffing.measures.moments import Moments, check_moments, normalized_weights
from crosscoders.sources import Source, column_slices, compared_pair

Target = Literal["error", "reconstruction", "reconstruction_without_bias", "activation"]
TARGETS: tuple[Target, ...] = ("error", "reconstruction", "reconstruction_without_bias", "activation")
MIN_FIRINGS = 100


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class LatentScaling:
    """Scaling factors beta of each latent in two sources, by target, and their ratios nu.

    The reference of a latent is the source in which its decoder vector is longer (the first where both are
    equally long), so that the figures are the same for both orders of the pair.

    Args:
        latents: Number of each latent in the crosscoder.
        pair: Names of the two sources.
        reference: Which of the two is the reference.
        n_firings: Tokens on which each latent fires.
        beta: beta of either source [chosen 2] by target; NaN for one that never fires or has no direction.
    """

    latents: Int[Tensor, " chosen"]
    pair: tuple[str, str]
    reference: Int[Tensor, " chosen"]
    n_firings: Int[Tensor, " chosen"]
    beta: dict[Target, Float[Tensor, "chosen 2"]]

    @typed
    def refused(self, target: Target = "error") -> Bool[Tensor, " chosen"]:
        """Latents without a ratio: fewer than 100 firings, beta of the reference not above zero, or a NaN.

        Args:
            target: What was fitted.

        Returns:
            One entry per chosen latent.
        """
        beta = self.beta[target]
        at_reference = beta.gather(1, self.reference[:, None])[:, 0]
        return (self.n_firings < MIN_FIRINGS) | ~(at_reference > 0) | beta.isnan().any(dim=1)

    @typed
    def n_refused(self, target: Target = "error") -> int:
        """How many latents `refused` names.

        Args:
            target: What was fitted.

        Returns:
            A count.
        """
        return int(self.refused(target).sum())

    @typed
    def nu(self, target: Target = "error") -> Float[Tensor, " chosen"]:
        """beta of the other source over beta of the reference; NaN where refused. Gates want |nu|.

        High for "error": the other source carries the feature and its decoder was shrunk (complete
        shrinkage). High for "reconstruction": other latents write it there (latent decoupling).

        Args:
            target: What was fitted.

        Returns:
            One ratio per chosen latent, without unit; it may be negative or exceed 1.
        """
        beta = self.beta[target]
        at_reference = beta.gather(1, self.reference[:, None])[:, 0]
        other = beta.gather(1, 1 - self.reference[:, None])[:, 0]
        return torch.where(self.refused(target), torch.nan, other / at_reference)

    @typed
    def passes_gates(self, *, error: float = 0.2, reconstruction: float = 0.5) -> Bool[Tensor, " chosen"]:
        """The literature's test of exclusivity: |nu_error| and |nu_reconstruction| below their thresholds.

        It passes rotated features and known directions in new contexts too: a baseline, not a verdict.

        Args:
            error: Threshold of |nu| for the error.
            reconstruction: Threshold of |nu| for the reconstruction with bias.

        Returns:
            One entry per chosen latent; False where refused.
        """
        return (self.nu("error").abs() < error) & (self.nu("reconstruction").abs() < reconstruction)


@typed
def latent_scaling(
    moments: Moments,
    crosscoder: Crosscoder,
    *,
    pair: tuple[str, str] | None = None,
    direction: Literal["reference", "own"] = "reference",
) -> LatentScaling:
    """Closed-form latent scaling of all latents from one pass (Minder, Dumas et al. 2025, 2504.02922).

    beta_j^s = argmin_b sum |y^s - b f_j d_j|^2 = d_j . sum f_j y^s / (|d_j|^2 sum f_j^2), with d_j the
    decoder vector of the reference in both sources, and as y^s the error with the latent's own part of that
    source put back (e^s + f_j d_j^s), the reconstruction with or without b_dec, or the activation. For the
    error this is (d_j . sum f_j e^s + C_j d_j . d_j^s) / (C_j |d_j|^2), C_j = sum f_j^2.

    The bias shifts beta of the reconstruction by (d . b) sum f / (|d|^2 sum f^2): both are given.

    Args:
        moments: From `collect_moments` with this crosscoder.
        crosscoder: The crosscoder.
        pair: Names of two sources; the first and the last by default.
        direction: "reference" is the published form and needs equal widths. "own" fits each source along its
            own decoder direction and gives beta in units of the reference's vector, each source's strength
            relative to sqrt(d_model): for unequal widths. A source whose decoder vector is zero has no
            direction of its own: NaN, and refused.

    Returns:
        The factors, in normalized space.

    Raises:
        ValueError: Unknown sources, moments of another crosscoder, or unequal widths with "reference".
    """
    check_moments(moments, crosscoder, where="latent_scaling")
    compared = compared_pair(moments.sources, pair, where="latent_scaling")
    if direction == "reference" and compared[0].d_model != compared[1].d_model:
        raise ValueError(
            f"latent_scaling: widths {compared[0].d_model} and {compared[1].d_model} differ, so that the "
            'reference\'s direction does not exist in the other source; pass direction="own".'
        )
    decoders, bias = _of_pair(moments, crosscoder, compared)
    axes, reference, scale = _axes(decoders, is_own=direction == "own")
    products = [_products(moments, *part) for part in zip(compared, decoders, bias, strict=True)]
    squares = moments.sum_squares.sum(dim=0)[moments.latents, None]
    beta: dict[Target, Tensor] = {}
    for target in TARGETS:
        along = [(product[target] * axis).sum(dim=1) for product, axis in zip(products, axes, strict=True)]
        beta[target] = torch.stack(along, dim=1) / (squares * scale)
    return LatentScaling(
        latents=moments.latents,
        pair=(compared[0].name, compared[1].name),
        reference=reference,
        n_firings=moments.n_firings.sum(dim=0)[moments.latents],
        beta=beta,
    )


def _axes(decoders: list[Tensor], *, is_own: bool) -> tuple[list[Tensor], Tensor, Tensor]:
    """Unit direction in either source, the reference, and the length of its vector in each source's units."""
    norms = torch.stack([decoder.norm(dim=1) for decoder in decoders], dim=1)
    reference = norms.argmax(dim=1)
    axes = [decoder / norm[:, None] for decoder, norm in zip(decoders, norms.T, strict=True)]
    if not is_own:
        axes = [torch.where(reference[:, None] == 0, *axes)] * 2
    widths = torch.tensor([decoder.shape[1] for decoder in decoders], dtype=torch.float64)
    scale = norms.gather(1, reference[:, None]) * (widths / widths[reference][:, None]).sqrt()
    return axes, reference, scale


def _of_pair(
    moments: Moments, crosscoder: Crosscoder, pair: tuple[Source, Source]
) -> tuple[list[Tensor], list[Tensor]]:
    W_dec, b_dec = normalized_weights(crosscoder)
    columns = column_slices(moments.sources)
    decoders = [W_dec.cpu()[moments.latents, columns[source.name]] for source in pair]
    return decoders, [b_dec.cpu()[columns[source.name]] for source in pair]


def _products(moments: Moments, source: Source, decoder: Tensor, bias: Tensor) -> dict[Target, Tensor]:
    """sum f y^T over all blocks for each target y, [chosen d_model]."""
    columns = column_slices(moments.sources)[source.name]
    error = moments.with_error[:, :, columns].sum(dim=0)
    without_bias = moments.with_reconstruction[:, :, columns].sum(dim=0)
    sums, squares = (
        total.sum(dim=0)[moments.latents, None] for total in (moments.sum_latents, moments.sum_squares)
    )
    reconstruction = without_bias + sums * bias
    return {
        "error": error + squares * decoder,
        "reconstruction": reconstruction,
        "reconstruction_without_bias": without_bias,
        "activation": error + reconstruction,
    }
