"""Loss terms of comparisons: the reconstructed difference, and a smaller price for shared latents."""

import math

import pytest
from torch.testing import assert_close

from crosscoders.activation_fns import ActivationFn, ReLU, TopK
from crosscoders.crosscoder import Crosscoder, CrosscoderOutput
from crosscoders.losses import DecoderNormL1, DifferenceReconstruction, Reconstruction, SharedDecoderNormL1
from crosscoders.testing import check_loss_term
from tests.core.held import EQUAL, UNEQUAL, held_crosscoder, held_rows
from tests.core.toy import SOURCES, context, kind_of, toy_crosscoder, toy_rows


def toy_output() -> tuple[Crosscoder, CrosscoderOutput]:
    crosscoder = toy_crosscoder(TopK(k=3)).double()
    return crosscoder, crosscoder(toy_rows(40).double())


def test_the_difference_is_that_of_raw_activations_in_one_scale() -> None:
    """From raw reconstructions, by loops, and in the scale that the mean of both mean norms gives."""
    crosscoder, output = toy_output()
    raw = crosscoder.denormalize(output.inputs - output.reconstruction).detach()
    mean_norm = sum(math.sqrt(source.d_model) / source.scale for source in SOURCES) / 2
    common = math.sqrt(6) / mean_norm
    expected = sum(float((common * (row[6:] - row[:6])).norm()) ** 2 for row in raw) / 40
    value = DifferenceReconstruction().value(output, crosscoder, context())
    assert math.isclose(value.item(), expected, rel_tol=1e-12)


def test_with_equal_scales_it_is_the_cross_term_of_the_normalized_errors() -> None:
    """Sum |e|^2 + mu |e_b - e_a|^2 = (1 + mu) Sum |e|^2 - 2 mu e_a . e_b, the identity of the source."""
    sources, mu = (EQUAL[0], EQUAL[2]), 0.7
    crosscoder = held_crosscoder(None, sources).double()
    crosscoder.set_scale([type(s)(name=s.name, d_model=s.d_model, scale=0.4) for s in sources])
    output = crosscoder(held_rows(30, sources).double())
    a, b = (output.inputs - output.reconstruction).split(5, dim=1)
    whole, part = (
        term.value(output, crosscoder, context()) for term in (Reconstruction(), DifferenceReconstruction())
    )
    assert_close(whole + mu * part, (1 + mu) * whole - 2 * mu * (a * b).sum() / 30, rtol=1e-12, atol=0)


def test_the_pair_is_by_name_and_its_order_does_not_matter() -> None:
    crosscoder = held_crosscoder(None, EQUAL)
    output = crosscoder(held_rows(30, EQUAL))
    values = {
        pair: DifferenceReconstruction(pair=pair).value(output, crosscoder, context()).item()
        for pair in (None, ("s0", "s2"), ("s2", "s0"), ("s0", "s1"))
    }
    assert values[None] == values["s0", "s2"] == values["s2", "s0"] != values["s0", "s1"]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (None, "needs one width, but 's0' has 3 and 's2' has 7"),
        (("s1", "s1"), "needs two different sources"),
        (("s0", "s9"), "no source is named 's9'"),
    ],
)
def test_a_pair_without_a_common_space_raises(pair: tuple[str, str] | None, message: str) -> None:
    crosscoder = held_crosscoder(None, UNEQUAL)
    output = crosscoder(held_rows(8, UNEQUAL))
    with pytest.raises(ValueError, match=message):
        DifferenceReconstruction(pair=pair).value(output, crosscoder, context())


def test_the_shared_price_by_brute_force() -> None:
    crosscoder, output = toy_output()
    latents = output.latents.to_dense().tolist()
    norms = crosscoder.decoder_norms().detach().sum(dim=1).tolist()
    term = SharedDecoderNormL1(n_shared=10, shared_factor=0.2)
    expected = sum(row[j] * norms[j] * (0.2 if j < 10 else 1.0) for row in latents for j in range(32)) / 40
    assert math.isclose(term.value(output, crosscoder, context()).item(), expected, rel_tol=1e-12)
    same = SharedDecoderNormL1(n_shared=10, shared_factor=1.0).value(output, crosscoder, context())
    assert_close(same, DecoderNormL1().value(output, crosscoder, context()))


@pytest.mark.parametrize("activation_fn", [ReLU(), TopK(k=3)], ids=kind_of)
def test_the_terms_conform(activation_fn: ActivationFn) -> None:
    for term in (
        DifferenceReconstruction(weight=0.5),
        DifferenceReconstruction(pair=("distilled", "base")),
        SharedDecoderNormL1(n_shared=8, weight=0.1, warmup_fraction=0.3),
    ):
        assert term.weight_at(1.0) == term.weight
        check_loss_term(term, crosscoder=toy_crosscoder(activation_fn))


def test_bad_shared_prices_raise() -> None:
    crosscoder, output = toy_output()
    with pytest.raises(ValueError, match="n_shared must be at least 1, got 0"):
        SharedDecoderNormL1(n_shared=0)
    with pytest.raises(ValueError, match=r"shared_factor must be in \[0, 1\], got 1.5"):
        SharedDecoderNormL1(n_shared=3, shared_factor=1.5)
    with pytest.raises(ValueError, match="n_shared is 33, but the crosscoder has only 32"):
        SharedDecoderNormL1(n_shared=33).value(output, crosscoder, context())
