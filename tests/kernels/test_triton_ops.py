"""Where CUDA tensors go to Triton, the library's functions give what they give on the CPU."""

import pytest
import torch
from torch.testing import assert_close

from crosscoders.kernels import SparseLatents, ops
from crosscoders.kernels.step import Selection


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    monkeypatch.setattr(ops, "_runs_on_cpu", lambda scores: False)
    monkeypatch.setattr(ops, "_has_triton", lambda tensor: True)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(-3, 4, (5, 19), generator=generator).float()
    scores[3] = -1
    return scores


@pytest.mark.parametrize("k", [1, 4, 19])
def test_selections_agree_with_their_definition(scores: torch.Tensor, k: int) -> None:
    masks = (ops.reference.row_topk_mask(scores, k), ops.reference.batch_topk_mask(scores, k))
    for mask, indices in zip(masks, (ops.row_topk_indices(scores, k), ops.batch_topk_indices(scores, k))):
        assert torch.equal(indices, mask.flatten().nonzero().squeeze(1))


def test_thresholds_agree_with_their_definition(scores: torch.Tensor) -> None:
    for threshold in (torch.tensor(1.0), torch.linspace(-1, 3, 19)):
        mask = ops.reference.threshold_mask(scores, threshold)
        assert torch.equal(ops.threshold_indices(scores, threshold), mask.flatten().nonzero().squeeze(1))


def test_decoding_without_gradient_agrees_with_its_definition(scores: torch.Tensor) -> None:
    W_dec = torch.randn(19, 7, generator=torch.Generator().manual_seed(1))
    latents = SparseLatents.from_dense(scores.relu())
    assert_close(ops.decode(latents, W_dec), scores.relu() @ W_dec, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("per_row", [True, False])
def test_a_step_selects_as_its_definition_does(scores: torch.Tensor, per_row: bool) -> None:
    scale = torch.rand(19, generator=torch.Generator().manual_seed(2)) + 0.5
    mask_of = ops.reference.row_topk_mask if per_row else ops.reference.batch_topk_mask
    mask = mask_of(scores * scale, 3)
    encoded = ops.select(scores, scale, selection=Selection(k=3, per_row=per_row))
    assert torch.equal(encoded.latents.to_dense(), torch.where(mask, scores, 0.0))
    assert encoded.smallest_score == (scores * scale)[mask].min()
