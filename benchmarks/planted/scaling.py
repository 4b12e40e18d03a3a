"""Latent scaling as published, with a linear map where widths differ: a baseline of the benchmark."""

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders.crosscoder import Crosscoder
from crosscoders.diffing.measures.moments import Moments, normalized_weights
from crosscoders.sources import column_slices

MIN_FIRINGS = 100


def mapped_scaling(
    moments: Moments, crosscoder: Crosscoder, *, maps: tuple[Tensor, Tensor]
) -> dict[str, Float[Tensor, " latent"]]:
    """nu of the error and of the reconstruction, the weaker source's targets brought over by a linear map.

    The reference is the source with the longer decoder vector (over sqrt(d_model)). With M the map into its
    space, beta_other = d_ref . M (sum f y_other) / (|d_ref|^2 sum f^2); the map adds nothing that the rows of
    the other source do not hold. Without such a map the method does not exist for unequal widths.

    Args:
        moments: Of this crosscoder, all latents.
        crosscoder: The crosscoder.
        maps: Map from the first to the second source in normalized space, and the map back.

    Returns:
        `nu_error`, `nu_reconstruction` and `reference`; NaN where fewer than 100 firings or beta_ref <= 0.
    """
    W_dec, bias = normalized_weights(crosscoder)
    columns = list(column_slices(crosscoder.sources).values())
    decoders = [W_dec[:, c] for c in columns]
    shares = torch.stack([d.norm(dim=1) / d.shape[1] ** 0.5 for d in decoders], dim=1)
    reference = shares.argmax(dim=1)
    squares, sums = moments.sum_squares.sum(dim=0), moments.sum_latents.sum(dim=0)
    found: dict[str, Tensor] = {"reference": reference}
    for target in ("error", "reconstruction"):
        products = []
        for c, decoder in zip(columns, decoders):
            if target == "error":
                products.append(moments.with_error[:, :, c].sum(dim=0) + squares[:, None] * decoder)
            else:
                part = moments.with_reconstruction[:, :, c].sum(dim=0)
                products.append(part + sums[:, None] * bias[c])
        at_second = _nu(products[1], products[0] @ maps[0].T, decoders[1])
        at_first = _nu(products[0], products[1] @ maps[1].T, decoders[0])
        nu = torch.where(reference == 1, at_second, at_first)
        refused = moments.n_firings.sum(dim=0) < MIN_FIRINGS
        found[f"nu_{target}"] = torch.where(refused, torch.nan, nu)
    return found


def _nu(own: Tensor, other: Tensor, direction: Tensor) -> Tensor:
    along_own, along_other = (own * direction).sum(dim=1), (other * direction).sum(dim=1)
    return torch.where(along_own > 0, along_other / along_own, torch.nan)
