"""Selections across ranks against the reference on the whole matrix, bit for bit."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from crosscoders.kernels.reference import batch_topk_mask, row_topk_mask
from crosscoders.parallel import batch_topk_across, ranks_of, row_topk_across
from tests.parallel.rank_pool import on_ranks

MESHES = [(3, (1, 3)), (3, (3, 1)), (4, (2, 2))]


def cases() -> list[tuple[Tensor, int]]:
    """Scores and k: ties everywhere, no positive score, NaN and infinity, few rows, all dtypes."""
    generator = torch.Generator().manual_seed(3)
    found: list[tuple[Tensor, int]] = []
    for n_rows, n_latents in ((13, 10), (1, 7), (32, 23)):
        for k in (1, 4):
            drawn = torch.randn(n_rows, n_latents, generator=generator)
            found += [(drawn, k), (drawn.double(), k), ((drawn * 2).round(), k), (-drawn.abs(), k)]
            found += [(drawn.bfloat16(), k), (torch.ones_like(drawn), k), (drawn * 1e-42, k)]
            odd = (drawn * 2).round().masked_fill(drawn > 1, torch.nan).masked_fill(drawn < -1, torch.inf)
            mixed = torch.where(drawn > 0.5, 1.0, drawn * 1e-44)  # fewer above the tie than are kept
            found += [(odd, k), (odd.double() * 1e-310, k), (mixed, k)]
    return found


def selected(shape: tuple[int, int], data: list[tuple[Tensor, int]]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """This rank's block of both masks, each where it stands in a matrix of zeros; the smallest score kept."""
    ranks = ranks_of(init_device_mesh("cpu", shape, mesh_dim_names=("data", "latents")))
    masks = []
    for scores, k in data:
        rows, columns = ranks.data.part(scores.shape[0]), ranks.latents.part(scores.shape[1])
        block = scores[rows, columns]
        of_rows = row_topk_across(block, k, axis=ranks.latents)
        of_batch, smallest = batch_topk_across(block, k, ranks=ranks)
        placed = [_placed(scores, rows, columns, flat) for flat in (of_rows, of_batch)]
        masks.append((*placed, smallest))
    return masks


def _placed(scores: Tensor, rows: slice, columns: slice, flat: Tensor) -> Tensor:
    mask = torch.zeros_like(scores, dtype=torch.int64)
    block = mask[rows, columns].clone()
    mask[rows, columns] = block.flatten().index_fill(0, flat, 1).view_as(block)
    return mask


@pytest.mark.parametrize(("n", "shape"), MESHES)
def test_selections_across_ranks_are_those_of_one_process(n: int, shape: Any) -> None:
    data = cases()
    found = on_ranks(n, selected, shape=shape, data=data)
    for (scores, k), *blocks in zip(data, *found):
        of_rows, of_batch = (sum(block[i] for block in blocks) for i in (0, 1))
        assert torch.equal(of_rows, row_topk_mask(scores, k).long()), (scores, k)
        assert torch.equal(of_batch, batch_topk_mask(scores, k).long()), (scores, k)
        kept = scores[batch_topk_mask(scores, k)]
        smallest = kept.min() if kept.numel() else scores.new_tensor(torch.inf)
        assert all(torch.equal(block[2], smallest) for block in blocks), (scores, k)
