"""The free-direction fit: what each source writes when a latent fires, in whatever direction that is.

Latent scaling asks how much of *one given* direction a source carries; a feature that lives in the other
model in another direction looks absent to it. Here every source keeps its own direction, so that rotated
features show, and the strengths of two sources compare without a common space.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.diffing.measures.jackknife import JackknifeEstimate, jackknife, leave_one_out
from crosscoders.diffing.measures.moments import Moments, check_moments, normalized_weights
from crosscoders.sources import Source, column_slices, compared_pair

_LATENTS_AT_ONCE = 512  # bounds the copies of the products that one step works on


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class FreeDirection:
    """Fitted directions of two sources, their noise-corrected strengths, and how they compare.

    Args:
        latents: Number of each latent in the crosscoder.
        pair: Names of the two sources.
        directions: U of either source, in normalized space: what one unit of the latent goes with there.
        rho_squared: Noise-corrected |U|^2 / d_model of either source [chosen 2]; negative below the noise.
        stronger: Which of the two is stronger; -1 where that is undefined.
        weaker_ratio_squared: rho^2 of the weaker over that of the stronger source; NaN unless the stronger
            one is above zero.
        kappa: Noise-corrected cosine of the two directions, after the map if one was given; NaN where a
            strength is not above zero; None for unequal widths without a map. May exceed 1 by its noise.
    """

    latents: Int[Tensor, " chosen"]
    pair: tuple[str, str]
    directions: tuple[Float[Tensor, "chosen _"], Float[Tensor, "chosen _"]]
    rho_squared: JackknifeEstimate
    stronger: Int[Tensor, " chosen"]
    weaker_ratio_squared: JackknifeEstimate
    kappa: JackknifeEstimate | None


@typed
def free_direction(
    moments: Moments,
    crosscoder: Crosscoder,
    *,
    pair: tuple[str, str] | None = None,
    linear_map: Float[Tensor, "_second _first"] | None = None,
) -> FreeDirection:
    """Least-squares direction of each latent in two sources, with strengths, cosine and intervals.

    U_j^s = sum f_j y_j^s / sum f_j^2 = sum f_j e^s / sum f_j^2 + d_j^s, where y_j^s = e^s + f_j d_j^s is the
    error with the latent's own part put back: the direction that minimizes sum |y - f U|^2. |U|^2 itself is
    biased upwards by noise, as much as d_model noisy coordinates add. So strengths are taken across blocks,

        (|sum_g A_g|^2 - sum_g |A_g|^2) / ((sum_g C_g)^2 - sum_g C_g^2),   A_g = sum f y, C_g = sum f^2,

    which is unbiased where blocks are independent, and the cosine likewise. Divided by d_model they are
    shares of a source's squared mean norm (the scale makes that sqrt(d_model)), so that widths compare.
    Intervals: 95%, from leaving out each block (`crosscoders.diffing.measures.jackknife`).

    Args:
        moments: From `collect_moments` with this crosscoder.
        crosscoder: The crosscoder.
        pair: Names of two sources; the first and the last by default.
        linear_map: Linear map from the first source's normalized space to the second's, for the cosine; None
            compares the directions as they are, where the widths allow it.

    Returns:
        Directions, strengths and cosine; a latent that fires in one block only has no noise-corrected ones
        (NaN), and one that never fires no direction either.

    Raises:
        ValueError: Unknown sources, a map of another shape, or moments of another crosscoder.
    """
    check_moments(moments, crosscoder, where="free_direction")
    compared = compared_pair(moments.sources, pair, where="free_direction")
    _check_map(compared, linear_map)
    names = (compared[0].name, compared[1].name)
    decoder = normalized_weights(crosscoder)[0].cpu()
    parts = [
        _fit(moments, decoder, names=names, linear_map=linear_map, at=at)
        for at in torch.arange(len(moments.latents)).split(_LATENTS_AT_ONCE)
    ]
    first, second, full, left_out = (torch.cat(part, dim=-2) for part in zip(*parts, strict=True))
    return _compare(moments, names, (first, second), full=full, left_out=left_out)


def _fit(
    moments: Moments, decoder: Tensor, *, names: tuple[str, str], linear_map: Tensor | None, at: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both directions, and U_1.U_1, U_2.U_2, mapped U_1'.U_1', U_1'.U_2 [chosen 4], also without each block.

    The last two are missing where the spaces do not meet.
    """
    latents, used = moments.latents[at], moments.is_used
    squares = moments.sum_squares[used][:, latents]
    columns = column_slices(moments.sources)
    first, second = (
        moments.restored_error(name, decoder[latents, columns[name]], at=at)[used] for name in names
    )
    mapped = first if linear_map is None else first @ linear_map.double().T
    kinds = [(first, first), (second, second)]
    if mapped.shape == second.shape:
        kinds += [(mapped, mapped), (mapped, second)]
    full, left_out = zip(*(_cross_blocks(a, b, squares) for a, b in kinds), strict=True)
    total = squares.sum(dim=0)[:, None]
    return (
        first.sum(dim=0) / total,
        second.sum(dim=0) / total,
        torch.stack(full, dim=-1),
        torch.stack(left_out, dim=-1),
    )


def _cross_blocks(a: Tensor, b: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Unbiased U_a . U_b of each latent, from pairs of different blocks: over all, and without each block."""
    same = (a * b).sum(dim=-1)
    total_a, total_b = a.sum(dim=0), b.sum(dim=0)
    full = (total_a * total_b).sum(dim=-1) - same.sum(dim=0)
    lost = (total_a * b).sum(dim=-1) + (a * total_b).sum(dim=-1) - 2 * same
    weight = squares.sum(dim=0).square() - squares.square().sum(dim=0)
    weight_lost = 2 * squares * leave_one_out(squares)
    fires = (squares > 0).double()
    # One block alone makes no pair; said by counting, for the differences of sums are not exactly zero.
    undefined, undefined_without = fires.sum(dim=0) < 2, leave_one_out(fires) < 2
    value = torch.where(undefined, torch.nan, full / weight)
    return value, torch.where(undefined_without, torch.nan, (full - lost) / (weight - weight_lost))


def _compare(
    moments: Moments,
    names: tuple[str, str],
    directions: tuple[Tensor, Tensor],
    *,
    full: Tensor,
    left_out: Tensor,
) -> FreeDirection:
    widths = torch.tensor([u.shape[1] for u in directions], dtype=torch.float64)
    rho, rho_without = full[:, :2] / widths, left_out[..., :2] / widths
    stronger = torch.where(rho.isnan().any(dim=1), -1, rho.argmax(dim=1))
    order = rho.argsort(dim=1)
    ratio = _ratio(rho.gather(1, order))
    ratio_without = _ratio(rho_without.gather(2, order.expand(len(left_out), -1, -1)))
    kappa = None
    if full.shape[1] == 4:
        kappa = jackknife(_cosine(full), _cosine(left_out))
    return FreeDirection(
        latents=moments.latents,
        pair=names,
        directions=directions,
        rho_squared=jackknife(rho, rho_without),
        stronger=stronger,
        weaker_ratio_squared=jackknife(ratio, ratio_without),
        kappa=kappa,
    )


def _ratio(weaker_and_stronger: Tensor) -> Tensor:
    weaker, stronger = weaker_and_stronger.unbind(dim=-1)
    return torch.where(stronger > 0, weaker / stronger, torch.nan)


def _cosine(products: Tensor) -> Tensor:
    _, second, mapped, both = products.unbind(dim=-1)
    return torch.where((second > 0) & (mapped > 0), both / (second * mapped).sqrt(), torch.nan)


def _check_map(pair: tuple[Source, Source], linear_map: Tensor | None) -> None:
    first, second = pair
    if linear_map is not None and linear_map.shape != (second.d_model, first.d_model):
        raise ValueError(
            f"free_direction: the map from {first.name!r} to {second.name!r} must have shape "
            f"{(second.d_model, first.d_model)}, got {tuple(linear_map.shape)}."
        )
