"""Every selection equals its definition; sparse equals dense."""

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from crosscoders import kernels
from crosscoders.errors import KernelUnavailableError
from crosscoders.kernels import SparseLatents
from crosscoders.kernels.cpu import selection


def scores_with_ties(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return {
        "continuous": torch.randn(7, 13, generator=generator),
        "ties": torch.randint(-2, 3, (7, 13), generator=generator).float(),
        "no positive": -torch.rand(7, 13, generator=generator),
        "few positive": (torch.rand(7, 13, generator=generator) < 0.05).float(),
        "one row": torch.randn(1, 13, generator=generator),
        "float64": torch.randn(7, 13, generator=generator, dtype=torch.float64),
        "bfloat16": torch.randn(7, 13, generator=generator).bfloat16(),
    }[kind]


KINDS = ["continuous", "ties", "no positive", "few positive", "one row", "float64", "bfloat16"]


def brute_force(flat: list[float], k: int) -> set[int]:
    order = sorted(range(len(flat)), key=lambda i: (-flat[i], i))[:k]
    return {i for i in order if flat[i] > 0}


@pytest.mark.parametrize("k", [1, 3, 13])
@pytest.mark.parametrize("kind", KINDS)
def test_selections_equal_brute_force(kind: str, k: int) -> None:
    scores = scores_with_ties(kind)
    batch = brute_force(scores.flatten().tolist(), k * scores.shape[0])
    rows = {13 * i + j for i, row in enumerate(scores.tolist()) for j in brute_force(row, k)}
    for expected, indices, mask in (
        (batch, kernels.batch_topk_indices(scores, k), kernels.batch_topk_mask(scores, k)),
        (rows, kernels.row_topk_indices(scores, k), kernels.row_topk_mask(scores, k)),
    ):
        assert indices.tolist() == sorted(expected)
        assert mask.flatten().nonzero().squeeze(1).tolist() == sorted(expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.3])
def test_threshold_equals_its_definition(kind: str, threshold: float) -> None:
    scores = scores_with_ties(kind)
    level = torch.tensor(threshold, dtype=scores.dtype)
    mask = kernels.threshold_mask(scores, level)
    assert torch.equal(mask, (scores > level) & (scores > 0))
    assert torch.equal(kernels.threshold_indices(scores, level), mask.flatten().nonzero().squeeze(1))


def test_batch_topk_selects_exactly_k_per_row_on_average() -> None:
    scores = torch.rand(50, 40, generator=torch.Generator().manual_seed(0)) + 0.1
    assert kernels.batch_topk_indices(scores, 7).numel() == 350
    scores[:] = 1.0
    assert kernels.batch_topk_indices(scores, 7).tolist() == list(range(350))


def sparse_and_dense() -> tuple[SparseLatents, Tensor]:
    dense = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64).relu()
    dense[2] = 0
    return SparseLatents.from_dense(dense), dense


def test_sparse_round_trip() -> None:
    sparse, dense = sparse_and_dense()
    assert sparse.n_rows == 6
    assert torch.equal(sparse.to_dense(), dense)
    assert sparse.row_ptr[3] == sparse.row_ptr[2]
    empty = SparseLatents.from_dense(torch.zeros(3, 4))
    assert torch.equal(empty.to_dense(), torch.zeros(3, 4))


def test_sparse_decode_equals_dense_in_values_and_gradients() -> None:
    sparse, dense = sparse_and_dense()
    W_dec = torch.randn(9, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    results = []
    for form in ("dense", "sparse", "to_dense"):
        values, W = sparse.values.clone().requires_grad_(), W_dec.clone().requires_grad_()
        latents = SparseLatents(values, sparse.indices, sparse.row_ptr, 9)
        decoded = kernels.decode(latents, W)
        if form == "dense":
            full = dense.clone().requires_grad_()
            decoded = kernels.decode(full, W)
        if form == "to_dense":
            decoded = kernels.decode(latents.to_dense(), W)
        (decoded * weight).sum().backward()
        grad = full.grad[dense != 0] if form == "dense" else values.grad
        results.append((decoded.detach(), grad, W.grad))
    for other in results[1:]:
        assert_close(other, results[0], rtol=1e-12, atol=1e-12)


def test_gather_takes_values_and_sends_gradients_back() -> None:
    pre_acts = torch.randn(4, 5, requires_grad=True)
    chosen = torch.tensor([0, 3, 7, 19])
    latents = SparseLatents.gather(pre_acts, chosen)
    assert torch.equal(latents.to_dense().flatten()[chosen], pre_acts.flatten()[chosen])
    latents.values.sum().backward()
    assert pre_acts.grad.flatten().nonzero().squeeze(1).tolist() == chosen.tolist()


def test_auxk_keeps_the_largest_scaled_pre_activations() -> None:
    pre_acts = torch.tensor([[1.0, 2.0, -3.0, 1.5]])
    scale = torch.tensor([10.0, 1.0, 9.0, 1.0])
    kept = kernels.auxk(pre_acts, torch.eye(4), selection_scale=scale, k=2)
    assert kept.tolist() == [[1.0, 2.0, 0.0, 0.0]]
    assert kernels.auxk(pre_acts, torch.eye(4), selection_scale=scale, k=4).tolist() == [[1.0, 2.0, 0.0, 1.5]]


def test_explicit_backends_are_demands() -> None:
    shape = kernels.StepShape(device="cpu", n_latents=1000, k=8, precision="float32")
    assert kernels.choose_backend("auto", shape=shape) == "cpu"
    assert kernels.choose_backend("dense", shape=shape) == "dense"
    with pytest.raises(ValueError, match="'cuda'"):
        kernels.choose_backend("cuda", shape=shape)
    on_cuda = dataclasses.replace(shape, device="cuda:0")
    with pytest.raises(KernelUnavailableError, match="'cpu' was asked for, but the weights are on cuda:0"):
        kernels.choose_backend("cpu", shape=on_cuda)


def test_many_latents_go_the_dense_way_and_the_sentence_says_so() -> None:
    few = kernels.StepShape(device="cpu", n_latents=1000, k=8, precision="bfloat16")
    many = dataclasses.replace(few, k=500)
    assert kernels.choose_backend("auto", shape=many) == "dense"
    assert "k=8 lies below the break-even" in kernels.explain(few)
    assert "k=500 lies above the break-even" in kernels.explain(many)


def test_cpu_selection_matches_the_definition_on_larger_data() -> None:
    scores = torch.randn(300, 64, generator=torch.Generator().manual_seed(3))
    for k in (1, 5, 40):
        mask = kernels.batch_topk_mask(scores, k)
        assert torch.equal(selection.batch_topk_indices(scores, k), mask.flatten().nonzero().squeeze(1))
