"""Who takes part in a run: the ranks over which the rows of a batch, the latents, or both are spread."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from crosscoders._typing import typed

_DIMS = ("data", "latents")


@final
@dataclass(frozen=True, eq=False)
class Axis:
    """One axis over which something is spread in contiguous parts, in the order of the ranks.

    Args:
        rank: This process along the axis.
        size: Number of processes along it.
        group: Their process group; None for an axis of one process.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    @typed
    def part(self, n: int) -> slice:
        """This rank's part of n rows: the sizes of `torch.chunk`, which DTensor's `Shard(0)` uses too.

        Args:
            n: Number of rows over all ranks.

        Returns:
            Where this rank's rows stand; empty for the last ranks where the others have them all.
        """
        per_rank = -(-n // self.size)
        start = min(n, self.rank * per_rank)
        return slice(start, min(n, start + per_rank))

    @typed
    def sum(self, values: Tensor) -> Tensor:
        """Sum over the axis, without gradient.

        Args:
            values: One tensor of the same shape on each rank.

        Returns:
            The sum, the same on each rank; `values` itself where there is one rank.
        """
        return self._reduced(values, dist.ReduceOp.SUM)

    @typed
    def sum_(self, values: Tensor) -> None:
        """Sum over the axis in place, without gradient.

        Args:
            values: One contiguous tensor of the same shape on each rank.
        """
        if self.size > 1 and values.numel() > 0:
            dist.all_reduce(values, group=self.group)

    @typed
    def min(self, values: Tensor) -> Tensor:
        """Smallest over the axis, without gradient.

        Args:
            values: One tensor of the same shape on each rank.

        Returns:
            The smallest of each entry, the same on each rank.
        """
        return self._reduced(values, dist.ReduceOp.MIN)

    @typed
    def max(self, values: Tensor) -> Tensor:
        """Largest over the axis, without gradient.

        Args:
            values: One tensor of the same shape on each rank.

        Returns:
            The largest of each entry, the same on each rank.
        """
        return self._reduced(values, dist.ReduceOp.MAX)

    @typed
    def any(self, mask: Tensor) -> Tensor:
        """Whether an entry is true on any rank of the axis.

        Args:
            mask: Booleans, of the same shape on each rank.

        Returns:
            Booleans, the same on each rank.
        """
        return mask if self.size == 1 else self.max(mask.to(torch.uint8)).bool()

    @typed
    def gather(self, values: Tensor) -> Tensor:
        """Every rank's tensor, stacked in the order of the ranks; without gradient.

        Args:
            values: One tensor of the same shape on each rank.

        Returns:
            The tensors with a new first axis, the same on each rank.
        """
        values = values.detach().contiguous()
        if self.size == 1:
            return values.unsqueeze(0)
        received = values.new_empty((self.size, *values.shape))
        if values.numel() > 0:  # which is the same on each rank
            dist.all_gather(list(received.unbind()), values, group=self.group)
        return received

    @typed
    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of the ranks.

        Args:
            value: Anything that pickles; small, since it goes through the host.

        Returns:
            The values, the same on each rank.
        """
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value, group=self.group)
        return values

    @typed
    def count(self, n: int, *, device: torch.device) -> int:
        """Sum of a number over the axis.

        Args:
            n: This rank's number.
            device: Device of the run, on which the ranks talk.

        Returns:
            The sum, the same on each rank.
        """
        return n if self.size == 1 else int(self.sum(torch.tensor(n, device=device)))

    def _reduced(self, values: Tensor, op: Any) -> Tensor:
        return values if self.size == 1 else _reduced(values, op, group=self.group)


@final
@dataclass(frozen=True, eq=False)
class Ranks:
    """The ranks of a run on a mesh: rows of each batch over `data`, latents over `latents`.

    What is minimized is the mean of the ranks' losses over the data axis, each weighted by its part of the
    rows. A loss that every rank computes for the whole batch, by the sums below, is its own mean, and one
    that a rank computes for its rows alone is a mean over tokens: both get the gradient of one process that
    sees the whole batch. So the gradient of a sum over tokens is summed over the data axis in the backward
    pass, as the true gradient of a sum is, and the trainer sums the gradients of the weights over it.
    Along the latent axis all ranks compute the same loss, which counts once: there the gradient of a sum is
    passed on as it is, which is right as long as the result enters no second sum over latents.

    Args:
        data: Ranks that hold the same latents and have other rows of each batch.
        latents: Ranks that see the same rows and hold other latents.
        group: Process group of both axes, by which they talk at once; None where they do so in turns.
    """

    data: Axis = Axis()
    latents: Axis = Axis()
    group: Any = field(default=None, repr=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Ranks":
        return self  # process groups cannot be copied, and a copy takes part in the same ones

    def __reduce__(self) -> tuple[Callable[[], "Ranks"], tuple[()]]:
        return _alone, ()  # what reads a pickle takes no part in these groups

    @property
    def are_alone(self) -> bool:
        """Whether this process is the only one."""
        return self.data.size == self.latents.size == 1

    @property
    def is_main(self) -> bool:
        """Whether this process is the first on both axes: the one that writes and reports."""
        return self.data.rank == self.latents.rank == 0

    @typed
    def sum(self, values: Tensor) -> Tensor:
        """Sum over both axes, without gradient.

        Args:
            values: One tensor of the same shape on each rank.

        Returns:
            The sum, the same on each rank.
        """
        return self._reduced(values, dist.ReduceOp.SUM)

    @typed
    def min(self, values: Tensor) -> Tensor:
        """Smallest over both axes, without gradient.

        Args:
            values: One tensor of the same shape on each rank.

        Returns:
            The smallest of each entry, the same on each rank.
        """
        return self._reduced(values, dist.ReduceOp.MIN)

    @typed
    def max(self, values: Tensor) -> Tensor:
        """Largest over both axes, without gradient.

        Args:
            values: One tensor of the same shape on each rank.

        Returns:
            The largest of each entry, the same on each rank.
        """
        return self._reduced(values, dist.ReduceOp.MAX)

    def _reduced(self, values: Tensor, op: Any) -> Tensor:
        if self.group is not None:
            return _reduced(values, op, group=self.group)
        return self.data._reduced(self.latents._reduced(values, op), op)

    @typed
    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's value, the ranks of one part of the batch side by side.

        Args:
            value: Anything that pickles; small, since it goes through the host.

        Returns:
            One value per rank, the same on each.
        """
        return [v for values in self.data.gather_objects(self.latents.gather_objects(value)) for v in values]

    @typed
    def sum_over_tokens(self, values: Tensor) -> Tensor:
        """Sum over the data axis, with gradient.

        Args:
            values: This rank's sum over its rows.

        Returns:
            The sum over the rows of the whole batch.
        """
        return values if self.data.size == 1 else _SumOverTokens.apply(values, self.data)

    @typed
    def sum_over_latents(self, values: Tensor) -> Tensor:
        """Sum over the latent axis, with gradient; the result must not enter another such sum.

        Args:
            values: This rank's sum over its latents.

        Returns:
            The sum over all latents.
        """
        return values if self.latents.size == 1 else _SumOverLatents.apply(values, self.latents)

    @typed
    def mean_over_tokens(self, total: Tensor, n_rows: int) -> Tensor:
        """Mean over the rows of the whole batch, with gradient.

        Args:
            total: One number: this rank's sum over its rows.
            n_rows: Number of its rows.

        Returns:
            One number, the same on each rank of the data axis.
        """
        if self.data.size == 1:
            return total / n_rows
        wide = torch.promote_types(total.dtype, torch.float32)
        both = torch.stack([total.to(wide), total.new_tensor(n_rows, dtype=wide)])
        total, count = self.sum_over_tokens(both).unbind()
        return total / count


@typed
def ranks_of(mesh: DeviceMesh | None) -> Ranks:
    """The ranks of a mesh with dimensions named "data", "latents" or both.

    Args:
        mesh: A mesh over the processes of the run, the same on each; None for a run on one process.

    Returns:
        This process's place on both axes.

    Raises:
        ValueError: A dimension has another name, or none, or this process is not part of the mesh.
    """
    if mesh is None:
        return ALONE
    names = mesh.mesh_dim_names or ()
    if not names or set(names) - set(_DIMS):
        raise ValueError(
            f"ranks_of: expected a mesh whose dimensions are named 'data', 'latents' or both, got {names}; "
            "make it with init_device_mesh(..., mesh_dim_names=('data', 'latents'))."
        )
    place = mesh.get_coordinate()
    if place is None:
        raise ValueError(f"ranks_of: rank {dist.get_rank()} is not part of the mesh {mesh}.")
    axes = {
        name: Axis(rank=place[i], size=mesh.size(i), group=mesh.get_group(i)) for i, name in enumerate(names)
    }
    is_grid = all(axis.size > 1 for axis in axes.values()) and len(axes) == len(_DIMS)
    has_all = mesh.size() == dist.get_world_size()  # or there is no group of just these ranks
    return Ranks(**axes, group=dist.group.WORLD if is_grid and has_all else None)


def _reduced(values: Tensor, op: Any, *, group: Any) -> Tensor:
    if values.numel() == 0:  # which is the same on each rank
        return values
    reduced = values.detach().contiguous().clone()
    dist.all_reduce(reduced, op=op, group=group)
    return reduced


class _SumOverTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return axis.sum(values)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return ctx.axis.sum(grad_outputs[0]), None


class _SumOverLatents(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, axis: Axis) -> Tensor:
        return axis.sum(values)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None


ALONE = Ranks()  # a run on one process: every sum is what it was given


def _alone() -> Ranks:
    return ALONE
