"""Structures: imposed on initial weights, every gradient and every copy, demanded of stored weights."""

import copy
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.testing import assert_close

from crosscoders.activation_fns import ReLU
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.errors import CheckpointError
from crosscoders.sources import Source
from crosscoders.structures import DedicatedLatents, SharedLatents, Structure, structure_from_dict
from tests.core.held import (
    CASES,
    DEDICATED,
    EQUAL,
    N_LATENTS,
    SHARED,
    UNEQUAL,
    assert_held,
    case_name,
    held_crosscoder,
    held_rows,
)

_MATRICES: tuple[Literal["W_enc", "W_dec"], ...] = ("W_enc", "W_dec")
held = pytest.mark.parametrize(("structure", "sources"), CASES, ids=case_name)


def width_of(sources: Sequence[Source]) -> int:
    return sum(source.d_model for source in sources)


def free_parameters(
    structure: Structure, sources: Sequence[Source]
) -> Callable[[Tensor, Literal["W_enc", "W_dec"]], Tensor]:
    """The structure said in another way: a function of all weights that reads only the free ones."""
    d = sources[0].d_model

    def rebuilt(weight: Tensor, matrix: Literal["W_enc", "W_dec"]) -> Tensor:
        if isinstance(structure, SharedLatents):
            tied = weight[: structure.n_shared, :d].repeat(1, len(sources))
            rows = torch.cat([tied, weight[structure.n_shared :]])
            return rows if matrix == "W_dec" else weight
        assert isinstance(structure, DedicatedLatents)
        owners = [s for s, n in enumerate(structure.n_per_source) for _ in range(n)]
        owners += [-1] * (N_LATENTS - len(owners))
        columns = [s for s, source in enumerate(sources) for _ in range(source.d_model)]
        mask = [[owner in (-1, column) for column in columns] for owner in owners]
        return weight * torch.tensor(mask, dtype=weight.dtype)

    return rebuilt


@held
def test_initial_weights_hold_with_the_wanted_norms(
    structure: Structure, sources: tuple[Source, ...]
) -> None:
    crosscoder = held_crosscoder(structure, sources)
    assert_held(crosscoder)
    assert torch.equal(crosscoder.W_enc, crosscoder.W_dec)
    norms = crosscoder.decoder_norms()
    assert_close(norms[norms != 0], torch.full_like(norms[norms != 0], 0.5))


@held
def test_gradients_are_those_of_the_free_parameters(
    structure: Structure, sources: tuple[Source, ...]
) -> None:
    crosscoder = held_crosscoder(structure, sources, activation_fn=ReLU()).double()
    x = held_rows(40, sources).double()
    rebuilt = free_parameters(structure, sources)
    plain = held_crosscoder(None, sources, activation_fn=ReLU()).double()
    weights = {n: p.detach().clone().requires_grad_() for n, p in crosscoder.named_parameters()}
    built = dict(weights)
    for name in _MATRICES:
        built[name] = rebuilt(weights[name], name)
    expected = functional_call(plain, built, x)
    (expected.inputs - expected.reconstruction).square().sum().backward()
    output = crosscoder(x)
    (output.inputs - output.reconstruction).square().sum().backward()
    for name in _MATRICES:
        grad, free = getattr(crosscoder, name).grad, weights[name].grad
        assert grad.any()
        assert free is not None
        assert_close(rebuilt(free, name), grad, rtol=1e-10, atol=1e-10)


@held
@pytest.mark.parametrize("matrix", ["W_enc", "W_dec"])
def test_imposing_projects_and_leaves_alone_what_holds(
    structure: Structure, sources: tuple[Source, ...], matrix: Literal["W_enc", "W_dec"]
) -> None:
    generator = torch.Generator().manual_seed(0)
    w, other = torch.randn(2, N_LATENTS, width_of(sources), generator=generator).double()
    moved = w.clone()
    structure.impose_(moved, matrix=matrix, sources=sources)
    structure.impose_(other, matrix=matrix, sources=sources)
    assert structure.broken_latent(moved, matrix=matrix, sources=sources) is None
    assert abs(float(((w - moved) * other).sum())) < 1e-12
    for dtype in (torch.float32, torch.bfloat16):
        rounded = moved.to(dtype)
        again = rounded.clone()
        structure.impose_(again, matrix=matrix, sources=sources)
        assert torch.equal(again, rounded)


def test_a_latent_that_breaks_its_structure_is_named() -> None:
    for structure, sources, column in ((SHARED, EQUAL, 7), (DEDICATED, UNEQUAL, 0)):
        weight = held_crosscoder(structure, sources).W_dec.detach().clone()
        assert structure.broken_latent(weight, matrix="W_dec", sources=sources) is None
        weight[5:7, column] += 1e-7
        assert structure.broken_latent(weight, matrix="W_dec", sources=sources) == 5
    assert SHARED.broken_latent(torch.randn(24, 15), matrix="W_enc", sources=EQUAL) is None
    assert SHARED.broken_latent(weight[:, :15] * torch.nan, matrix="W_dec", sources=EQUAL) == 0


COPIES: dict[str, Callable[[Crosscoder], Crosscoder]] = {
    "deepcopy": copy.deepcopy,
    "float64": lambda c: c.to(torch.float64),
    "bfloat16 and back": lambda c: c.to(torch.bfloat16).float(),
    "fold and unfold": lambda c: c.fold().unfold(),
    "frozen, copied, thawed": lambda c: copy.deepcopy(c.requires_grad_(False)).requires_grad_(True),
}


@held
@pytest.mark.parametrize("made", COPIES.values(), ids=COPIES.keys())
def test_copies_hold_and_stay_held(
    structure: Structure, sources: tuple[Source, ...], made: Callable[[Crosscoder], Crosscoder]
) -> None:
    crosscoder = made(held_crosscoder(structure, sources))
    assert crosscoder.config.structure == structure
    assert_held(crosscoder)
    optimizer = torch.optim.Adam(crosscoder.parameters(), lr=1e-2)
    before = crosscoder.W_dec.detach().clone()
    for seed in range(3):
        output = crosscoder(held_rows(32, sources, seed=seed))
        optimizer.zero_grad()
        (output.inputs - output.reconstruction).square().sum().backward()
        optimizer.step()
    assert_held(crosscoder)
    assert not torch.equal(crosscoder.W_dec, before)


def test_a_copy_is_held_before_its_first_forward_pass() -> None:
    for crosscoder in (held_crosscoder(SHARED, EQUAL), copy.deepcopy(held_crosscoder(SHARED, EQUAL))):
        (crosscoder.W_dec * torch.arange(15.0)).sum().backward()
        assert crosscoder.W_dec.grad is not None
        expected = torch.arange(15.0).view(3, 5).sum(dim=0)
        assert torch.equal(crosscoder.W_dec.grad[0], expected.repeat(3))
        assert torch.equal(crosscoder.W_dec.grad[7], torch.arange(15.0))


def test_a_pickled_crosscoder_and_a_replaced_parameter_stay_held() -> None:
    crosscoder, buffer = held_crosscoder(DEDICATED, UNEQUAL), io.BytesIO()
    torch.save(crosscoder, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    crosscoder.load_state_dict(crosscoder.state_dict(), assign=True)
    for each in (crosscoder, loaded):
        each(held_rows(16, UNEQUAL)).reconstruction.square().sum().backward()
        assert not each.W_dec.grad[0, 3:].any()
        assert each.W_dec.grad[8:].any()


@held
@pytest.mark.parametrize("is_folded", [False, True], ids=["normalized", "folded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_structures_survive_saving_folded_or_not(
    structure: Structure, sources: tuple[Source, ...], is_folded: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    crosscoder = held_crosscoder(structure, sources)
    saved = (crosscoder.fold() if is_folded else crosscoder).to(dtype)
    if is_folded and dtype is torch.bfloat16:
        saved = held_crosscoder(structure, sources).to(dtype).fold().float()
    saved.save_pretrained(tmp_path / "x")
    loaded = Crosscoder.from_pretrained(tmp_path / "x")
    assert loaded.config == saved.config
    assert loaded.config.structure == structure
    assert_held(loaded.float().unfold())


@held
@pytest.mark.parametrize("is_folded", [False, True], ids=["normalized", "folded"])
def test_stored_weights_that_break_their_structure_raise(
    structure: Structure, sources: tuple[Source, ...], is_folded: bool, tmp_path: Path
) -> None:
    crosscoder = held_crosscoder(structure, sources)
    crosscoder = crosscoder.fold() if is_folded else crosscoder
    with torch.no_grad():
        crosscoder.W_dec[1, -1] += 0.05 if is_folded else 1e-6  # a folded tie holds up to rounding
    crosscoder.save_pretrained(tmp_path / "x")
    with pytest.raises(
        CheckpointError, match=r"(?s)states (Shared|Dedicated)Latents.*W_dec of latent 1 breaks"
    ):
        Crosscoder.from_pretrained(tmp_path / "x")


def test_imposing_needs_normalized_space() -> None:
    folded = held_crosscoder(SHARED, EQUAL).fold()
    with pytest.raises(ValueError, match=r"folded into the weights; call unfold"):
        folded.impose_structure()
    held_crosscoder(None, EQUAL).fold().impose_structure()


@held
def test_configs_survive_json(structure: Structure, sources: tuple[Source, ...]) -> None:
    config = held_crosscoder(structure, sources).config
    data = json.loads(json.dumps(config.to_dict(), allow_nan=False))
    assert data == config.to_dict()
    assert CrosscoderConfig.from_dict(data) == config
    assert hash(config) == hash(CrosscoderConfig.from_dict(data))
    assert structure_from_dict(structure.to_dict()) == structure


def test_a_config_without_a_structure_reads_as_none() -> None:
    config = held_crosscoder(None, EQUAL).config
    data = config.to_dict()
    assert "structure" not in data
    assert (
        CrosscoderConfig.from_dict(data) == CrosscoderConfig.from_dict({**data, "structure": None}) == config
    )


@pytest.mark.parametrize(
    ("structure", "sources", "message"),
    [
        (SHARED, UNEQUAL, r"needs one width, got \{'s0': 3, 's1': 5, 's2': 7\}"),
        (SharedLatents(n_shared=25), EQUAL, "binds 25 latents, but the crosscoder has only 24"),
        (DedicatedLatents(n_per_source=(20, 5, 0)), EQUAL, "binds 25 latents"),
        (DedicatedLatents(n_per_source=(2, 5)), EQUAL, r"2 counts for 3 sources \(s0, s1, s2\)"),
    ],
)
def test_structures_that_do_not_fit_raise(
    structure: Structure, sources: tuple[Source, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        held_crosscoder(structure, sources)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"kind": "tied_knot"}, "unknown kind 'tied_knot'; known kinds are .*dedicated_latents"),
    ({"n_shared": 3}, "unknown kind None"),
    ({"kind": "shared_latents"}, "missing keys"),
    ({"kind": "shared_latents", "n_shared": "3"}, "n_shared should be int"),
    ({"kind": "shared_latents", "n_shared": 0}, "at least 1, got 0"),
    ({"kind": "shared_latents", "n_shared": 3, "n": 1}, "unknown keys"),
    ({"kind": "dedicated_latents", "n_per_source": [1, -1]}, "not negative and not all zero"),
    ({"kind": "dedicated_latents", "n_per_source": [0, 0]}, "not all zero"),
    ({"kind": "dedicated_latents", "n_per_source": [1, True]}, "must be counts"),
]


@pytest.mark.parametrize(("data", "message"), BAD)
def test_stored_structures_that_make_no_sense_raise(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        structure_from_dict(data)


def test_a_structure_of_your_own_is_one_class() -> None:
    @dataclass(frozen=True, kw_only=True)
    class NoFirstColumn(Structure):
        kind: ClassVar[str] = "no_first_column"

        def check(self, sources: Sequence[Source], *, n_latents: int) -> None:
            pass

        def impose_(self, weight: Tensor, *, matrix: str, sources: Sequence[Source]) -> None:
            weight[:, 0] = 0

        def constrain_gradient(self, grad: Tensor, *, matrix: str, sources: Sequence[Source]) -> Tensor:
            return torch.cat([torch.zeros_like(grad[:, :1]), grad[:, 1:]], dim=1)

        def broken_latent(
            self, weight: Tensor, *, matrix: str, sources: Sequence[Source], rtol: float = 0.0
        ) -> int | None:
            return None if not weight[:, 0].any() else int(weight[:, 0].nonzero()[0])

    crosscoder = held_crosscoder(NoFirstColumn(), EQUAL)
    crosscoder(held_rows(16, EQUAL)).reconstruction.square().sum().backward()
    assert not crosscoder.W_enc[:, 0].any()
    assert not crosscoder.W_enc.grad[:, 0].any()  # type: ignore[index]
    assert structure_from_dict({"kind": "no_first_column"}) == NoFirstColumn()
    with pytest.raises(TypeError, match="is taken by"):
        type("Other", (SharedLatents.__mro__[1],), {"kind": "shared_latents"})
