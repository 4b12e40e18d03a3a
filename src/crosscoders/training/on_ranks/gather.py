"""The whole crosscoder from the ranks that each hold some of its latents."""

import torch
import torch.nn.functional as F
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
        key: _whole(part, n_latents, axis=crosscoder.ranks.latents) if key in keys else part.clone()
        for key, part in crosscoder.state_dict().items()
    }
    with torch.device("meta"):  # nothing is drawn that would be overwritten
        whole = Crosscoder(crosscoder.config)
    whole.load_state_dict(state, strict=True, assign=True)
    whole.origin = crosscoder.origin
    return whole.train(crosscoder.training)


def _whole(part: Tensor, n_latents: int, *, axis: Axis) -> Tensor:
    """The rows of all ranks, of which the last may hold fewer than the others, or none."""
    per_rank = -(-n_latents // axis.size)
    padded = F.pad(part, (0, 0) * (part.ndim - 1) + (0, per_rank - len(part)))
    rows = axis.gather(padded).flatten(0, 1)
    return rows[:n_latents].clone() if axis.size == 1 or len(rows) > n_latents else rows
