"""Each model's activation in every slot, against codes worked out by hand."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from crosscoders.activation_fns import ActivationFn, BatchTopK, ReLU, TopK
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.diffing.batches import MeasureBatch
from crosscoders.diffing.measures.swap import SwapReadout, swap_readout
from crosscoders.sources import Source

SOURCES = (
    Source(name="base", d_model=6, scale=2.0),
    Source(name="teacher", d_model=4, scale=3.0),
    Source(name="student", d_model=6, scale=0.5),
)
SLOTS = ("base", "student")
COLUMNS = {"base": slice(0, 6), "teacher": slice(6, 10), "student": slice(10, 16)}
SCALE = torch.tensor([2.0] * 6 + [3.0] * 4 + [0.5] * 6, dtype=torch.float64)


def toy_crosscoder(activation_fn: ActivationFn) -> Crosscoder:
    generator = torch.Generator().manual_seed(0)
    config = CrosscoderConfig(sources=SOURCES, n_latents=20, activation_fn=activation_fn)
    crosscoder = Crosscoder(config, generator=generator)
    with torch.no_grad():
        crosscoder.W_enc.normal_(generator=generator)
        crosscoder.W_dec.normal_(generator=generator).mul_(0.1)
        crosscoder.b_enc.fill_(-2.0)
        crosscoder.b_dec.normal_(generator=generator)
    return crosscoder.double().eval()


def pair_crosscoder(W_enc: Tensor, *, bias: float) -> Crosscoder:
    """ReLU latents over two sources of width 2, with these encoder rows."""
    sources = (Source(name="base", d_model=2), Source(name="student", d_model=2))
    config = CrosscoderConfig(sources=sources, n_latents=len(W_enc), activation_fn=ReLU())
    crosscoder = Crosscoder(config).double()
    with torch.no_grad():
        crosscoder.W_enc.copy_(W_enc)
        crosscoder.b_enc.fill_(bias)
    return crosscoder


def rows_of(n: int, width: int = 16) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def cut(rows: Tensor, size: int) -> list[MeasureBatch]:
    return [MeasureBatch(rows=part, sequence=torch.arange(len(part)) // 4) for part in rows.split(size)]


def codes_by_hand(crosscoder: Crosscoder, x: Tensor) -> Tensor:
    """Codes of normalized rows; top 5 by score where the crosscoder is a TopK one."""
    f = (x @ crosscoder.W_enc.detach().T + crosscoder.b_enc.detach()).clamp(min=0)
    if isinstance(crosscoder.config.activation_fn, ReLU):
        return f
    score = f * sum(crosscoder.W_dec.detach()[:, c].norm(dim=1) for c in COLUMNS.values())
    return f * (score >= score.topk(5, dim=1).values[:, -1:])


def explained_by_hand(x: Tensor, reconstruction: Tensor, columns: slice) -> float:
    x, residual = x[:, columns], (x - reconstruction)[:, columns]
    return float(1 - residual.square().sum() / (x - x.mean(dim=0)).square().sum())


@pytest.mark.parametrize("activation_fn", [ReLU(), TopK(k=5)])
@pytest.mark.parametrize("is_folded", [False, True])
def test_counts_and_explained_variance_equal_those_by_hand(
    activation_fn: ActivationFn, is_folded: bool
) -> None:
    crosscoder, rows = toy_crosscoder(activation_fn), rows_of(200)
    read = crosscoder.fold() if is_folded else crosscoder
    found = swap_readout(read, cut(rows, 64), slots=SLOTS)
    x = rows * SCALE
    joint, swapped = codes_by_hand(crosscoder, x), {}
    for name in SLOTS:
        alone = x.clone()
        alone[:, :6] = alone[:, 10:] = x[:, COLUMNS[name]]  # the teacher keeps its own slot
        swapped[name] = codes_by_hand(crosscoder, alone)
    assert torch.equal(found.n_joint, (joint > 0).sum(dim=0))
    assert_close(found.mean_joint, joint.mean(dim=0))
    both = (swapped["base"] > 0) & (swapped["student"] > 0)
    assert torch.equal(found.n_both, both.sum(dim=0))
    W_dec, b_dec = crosscoder.W_dec.detach(), crosscoder.b_dec.detach()
    for at, name in enumerate(SLOTS):
        fires, columns = swapped[name] > 0, COLUMNS[name]
        assert torch.equal(found.n_swapped[:, at], fires.sum(dim=0))
        assert torch.equal(found.n_kept[:, at], (fires & (joint > 0)).sum(dim=0))
        assert_close(found.mean_swapped[:, at], swapped[name].mean(dim=0))
        for f, got in (
            (joint, found.explained_variance),
            (swapped[name], found.explained_variance_swapped),
        ):
            assert got[name] == pytest.approx(explained_by_hand(x, f @ W_dec + b_dec, columns), rel=1e-9)


def test_equal_activations_read_the_same_in_every_way() -> None:
    crosscoder, own = toy_crosscoder(ReLU()), rows_of(100, width=6)
    rows = torch.cat([own / 2.0, rows_of(100, width=4), own / 0.5], dim=1)
    found = swap_readout(crosscoder, cut(rows, 32), slots=SLOTS)
    assert torch.equal(found.n_swapped, found.n_joint[:, None].expand(-1, 2))
    assert found.explained_variance_swapped == pytest.approx(found.explained_variance, rel=1e-12)
    live = found.n_joint > 0
    assert bool(live.any())
    assert torch.equal(found.is_readable, live)
    for share in (found.gained, found.lost, found.rate_change):
        assert torch.equal(share[live], torch.zeros_like(share[live]))


def test_a_latent_of_one_model_is_lost_or_gained_and_a_conjunction_cannot_be_read() -> None:
    u, v = torch.eye(2, dtype=torch.float64)
    nothing = torch.zeros(2, dtype=torch.float64)
    # The last needs u in the base model and v in the student on the same token: 2 - 1.5 > 0, 1 - 1.5 < 0.
    encoder = torch.stack(
        [torch.cat(p) for p in ((2 * u, 2 * u), (2 * v, 2 * v), (u, v), (nothing, nothing))]
    )
    crosscoder = pair_crosscoder(encoder, bias=-1.5)
    rows = torch.cat([u.expand(40, 2), v.expand(40, 2)], dim=1)
    rows[::2] = 0.1 * rows_of(20, width=4).abs()
    found = swap_readout(crosscoder, cut(rows, 16))
    assert found.lost[:2].tolist() == [1.0, 0.0]
    assert found.gained[:2].tolist() == [0.0, 1.0]
    assert found.rate_change[:2].tolist() == [-1.0, 1.0]
    assert found.n_joint.tolist() == [20, 20, 20, 0]
    assert found.n_swapped[2].tolist() == [0, 0]
    assert found.is_readable.tolist() == [True, True, False, False]
    assert bool(found.gained[2:].isnan().all() & found.lost[2:].isnan().all())
    assert "stops firing under every swap" in found.explain(2)
    assert "never fires" in found.explain(3)
    assert found.explain(0).endswith("gained 0%, lost 100% from base to student")


def test_a_latent_that_the_swap_moves_elsewhere_is_blank_though_it_fires() -> None:
    u, v = torch.eye(2, dtype=torch.float64)
    crosscoder = pair_crosscoder(torch.cat([u, v])[None], bias=-1.5)
    both = torch.cat([u, v]).expand(8, 4)  # as usual it fires here, under no swap
    base_alone = torch.cat([u + v, 0 * u]).expand(4, 4)  # and here under the base model's swap only
    found = swap_readout(crosscoder, cut(torch.cat([both, base_alone]), 12))
    assert found.n_joint.tolist() == [8]
    assert found.n_swapped.tolist() == [[4, 0]]
    assert found.is_readable.tolist() == [False]
    for share in (found.gained, found.lost, found.rate_change):
        assert bool(share.isnan().all())


def test_neither_the_cut_nor_the_mode_of_the_crosscoder_matters() -> None:
    crosscoder, rows = toy_crosscoder(BatchTopK(k=5)), rows_of(90)
    crosscoder.activation.calibrate(torch.tensor([0.4]))
    found = [swap_readout(crosscoder, cut(rows, size), slots=SLOTS) for size in (7, 90)]
    crosscoder.train()
    found.append(swap_readout(crosscoder, cut(rows, 90), slots=SLOTS))
    assert crosscoder.training
    assert found[0].n_kept.sum() > 0
    assert all(torch.equal(found[0].n_kept, other.n_kept) for other in found[1:])
    for other in found[1:]:
        assert_close(other.mean_swapped, found[0].mean_swapped, rtol=1e-12, atol=0)


def test_the_pair_is_read_in_its_order() -> None:
    crosscoder, batches = toy_crosscoder(ReLU()), cut(rows_of(90), 30)
    forward, back = (
        swap_readout(crosscoder, batches, slots=SLOTS, pair=p) for p in (SLOTS, SLOTS[::-1])
    )  # fmt: skip
    assert_close(forward.gained, back.lost, equal_nan=True)
    assert_close(forward.rate_change, -back.rate_change, equal_nan=True)
    assert bool((forward.gained > 0).any())


def test_the_lines_print_explained_variance_under_swap_beside_the_usual_one() -> None:
    found: SwapReadout = swap_readout(toy_crosscoder(ReLU()), cut(rows_of(50), 50), slots=SLOTS)
    usual, swapped = found.explained_variance["base"], found.explained_variance_swapped["base"]
    assert found.lines()[0] == f"base: EV {usual:.3f}, under swap {swapped:.3f}"
    live, readable = int((found.n_joint > 0).sum()), int(found.is_readable.sum())
    assert found.lines()[-1] == f"{readable} of {live} live latents are readable over 50 tokens"


def test_what_cannot_be_swapped_raises() -> None:
    crosscoder, batches = toy_crosscoder(ReLU()), cut(rows_of(8), 8)
    with pytest.raises(ValueError, match=r"widths differ: \{'base': 6, 'teacher': 4, 'student': 6\}"):
        swap_readout(crosscoder, batches)
    with pytest.raises(ValueError, match="two or more different sources, got \\['base'\\]"):
        swap_readout(crosscoder, batches, slots=("base",))
    with pytest.raises(ValueError, match="no source is named 'teacher'"):
        swap_readout(crosscoder, batches, slots=SLOTS, pair=("base", "teacher"))
    with pytest.raises(ValueError, match="needs at least 2 rows, got 0"):
        swap_readout(crosscoder, [], slots=SLOTS)
    with pytest.raises(ValueError, match=r"latent 20 is outside 0\.\.19"):
        swap_readout(crosscoder, batches, slots=SLOTS).explain(20)
