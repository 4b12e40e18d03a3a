"""The difference of two sources as batches of one source: values, length, position, training."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from crosscoders.activation_fns import TopK
from crosscoders.buffer import ActivationBuffer
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.evaluation import evaluate
from crosscoders.hub import estimate_scale
from crosscoders.losses import AuxK, Reconstruction
from crosscoders.sources import Source
from crosscoders.training import Callback, DifferenceBatches, StepReport, Trainer, TrainerConfig
from tests.core.held import EQUAL, UNEQUAL, held_rows
from tests.core.toy import SOURCES, toy_rows
from tests.training.toy_run import N_STEPS, Stream, same_bits, toy_batches, weights


class ThreeSources:
    """A harvester without models: three sources of width 2, rows numbered by their token."""

    sources = tuple(Source(name=name, d_model=2, hook_name="blocks.1.hook_resid_pre") for name in "abc")

    def harvest(self, tokens: Tensor) -> Tensor:
        number = tokens.float()[..., None]
        return torch.cat([number, number + 1, 2 * number, -number, 3 * number, number], dim=-1)


def difference_of(kind: str) -> DifferenceBatches:
    batches: Iterable[Tensor] = toy_batches() if kind == "list" else Stream()
    return DifferenceBatches(batches, SOURCES)


@pytest.mark.parametrize(
    ("pair", "first", "second"), [(None, 0, 2), (("s1", "s0"), 1, 0), (("s2", "s1"), 2, 1)]
)
def test_rows_are_second_minus_first(pair: tuple[str, str] | None, first: int, second: int) -> None:
    rows = held_rows(50, EQUAL)
    found = torch.cat(list(DifferenceBatches(rows.split(8), EQUAL, pair=pair)))
    parts = rows.split(5, dim=1)
    assert torch.equal(found, parts[second] - parts[first])


def test_the_source_says_what_it_is() -> None:
    source = DifferenceBatches([], ThreeSources.sources, pair=("b", "c")).source
    assert source == Source(name="c - b", d_model=2, hook_name="blocks.1.hook_resid_pre")
    hooks = (Source(name="x", d_model=2, hook_name="h0"), Source(name="y", d_model=2, hook_name="h1"))
    assert DifferenceBatches([], hooks).source.hook_name == ""


def test_the_length_is_that_of_the_batches() -> None:
    assert difference_of("list").n_tokens == sum(len(batch) for batch in toy_batches())
    assert difference_of("stream").n_tokens == Stream().n_tokens
    assert DifferenceBatches(iter(toy_batches()), SOURCES).n_tokens is None


@pytest.mark.parametrize("kind", ["list", "stream"])
def test_a_pass_goes_on_where_the_state_was_taken(kind: str) -> None:
    whole = list(difference_of(kind))
    batches = difference_of(kind)
    start = batches.state_dict()
    served = iter(batches)
    head = [next(served) for _ in range(5)]
    state = batches.state_dict()
    rest = difference_of(kind)
    assert state is not None
    assert start is not None
    rest.load_state_dict(state)
    assert rest.state_dict() == state
    assert_same_batches([*head, *rest], whole)
    again = difference_of(kind)
    again.load_state_dict(start)
    assert_same_batches(again, whole)


def assert_same_batches(a: Iterable[Tensor], b: Iterable[Tensor]) -> None:
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_list_is_served_again_and_an_iterator_is_not() -> None:
    batches = difference_of("list")
    assert_same_batches(list(batches), list(batches))
    once = DifferenceBatches(iter(toy_batches()), SOURCES)
    assert len(list(once)) == N_STEPS
    assert not list(once)
    assert once.state_dict() is None


def test_a_buffer_is_shuffled_once_for_both() -> None:
    def buffer() -> ActivationBuffer:
        tokens = [torch.arange(40).view(4, 10) + 40 * i for i in range(3)]
        return ActivationBuffer(
            ThreeSources(), tokens, max_bytes=3000, batch_tokens=16, dtype=torch.float32,
            generator=torch.Generator().manual_seed(1),
        )  # fmt: skip

    rows = torch.cat(list(buffer()))
    found = DifferenceBatches(buffer(), ThreeSources.sources)
    assert found.n_tokens == 120
    assert torch.equal(torch.cat(list(found)), rows[:, 4:] - rows[:, :2])
    half = DifferenceBatches(buffer(), ThreeSources.sources)
    first = next(iter(half))
    rest = DifferenceBatches(buffer(), ThreeSources.sources)
    state = half.state_dict()
    assert state is not None
    rest.load_state_dict(state)
    assert torch.equal(torch.cat([first, *rest]), rows[:, 4:] - rows[:, :2])


class Crash(Callback):
    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        if report.step == 11:
            raise KeyboardInterrupt


def sae_trainer(source: Source, **options: Any) -> Trainer:
    config = CrosscoderConfig(sources=(source,), n_latents=24, activation_fn=TopK(k=3))
    numbers = TrainerConfig(lr=1e-2, log_every_steps=0, checkpoint_every_steps=4 if options else 0)
    return Trainer(Crosscoder(config), [Reconstruction(), AuxK()], config=numbers, **options)


@pytest.mark.parametrize("kind", ["list", "stream"])
def test_a_difference_sae_resumes_exactly(kind: str, tmp_path: Path) -> None:
    undisturbed = sae_trainer(difference_of(kind).source)
    undisturbed.fit(difference_of(kind))
    first = sae_trainer(difference_of(kind).source, checkpoint_dir=tmp_path, callbacks=[Crash()])
    with pytest.raises(KeyboardInterrupt):
        first.fit(difference_of(kind))
    second = sae_trainer(difference_of(kind).source, checkpoint_dir=tmp_path)
    second.resume(tmp_path)
    second.fit(difference_of(kind))
    assert same_bits(weights(second.crosscoder), weights(undisturbed.crosscoder))


def test_a_difference_sae_explains_held_out_differences_and_reloads(tmp_path: Path) -> None:
    batches = DifferenceBatches(toy_rows(64 * 200, seed=3).split(64), SOURCES)
    scale = estimate_scale(batches, sources=[batches.source])
    source = Source(name=batches.source.name, d_model=6, scale=scale[batches.source.name])
    trainer = sae_trainer(source)
    trainer.fit(batches)
    trainer.crosscoder.save_pretrained(tmp_path / "sae")
    held_out = list(DifferenceBatches([toy_rows(500, seed=4)], SOURCES))
    figures = evaluate(Crosscoder.from_pretrained(tmp_path / "sae"), held_out)
    assert set(figures) == {"ev/distilled - base", "l0"}
    assert figures["ev/distilled - base"] > 0.5


def test_what_has_no_difference_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="DifferenceBatches: a difference of activations needs one width"):
        DifferenceBatches([], UNEQUAL)
    with pytest.raises(ValueError, match=r"DifferenceBatches: activations have shape \(4, 7\)"):
        list(DifferenceBatches([torch.ones(4, 7)], SOURCES))
    trainer = sae_trainer(difference_of("list").source, checkpoint_dir=tmp_path)
    trainer.config = TrainerConfig(checkpoint_every_steps=4, total_tokens=64 * N_STEPS)

    def endless() -> Iterator[Tensor]:
        yield from toy_batches()

    trainer.fit(DifferenceBatches(endless(), SOURCES))
    again = sae_trainer(difference_of("list").source, checkpoint_dir=tmp_path)
    again.config = trainer.config
    again.resume(tmp_path)
    with pytest.raises(ValueError, match="cannot resume at batch 24 of a DifferenceBatches"):
        again.fit(DifferenceBatches(endless(), SOURCES))
