"""The check of loss terms accepts what the library ships and sees what is broken, one class per property."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from crosscoders.activation_fns import BatchTopK, ReLU, TopK
from crosscoders.crosscoder import Crosscoder, CrosscoderOutput
from crosscoders.kernels import SparseLatents
from crosscoders.losses import (
    AuxK,
    DecoderNormL1,
    JumpReLUL0,
    LossContext,
    LossTerm,
    PreActivation,
    Reconstruction,
    TanhSparsity,
)
from crosscoders.testing import check_loss_term
from tests.core.toy import kind_of, toy_crosscoder
from tests.training.check_messages import error_of, never_raised
from tests.training.toy_run import same_bits, weights

SHIPPED = [
    Reconstruction(),
    AuxK(k_aux=4),
    DecoderNormL1(weight=0.1, warmup_fraction=0.5),
    TanhSparsity(warmup_fraction=1.0),
    JumpReLUL0(),
    PreActivation(),
]


def name_of(term: LossTerm) -> str:
    return term.name


@pytest.mark.parametrize("term", SHIPPED, ids=name_of)
def test_shipped_terms_conform(term: LossTerm) -> None:
    check_loss_term(term)


@pytest.mark.parametrize("term", SHIPPED[:4], ids=name_of)
@pytest.mark.parametrize("activation_fn", [ReLU(), TopK(k=3), BatchTopK(k=3)], ids=kind_of)
def test_shipped_terms_conform_with_a_crosscoder_of_your_own(term: LossTerm, activation_fn: Any) -> None:
    crosscoder = toy_crosscoder(activation_fn)
    before = weights(crosscoder)
    check_loss_term(term, crosscoder=crosscoder)
    assert same_bits(weights(crosscoder), before)


@dataclass(frozen=True, kw_only=True)
class Term(LossTerm):
    """A sound term, from which the broken ones differ in one thing."""

    name: ClassVar[str] = "term_for_a_test"

    def value(self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext) -> Tensor:
        return self.part(output) + 0.01 * crosscoder.W_dec.square().sum()

    def part(self, output: CrosscoderOutput) -> Tensor:
        latents = output.latents
        values = latents.values if isinstance(latents, SparseLatents) else latents
        return values.square().sum() / output.inputs.shape[0]


def test_the_sound_term_conforms() -> None:
    check_loss_term(Term())


class NotAKey(Term):
    name: ClassVar[str] = "Not a key"


class Taken(Term):
    name: ClassVar[str] = "auxk"


class HasAttribute(Term):
    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", 2.0)


@dataclass(frozen=True, kw_only=True)
class HasPath(Term):
    where: Path = Path("x")


class Unequal(Term):
    """Compared by identity."""

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__


@dataclass(frozen=True, kw_only=True)
class SaysNothing(Term):
    factor: float = dataclasses.field(default=1.0, repr=False)


@dataclass(frozen=True, kw_only=True, repr=False)
class SaysItsPlace(Term):
    def __repr__(self) -> str:
        return f"weight= warmup_fraction= {id(self)}"


class Remembers(Term):
    calls: ClassVar[list[float]] = []

    def weight_at(self, progress: float) -> float:
        self.calls.append(progress)
        return self.weight * len(self.calls)


class NegativeWeight(Term):
    def weight_at(self, progress: float) -> float:
        return self.weight * (0.5 - progress)


class NeverOff(Term):
    def weight_at(self, progress: float) -> float:
        return 1.0


class PerToken(Term):
    def part(self, output: CrosscoderOutput) -> Tensor:
        return (output.inputs - output.reconstruction).square().sum(dim=1)


class Python(Term):
    def value(self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext) -> Any:
        return float(self.part(output).detach())


class OneDtype(Term):
    def value(self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext) -> Tensor:
        return super().value(output, crosscoder, context).float()


class PerFiring(Term):
    """A mean over what fires: 0 / 0 where nothing does."""

    def part(self, output: CrosscoderOutput) -> Tensor:
        latents = output.latents if isinstance(output.latents, Tensor) else output.latents.to_dense()
        return latents.sum() / (latents != 0).sum()


class PerDead(Term):
    def value(self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext) -> Tensor:
        return super().value(output, crosscoder, context) + crosscoder.b_enc[context.dead_mask].mean()


class Spread(Term):
    """Not defined for one token."""

    def part(self, output: CrosscoderOutput) -> Tensor:
        variance = (output.inputs - output.inputs.mean(dim=0)).square().sum()
        return super().part(output) / variance


class WritesInputs(Term):
    def part(self, output: CrosscoderOutput) -> Tensor:
        output.inputs.mul_(2.0)
        return super().part(output)


class WritesWeights(Term):
    def value(self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext) -> Tensor:
        crosscoder.W_dec.data.mul_(1.01)
        return super().value(output, crosscoder, context)


class SwitchesMode(Term):
    def value(self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext) -> Tensor:
        crosscoder.eval()
        return super().value(output, crosscoder, context)


class Draws(Term):
    def part(self, output: CrosscoderOutput) -> Tensor:
        return super().part(output) * torch.rand((), dtype=output.inputs.dtype)


class Detached(Term):
    def value(self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext) -> Tensor:
        return super().value(output, crosscoder, context).detach()


class Flat(Term):
    """Its gradient is zero everywhere."""

    def value(self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext) -> Tensor:
        return (crosscoder.W_dec > 0).sum() + 0.0 * crosscoder.W_dec.sum()


class InfiniteGradient(Term):
    def part(self, output: CrosscoderOutput) -> Tensor:
        dense = output.latents if isinstance(output.latents, Tensor) else output.latents.to_dense()
        return dense.sqrt().sum() / output.inputs.shape[0]


class NormOfLatents(Term):
    """Has no gradient where nothing fires: a square root at zero."""

    def part(self, output: CrosscoderOutput) -> Tensor:
        dense = output.latents if isinstance(output.latents, Tensor) else output.latents.to_dense()
        return dense.square().sum(dim=1).sqrt().mean()


class OwnGradient(Term):
    """Sends a gradient of its own, past its weight."""

    def value(self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext) -> Tensor:
        value = super().value(output, crosscoder, context)
        value.register_hook(lambda gradient: gradient + 1.0)
        return value


class SumOfStored(Term):
    """Counts stored entries: other for dense latents."""

    def part(self, output: CrosscoderOutput) -> Tensor:
        latents = output.latents
        values = latents.values if isinstance(latents, SparseLatents) else latents
        return (values - 1.0).square().sum() / output.inputs.shape[0]


class DetachedSparse(Term):
    """The same value for sparse latents, without their gradient."""

    def part(self, output: CrosscoderOutput) -> Tensor:
        part = super().part(output)
        return part.detach() if isinstance(output.latents, SparseLatents) else part


class Refuses(Term):
    def part(self, output: CrosscoderOutput) -> Tensor:
        if isinstance(output.latents, SparseLatents):
            raise ValueError(self.words)
        return super().part(output)

    words: ClassVar[str] = "no."


class RefusesInWords(Refuses):
    words: ClassVar[str] = "term_for_a_test: needs dense latents; use it with ReLU or JumpReLU."


class Neighbours(Term):
    def part(self, output: CrosscoderOutput) -> Tensor:
        return super().part(output) + output.inputs[0].square().sum()


class Sum(Term):
    def part(self, output: CrosscoderOutput) -> Tensor:
        return super().part(output) * output.inputs.shape[0]


BROKEN: list[tuple[type[Term], str]] = [
    (NotAKey, "is no key"),
    (Taken, r"'auxk' is taken by \['AuxK'\]"),
    (HasAttribute, r"attributes \['factor'\] are no fields"),
    (HasPath, "cannot be written as JSON"),
    (Unequal, "does not survive a JSON round trip"),
    (SaysNothing, r"repr does not tell \['factor'\]"),
    (SaysItsPlace, "repr differs between equal terms"),
    (Remembers, "weight_at depends on what was asked before"),
    (NegativeWeight, r"weight_at\(1.0\) is -0.5"),
    (NeverOff, "for a term of weight 0"),
    (PerToken, "is no scalar tensor"),
    (Python, "is no scalar tensor"),
    (OneDtype, "the weights have torch.float64"),
    (PerFiring, "latents that do not fire is not finite"),
    (PerDead, "no dead latent is not finite"),
    (Spread, "one token is not finite"),
    (WritesInputs, r"changes the \['inputs'\] of the forward pass"),
    (WritesWeights, "changes the weights of the crosscoder"),
    (SwitchesMode, "changes the mode"),
    (Draws, "depends on what was computed before"),
    (Detached, "the value has no gradient"),
    (Flat, "no gradient reaches a parameter"),
    (InfiniteGradient, "is not finite"),
    (NormOfLatents, r"gradient of \[.*\] is not finite where no latent fires"),
    (OwnGradient, "though the weight is 0"),
    (SumOfStored, "dense and sparse latents give another value"),
    (DetachedSparse, "dense and sparse latents give another gradient"),
    (Refuses, "without saying that it needs dense ones"),
    (Neighbours, "the order of tokens changes the value"),
    (Sum, "the value is no mean over tokens"),
]


@pytest.mark.parametrize(("cls", "message"), BROKEN, ids=[cls.__name__ for cls, _ in BROKEN])
def test_broken_terms_are_seen(cls: type[Term], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_loss_term(cls())


def test_what_a_term_states_is_not_held_against_it() -> None:
    check_loss_term(RefusesInWords())
    check_loss_term(Neighbours(), is_order_free=False, is_token_mean=False)
    check_loss_term(Sum(), is_token_mean=False)


def test_each_message_of_the_check_has_a_term_that_earns_it() -> None:
    errors = [error_of(lambda cls=cls: check_loss_term(cls())) for cls, _ in BROKEN]
    assert never_raised(check_loss_term, errors) == []
