"""Harvesting on several ranks: each reads some sequences, and all get all activations."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from crosscoders._typing import typed
from crosscoders.harvest.model_sources import ModelSources
from crosscoders.parallel import Axis
from crosscoders.sources import Source, width


class SplitHarvest:
    """`ModelSources` on every rank, of which each reads its part of the sequences of a batch of tokens.

    A buffer over it holds the same rows on every rank, as the trainer needs them, for one part of the work.
    The ranks talk through a group of their own, so that a thread may harvest while the trainer's sums go on.
    There they talk through the host: two threads that use NCCL at once may wait for each other forever.

    Args:
        sources: The same models on every rank.
        mesh: The mesh of the run; all its ranks make this object together.
        in_thread: Whether another thread trains meanwhile.
    """

    def __init__(self, sources: ModelSources, mesh: DeviceMesh, *, in_thread: bool = False) -> None:
        self.models = sources
        members = mesh.mesh.flatten().tolist()
        backend = "gloo" if in_thread else None
        group = dist.new_group(members, backend=backend) if len(members) > 1 else None
        self._axis = Axis(rank=members.index(dist.get_rank()), size=len(members), group=group)
        self._device = torch.device("cpu" if in_thread else mesh.device_type)

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources in the order of their columns."""
        return self.models.sources

    @property
    def exclude_token_ids(self) -> Sequence[int]:
        """Ids whose rows are never served, as the sources say."""
        return self.models.exclude_token_ids

    @typed
    def harvest(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos width"]:
        """Raw activations of every source at every position; all ranks call this together.

        Args:
            tokens: Token ids, the same on every rank.

        Returns:
            float32 activations of all sequences, on the device through which the ranks talk.
        """
        own = tokens[self._axis.part(len(tokens))]
        rows = torch.empty(0, tokens.shape[1], width(self.sources), device=self._device)
        if len(own):
            rows = self.models.harvest(own).to(self._device)
        return _joined(rows, len(tokens), axis=self._axis)


def _joined(part: Tensor, n: int, *, axis: Axis) -> Tensor:
    """The n rows of which each rank of the axis has its part."""
    if axis.size == 1:
        return part
    per_rank = -(-n // axis.size)
    padded = F.pad(part, (0, 0, 0, 0, 0, per_rank - len(part)))
    return axis.gather(padded).flatten(0, 1)[:n]
