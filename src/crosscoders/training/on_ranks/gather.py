"""The whole crosscoder from the ranks that each hold some of its latents."""

import torch
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.parallel import Axis
from crosscoders.training.checkpoints.state import latent_keys


@torch.no_grad()
@typed
def whole_crosscoder(crosscoder: Crosscoder) -> Crosscoder:
    """Put the parts of a crosscoder together; all ranks call this together and each gets the whole.

    Args:
        crosscoder: This rank's part, as its trainer holds it.

    Returns:
        A new crosscoder on the same device, in the same mode and dtype, which no rank trains: the same,
        and the same when it is saved, as if one process had trained it.
    """
    keys, n_latents = latent_keys(crosscoder.config), crosscoder.config.n_latents
    state = {
        key: _whole(part, n_latents, axis=crosscoder.ranks.latents) if key in keys else part
        for key, part in crosscoder.state_dict().items()
    }
    whole = Crosscoder(crosscoder.config).to(crosscoder.W_enc)
    whole.load_state_dict(state, strict=True)
    whole.origin = crosscoder.origin
    return whole.train(crosscoder.training)


def _whole(part: Tensor, n_latents: int, *, axis: Axis) -> Tensor:
    """The rows of all ranks, of which the last may hold fewer than the others, or none."""
    per_rank = -(-n_latents // axis.size)
    padded = part.new_zeros((per_rank, *part.shape[1:]))
    padded[: len(part)] = part
    return axis.gather(padded).flatten(0, 1)[:n_latents]
