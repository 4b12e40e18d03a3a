"""Warm start: a new crosscoder with the weights of a trained one, for other data or another activation."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.activation_fns.base import ActivationFn, ranks_alike
from crosscoders.crosscoder import Crosscoder
from crosscoders.sources import Source, scale_vector


@torch.no_grad()
@typed
def warm_start(
    crosscoder: Crosscoder | Path | str,
    *,
    activation_fn: ActivationFn | None = None,
    sources: Sequence[Source] | None = None,
    rank_by_norms: bool = False,
) -> Crosscoder:
    """Make a new crosscoder for training to go on: the same weights; other data, k or activation function.

    It is a new run, not a resumed one (that is `Trainer.resume`): optimizer, schedules and counts of dead
    latents begin afresh. A schedule of the activation function, such as `k_initial`, runs again; pass the
    function without it to go on where the old run ended.

    New scales s' in place of s leave every pre-activation and every decoded raw activation as they were:
    W_enc' = W_enc s / s', W_dec' = W_dec s' / s, b_dec' = b_dec s' / s, column by column. Top-k families rank
    by decoder norms in the new normalized space, so unless all scales change by one factor they may select
    other latents near the edge of the selection; ReLU and JumpReLU never do.

    State of the activation function: what it learned (the thresholds of JumpReLU) is kept if the function is
    of the same kind. An inference rule that is calibrated (the threshold of BatchTopK) holds for one `k` and
    one set of scales only: it is kept if neither changes and is unset otherwise. `Trainer.fit` calibrates it;
    until then eval mode raises instead of using the old one.

    A structure of the weights is kept. Decoder rows that `SharedLatents` ties are tied in normalized space:
    where new scales change by different factors they cannot both stay tied and decode the same raw
    activations, and each shared latent gets the mean of its rescaled rows.

    A crosscoder that was converted from another library may rank latents by another weight than the sum of
    decoder norms, by which training ranks: under top-k families the same weights then select other latents.

    Args:
        crosscoder: A crosscoder, which stays as it is, or the folder of one; a folded one is unfolded.
        activation_fn: Activation function of the new one; None for the same.
        sources: The same sources by name, order and width with the scales of the new data, for instance
            `buffer.sources`; None keeps the scales that the weights were trained with.
        rank_by_norms: Accept a crosscoder that ranks by another weight; a calibrated rule is unset then.

    Returns:
        The new crosscoder on the same device and in the same dtype, in eval mode.

    Raises:
        CheckpointError: The folder holds no undamaged crosscoder.
        ValueError: `sources` differ in name, order or width, the activation function does not fit, or
            another weight ranks and `rank_by_norms` is not set.

    Example:
        >>> import torch
        >>> from crosscoders.activation_fns import TopK
        >>> from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
        >>> from crosscoders.sources import Source
        >>> from crosscoders.training import warm_start
        >>> sources = (Source(name="base", d_model=4), Source(name="distilled", d_model=4))
        >>> config = CrosscoderConfig(sources=sources, n_latents=16, activation_fn=TopK(k=2))
        >>> trained = Crosscoder(config)
        >>> warm = warm_start(trained, activation_fn=TopK(k=4))
        >>> torch.equal(warm.W_dec, trained.W_dec), warm.config.activation_fn.k
        (True, 4)
    """
    origin = crosscoder if isinstance(crosscoder, Crosscoder) else Crosscoder.from_pretrained(crosscoder)
    old = origin.unfold(rank_by_norms=rank_by_norms)
    config = dataclasses.replace(
        old.config,
        activation_fn=activation_fn or old.config.activation_fn,
        sources=old.sources if sources is None else _same_columns(old.sources, sources),
    )
    new = Crosscoder(config).to(old.W_enc)
    factor = _column_factor(old.sources, new.sources).to(old.W_enc)
    new.W_enc.copy_(old.W_enc / factor)
    new.b_enc.copy_(old.b_enc)
    new.W_dec.copy_(old.W_dec * factor)
    new.b_dec.copy_(old.b_dec * factor)
    new.impose_structure()
    new.selection_weight.copy_(new.selection_scale())
    is_same_ranking = ranks_alike(origin.selection_scale(), old.selection_scale())
    _keep_activation_state(old, new, is_same_ranking=is_same_ranking)
    return new.eval()


def _same_columns(old: Sequence[Source], new: Sequence[Source]) -> tuple[Source, ...]:
    expected, got = ([(source.name, source.d_model) for source in group] for group in (old, new))
    if expected != got:
        raise ValueError(
            f"warm_start: the crosscoder reads the sources {expected} (name, d_model), got {got}; pass the "
            "same sources in the same order, or None to keep the saved ones."
        )
    return tuple(new)


def _column_factor(old: Sequence[Source], new: Sequence[Source]) -> Tensor:
    """New scale over old scale of each column; exactly 1 where it does not change."""
    return scale_vector(new, dtype=torch.float64) / scale_vector(old, dtype=torch.float64)


def _keep_activation_state(old: Crosscoder, new: Crosscoder, *, is_same_ranking: bool) -> None:
    """Copy what still holds for the new function, the new scales and the new ranking."""
    before, after = old.config.activation_fn, new.config.activation_fn
    if type(before) is not type(after):
        return
    scales = [[source.scale for source in crosscoder.sources] for crosscoder in (old, new)]
    is_calibration_valid = before == after and scales[0] == scales[1] and is_same_ranking
    state = dict(old.activation.named_parameters())
    if is_calibration_valid or not new.activation.needs_calibration:
        state = old.activation.state_dict()
    new.activation.load_state_dict({**new.activation.state_dict(), **state}, strict=True)
