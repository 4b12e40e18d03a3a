"""The encoder's gradient is the dense one, whether it arrives sparse, dense or as a sum of both."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from crosscoders import kernels
from crosscoders.kernels import SparseLatents

N_ROWS, WIDTH, N_LATENTS = 6, 5, 9


def tensors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(N_ROWS, WIDTH), (N_LATENTS, WIDTH), (N_LATENTS,)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def flat_indices(kind: str) -> Tensor:
    chosen = {
        "some": [0, 3, 4, 9, 17, 40, 53],
        "none": [],
        "all": list(range(N_ROWS * N_LATENTS)),
        "one latent everywhere": [2 + N_LATENTS * i for i in range(N_ROWS)],
        "an empty row": [1, 8, 30],
    }[kind]
    return torch.tensor(chosen, dtype=torch.int64)


KINDS = ["some", "none", "all", "one latent everywhere", "an empty row"]


def gradients(kind: str, *, reads_all: bool, is_plain: bool) -> tuple[Tensor, list[Tensor]]:
    x, W_enc, b_enc = inputs = tensors()
    flat = flat_indices(kind)
    pre_acts = F.linear(x, W_enc, b_enc) if is_plain else kernels.encode(x, W_enc, b_enc)
    taken = pre_acts.reshape(-1)[flat] if is_plain else SparseLatents.gather(pre_acts, flat).values
    loss = (taken * torch.linspace(1, 2, len(flat), dtype=torch.float64)).square().sum()
    if reads_all:
        loss = loss + pre_acts.tanh().sum()
    loss.backward()
    return pre_acts.detach(), [tensor.grad for tensor in inputs]


@pytest.mark.parametrize("reads_all", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_those_of_plain_indexing(kind: str, reads_all: bool) -> None:
    plain = gradients(kind, reads_all=reads_all, is_plain=True)
    assert_close(gradients(kind, reads_all=reads_all, is_plain=False), plain, rtol=1e-12, atol=1e-12)


def test_the_gradient_of_the_pre_activations_stays_sparse_until_somebody_reads_them_all() -> None:
    layouts = []
    for reads_all in (False, True):
        pre_acts = kernels.encode(*tensors())
        pre_acts.register_hook(lambda grad: layouts.append(grad.layout))
        loss = SparseLatents.gather(pre_acts, flat_indices("some")).values.sum()
        (loss + pre_acts.sum() if reads_all else loss).backward()
    assert layouts == [torch.sparse_coo, torch.strided]


def test_operations_between_encoding_and_gathering_get_a_dense_gradient() -> None:
    x, W_enc, b_enc = tensors()
    pre_acts = kernels.encode(x, W_enc, b_enc)
    flat = (pre_acts.detach() > 0).flatten().nonzero().squeeze(1)
    SparseLatents.gather(pre_acts.relu() * 2, flat).values.sum().backward()
    fires = (F.linear(x, W_enc, b_enc) > 0).double().detach()
    assert_close(W_enc.grad, 2 * fires.T @ x.detach(), rtol=1e-12, atol=1e-12)


def test_no_gradient_is_formed_that_nobody_asked_for() -> None:
    x, W_enc, b_enc = (tensor.detach() for tensor in tensors())
    b_enc.requires_grad_()
    SparseLatents.gather(kernels.encode(x, W_enc, b_enc), flat_indices("some")).values.sum().backward()
    counts = torch.bincount(flat_indices("some") % N_LATENTS, minlength=N_LATENTS)
    assert torch.equal(b_enc.grad, counts.double())


def test_under_autocast_products_are_bfloat16_and_sparse_agrees_with_dense() -> None:
    grads = []
    for is_sparse in (True, False):
        x, W_enc, b_enc = (tensor.detach().float().requires_grad_() for tensor in tensors())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            pre_acts = kernels.encode(x, W_enc, b_enc)
            assert pre_acts.dtype == torch.float32
            values = SparseLatents.gather(pre_acts, flat_indices("some")).values
            (values.sum() if is_sparse else values.sum() + 0 * pre_acts.sum()).backward()
        grads.append([x.grad, W_enc.grad, b_enc.grad])
    assert_close(grads[0], grads[1], rtol=2**-7, atol=2**-7)


def test_a_second_derivative_is_refused() -> None:
    x, W_enc, b_enc = tensors()
    values = SparseLatents.gather(kernels.encode(x, W_enc, b_enc), flat_indices("some")).values
    (grad,) = torch.autograd.grad(values.square().sum(), W_enc, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
