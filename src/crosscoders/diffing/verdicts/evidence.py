"""The evidence behind a verdict: every measure of every latent, as one table."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Bool
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.diffing.batches import MeasureBatch
from crosscoders.diffing.measures.decodability import decodability
from crosscoders.diffing.measures.free_direction import FreeDirection, free_direction
from crosscoders.diffing.measures.jackknife import JackknifeEstimate
from crosscoders.diffing.measures.moments import Moments, collect_moments, normalized_weights
from crosscoders.diffing.measures.off_activity import off_activity
from crosscoders.diffing.measures.reuse import reuse
from crosscoders.diffing.measures.scaling import latent_scaling
from crosscoders.diffing.measures.stability import Stability
from crosscoders.diffing.measures.swap import SwapReadout, swap_readout
from crosscoders.diffing.measures.twins import twins
from crosscoders.diffing.verdicts.thresholds import Thresholds
from crosscoders.latents import LatentTable
from crosscoders.metrics import decoder_norm_share
from crosscoders.sources import column_slices, compared_pair, source_index

Columns = dict[str, Tensor]
Batches = Callable[[], Iterable[MeasureBatch]]


@typed
def gather_evidence(
    crosscoder: Crosscoder,
    batches: Batches,
    *,
    pair: tuple[str, str] | None = None,
    stability: Stability | None = None,
    thresholds: Thresholds | None = None,
) -> LatentTable:
    """Measure every latent on held-out rows: what `judge` decides from.

    Columns, NaN where undefined or not measured ("weaker" and "stronger" say which source writes less when
    the latent fires): `n_firings`, `n_sequences`, `mean_activation`; `norm_share`, the second source's share
    of the decoder norms, each over sqrt(d_model) (the NRN for equal widths); `stronger` (0, 1, or -1);
    `ratio`, the noise-corrected squared strength of the weaker source over that of the stronger, and
    `kappa`, the cosine of the two directions, with intervals (`free_direction`); `nu_error`,
    `nu_reconstruction` with and without bias (`latent_scaling`); `reuse_cosine` and `reuse_latent`, the
    known direction nearest to the stronger source's (`reuse`); `off_activity`, for a silent source its
    variance along the other's direction while the latent is off, over that along random ones
    (`off_activity`); `partner` and `partner_correlation`, the latent that belongs more to the weaker source
    and fires with it most (`twins`); `decodable/<source>` (`decodability`); `decoder_cosine`, that of the
    two decoder rows; `swap_gained`, `swap_lost` (`swap_readout`) and `swap_readable`, 1 or 0, which says
    whether the swap can be read; `stability` (`stability`).

    Sources of unequal widths have no common space: `kappa`, `decoder_cosine`, `off_activity` and the swap
    readout are not measured then, and `nu_error` and its like follow each source's own decoder direction.

    Args:
        crosscoder: Any crosscoder.
        batches: Gives the held-out rows, afresh at each call: most measures share one pass over them, the
            others read them again.
        pair: Names of two sources; the first and the last by default.
        stability: From `crosscoders.diffing.measures.stability`; None leaves it unmeasured.
        thresholds: Say which latents count as written by both sources; the defaults if None.

    Returns:
        One row per latent.

    Raises:
        ValueError: Unknown sources, or rows that the measures refuse.
    """
    first, second = compared_pair(crosscoder.sources, pair, where="gather_evidence")
    names, at = (first.name, second.name), thresholds or Thresholds()
    has_one_width = first.d_model == second.d_model
    moments = collect_moments(crosscoder, batches())
    fit = free_direction(moments, crosscoder, pair=names)
    columns = _counts(moments) | _norms(crosscoder, names, has_one_width=has_one_width) | _fit(fit)
    columns |= _scaling(moments, crosscoder, names, has_one_width=has_one_width)
    writes = _writes(fit, at)
    columns |= _reuse(moments, crosscoder, fit, writes) | _partners(moments, crosscoder, fit, at)
    columns |= _off_activity(crosscoder, batches, fit, at, has_one_width=has_one_width)
    columns |= {
        f"decodable/{name}": values
        for name, values in zip(names, decodability(moments, crosscoder, pair=names).correlation.T)
    }
    swap = None
    if has_one_width:
        swap = swap_readout(crosscoder, batches(), slots=names, pair=names)
    columns |= _swap(swap, crosscoder.n_latents) | _stability(stability, crosscoder.n_latents)
    return LatentTable({name: column.detach().cpu() for name, column in columns.items()}, moments.n_rows)


def _counts(moments: Moments) -> Columns:
    return {
        "latent": moments.latents,
        "n_firings": moments.n_firings.sum(dim=0),
        "n_sequences": moments.n_sequences.sum(dim=0),
        "mean_activation": moments.sum_latents.sum(dim=0) / moments.n_firings.sum(dim=0),
    }


def _norms(crosscoder: Crosscoder, names: tuple[str, str], *, has_one_width: bool) -> Columns:
    which = [source_index(crosscoder.sources, name) for name in names]
    roots = torch.tensor([crosscoder.sources[i].d_model for i in which], dtype=torch.float64).sqrt()
    norms = crosscoder.decoder_norms().detach().double().cpu()[:, which] / roots
    cosine = torch.full((len(norms),), torch.nan, dtype=torch.float64)
    if has_one_width:
        W_dec, columns = normalized_weights(crosscoder)[0].cpu(), column_slices(crosscoder.sources)
        a, b = (W_dec[:, columns[name]] for name in names)
        cosine = (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))
    return {"norm_share": decoder_norm_share(norms)[:, 1], "decoder_cosine": cosine}


def _fit(fit: FreeDirection) -> Columns:
    return {
        "stronger": fit.stronger,
        **_with_interval("ratio", fit.weaker_ratio_squared, len(fit.stronger)),
        **_with_interval("kappa", fit.kappa, len(fit.stronger)),
    }


def _with_interval(name: str, found: JackknifeEstimate | None, n: int) -> Columns:
    if found is None:
        nothing = torch.full((n,), torch.nan, dtype=torch.float64)
        return {name: nothing, f"{name}_low": nothing, f"{name}_high": nothing}
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _scaling(
    moments: Moments, crosscoder: Crosscoder, names: tuple[str, str], *, has_one_width: bool
) -> Columns:
    direction = "reference" if has_one_width else "own"
    found = latent_scaling(moments, crosscoder, pair=names, direction=direction)
    return {
        "nu_error": found.nu("error"),
        "nu_reconstruction": found.nu("reconstruction"),
        "nu_reconstruction_without_bias": found.nu("reconstruction_without_bias"),
    }


def _writes(fit: FreeDirection, at: Thresholds) -> tuple[Bool[Tensor, " latent"], Bool[Tensor, " latent"]]:
    """Latents that the first and the second source write: the stronger one always, the weaker if it does."""
    both = fit.weaker_ratio_squared.low > at.absent
    return both | (fit.stronger == 0), both | (fit.stronger == 1)


def _of_stronger(fit: FreeDirection, first: Tensor, second: Tensor) -> Tensor:
    """The first figure where the first source is the stronger one, else the second."""
    return torch.where(fit.stronger == 0, first, second)


def _reuse(
    moments: Moments, crosscoder: Crosscoder, fit: FreeDirection, writes: tuple[Tensor, Tensor]
) -> Columns:
    """The known direction nearest to that of the stronger source, as that source or the other writes it."""
    found = reuse(moments, crosscoder, free=fit, known=writes[0] & writes[1])
    cosine, latent = found.cosine, found.known
    if found.cross_cosine is not None and found.cross_known is not None:
        is_nearer = found.cross_cosine > cosine
        cosine = torch.where(is_nearer, found.cross_cosine, cosine)
        latent = torch.where(is_nearer, found.cross_known, latent)
    return {"reuse_cosine": _of_stronger(fit, *cosine.T), "reuse_latent": _of_stronger(fit, *latent.T)}


def _off_activity(
    crosscoder: Crosscoder, batches: Batches, fit: FreeDirection, at: Thresholds, *, has_one_width: bool
) -> Columns:
    """Activity of the silent source along the other's direction where the latent is off, over random ones."""
    excess = torch.full((len(fit.latents),), torch.nan, dtype=torch.float64)
    is_silent = fit.weaker_ratio_squared.high < at.absent
    for stronger, weaker in ((0, 1), (1, 0)):
        latents = (is_silent & (fit.stronger == stronger)).nonzero().flatten()
        if len(latents) and has_one_width:
            excess[latents] = off_activity(
                crosscoder,
                batches(),
                source=fit.pair[weaker],
                latents=latents,
                directions=fit.directions[stronger][latents],
                generator=torch.Generator().manual_seed(0),
            ).excess
    return {"off_activity": excess}


def _partners(moments: Moments, crosscoder: Crosscoder, fit: FreeDirection, at: Thresholds) -> Columns:
    """The latent that belongs more to the weaker source and fires with each latent most."""
    is_one_sided = fit.weaker_ratio_squared.high < at.rescaled
    of_first, of_second = (
        twins(moments, crosscoder, candidates=is_one_sided & (fit.stronger == which)) for which in (0, 1)
    )
    return {
        "partner_correlation": _of_stronger(fit, of_second.correlation, of_first.correlation),
        "partner": _of_stronger(fit, of_second.correlated, of_first.correlated),
    }


def _swap(found: SwapReadout | None, n_latents: int) -> Columns:
    if found is None:
        nothing = torch.full((n_latents,), torch.nan, dtype=torch.float64)
        return {"swap_gained": nothing, "swap_lost": nothing, "swap_readable": nothing}
    return {
        "swap_gained": found.gained,
        "swap_lost": found.lost,
        "swap_readable": found.is_readable.double(),
    }


def _stability(found: Stability | None, n_latents: int) -> Columns:
    return _with_interval("stability", None if found is None else found.correlation, n_latents)
