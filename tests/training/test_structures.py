"""Structures hold through training, on every path, with every optimizer, and through resuming."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from crosscoders.activation_fns import ActivationFn, BatchTopK, JumpReLU, ReLU, TopK
from crosscoders.crosscoder import Crosscoder
from crosscoders.errors import KernelUnavailableError
from crosscoders.losses import (
    AuxK,
    DecoderNormL1,
    DifferenceReconstruction,
    JumpReLUL0,
    LossTerm,
    Reconstruction,
    SharedDecoderNormL1,
)
from crosscoders.sources import Source
from crosscoders.structures import DedicatedLatents, SharedLatents, Structure
from crosscoders.training import Callback, StepReport, Trainer, TrainerConfig, warm_start
from tests.core.held import CASES, EQUAL, SHARED, UNEQUAL, assert_held, case_name, held_crosscoder, held_rows
from tests.training.toy_run import same_bits, weights

held = pytest.mark.parametrize(("structure", "sources"), CASES, ids=case_name)
Sources = tuple[Source, ...]


def rows_of(sources: Sources, *, n_steps: int = 12) -> list[Tensor]:
    return list(held_rows(64 * n_steps - 10, sources, seed=5).split(64))


def trainer_of(
    crosscoder: Crosscoder,
    objective: list[LossTerm] | None = None,
    *,
    cls: type[Trainer] = Trainer,
    config: dict[str, Any] | None = None,
    **options: Any,
) -> Trainer:
    numbers = {"lr": 1e-2, "log_every_steps": 0, "dead_after_tokens": 128, **(config or {})}
    numbers_of_run = TrainerConfig.from_dict(numbers)
    return cls(crosscoder, objective or [Reconstruction(), AuxK()], config=numbers_of_run, **options)


class Watch(Callback):
    """The structure holds after every step, not only at the end."""

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        assert_held(trainer.crosscoder)


OBJECTIVES: list[tuple[ActivationFn, list[LossTerm]]] = [
    (ReLU(), [Reconstruction(), DecoderNormL1(weight=0.1)]),
    (TopK(k=4), [Reconstruction(), AuxK()]),
    (BatchTopK(k=4), [Reconstruction(), AuxK()]),
    (JumpReLU(), [Reconstruction(), JumpReLUL0(weight=0.1)]),
]


@held
@pytest.mark.parametrize(("activation_fn", "objective"), OBJECTIVES, ids=lambda v: getattr(v, "kind", ""))
def test_training_keeps_a_structure_and_moves_everything_else(
    structure: Structure, sources: Sources, activation_fn: ActivationFn, objective: list[LossTerm]
) -> None:
    crosscoder = held_crosscoder(structure, sources, activation_fn=activation_fn)
    before = weights(crosscoder)
    trainer_of(crosscoder, objective, callbacks=[Watch()]).fit(rows_of(sources))
    assert_held(crosscoder)
    for name in ("W_enc", "W_dec"):
        moved = getattr(crosscoder, name) != before[name]
        assert moved[before[name] != 0].float().mean() > 0.9


def optimizer_of(make: Callable[[Any], torch.optim.Optimizer]) -> type[Trainer]:
    class Own(Trainer):
        def configure_optimizer(self) -> torch.optim.Optimizer:
            return make(self.crosscoder.parameters())

    return Own


class Resampling(Trainer):
    """Writes random rows over bound latents, as a trainer that knows of no structure would."""

    def after_optimizer_step(self) -> None:
        generator = torch.Generator().manual_seed(self.step)
        for weight in (self.crosscoder.W_enc, self.crosscoder.W_dec):
            weight[:4].normal_(generator=generator)


PATHS: dict[str, type[Trainer]] = {
    "fused Adam": Trainer,
    "foreach AdamW": optimizer_of(lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, foreach=True)),
    "plain AMSGrad": optimizer_of(lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True, foreach=False)),
    "SGD with momentum": optimizer_of(lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, nesterov=True)),
    "resampling": Resampling,
}


@held
@pytest.mark.parametrize("cls", PATHS.values(), ids=PATHS.keys())
def test_every_optimizer_and_override_keeps_a_structure(
    structure: Structure, sources: Sources, cls: type[Trainer]
) -> None:
    crosscoder = held_crosscoder(structure, sources)
    trainer_of(crosscoder, cls=cls, callbacks=[Watch()]).fit(rows_of(sources))
    assert_held(crosscoder)


def test_every_latent_may_be_bound_and_the_width_odd() -> None:
    """No vector register ends where a slice does: equal arithmetic must not depend on the place."""
    for d_model in (1, 3, 7, 17):
        sources = tuple(Source(name=name, d_model=d_model) for name in ("base", "distilled", "third"))
        crosscoder = held_crosscoder(SharedLatents(n_shared=24), sources)
        trainer_of(crosscoder, callbacks=[Watch()]).fit(rows_of(sources))
        assert_held(crosscoder)


@held
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_in_low_precision_keeps_a_structure(
    structure: Structure, sources: Sources, precision: str
) -> None:
    crosscoder = held_crosscoder(structure, sources)
    trainer_of(crosscoder, config={"precision": precision}, callbacks=[Watch()]).fit(rows_of(sources))
    assert_held(crosscoder)


def test_the_step_without_autograd_refuses_a_structure() -> None:
    trainer = trainer_of(held_crosscoder(SHARED, EQUAL))
    trainer.fit(rows_of(EQUAL, n_steps=1))
    assert "because the crosscoder is held to SharedLatents(n_shared=7)" in trainer.explain()
    trainer = trainer_of(held_crosscoder(SHARED, EQUAL), config={"backend": "cpu"})
    with pytest.raises(KernelUnavailableError, match="held to SharedLatents"):
        trainer.fit(rows_of(EQUAL, n_steps=1))
    free = trainer_of(held_crosscoder(None, EQUAL))
    free.fit(rows_of(EQUAL, n_steps=1))
    assert "autograd" not in free.explain()


@held
def test_a_tied_latent_learns_what_a_plain_one_would_from_the_summed_gradient(
    structure: Structure, sources: Sources
) -> None:
    """One step of SGD on the whole, against one step on the free parameters alone."""
    crosscoder = held_crosscoder(structure, sources, activation_fn=ReLU()).double()
    x = held_rows(32, sources).double()
    before = crosscoder.W_dec.detach().clone()
    output = crosscoder(x)
    rows = 2 * (output.reconstruction - output.inputs) / len(x)
    by_hand = output.latents.detach().T @ rows.detach()
    lr = 1e-3
    cls = optimizer_of(lambda p: torch.optim.SGD(p, lr=lr))
    numbers = {"max_grad_norm": None, "warmup_fraction": 0.0, "decay_fraction": 0.0, "lr": lr}
    trainer_of(crosscoder, [Reconstruction()], cls=cls, config=numbers).fit([x])
    step = (before - crosscoder.W_dec.detach()) / lr
    if isinstance(structure, SharedLatents):
        d, n = sources[0].d_model, structure.n_shared
        by_hand[:n] = sum(by_hand[:n, s * d : (s + 1) * d] for s in range(len(sources))).repeat(
            1, len(sources)
        )
    else:
        by_hand[before == 0] = 0
    torch.testing.assert_close(step, by_hand, rtol=1e-9, atol=1e-9)


class Crash(Callback):
    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        if report.step == 8:
            raise KeyboardInterrupt


@held
def test_resuming_keeps_a_structure_and_is_exact(
    structure: Structure, sources: Sources, tmp_path: Path
) -> None:
    undisturbed = trainer_of(held_crosscoder(structure, sources))
    undisturbed.fit(rows_of(sources))
    config = {"checkpoint_every_steps": 3}
    first = trainer_of(
        held_crosscoder(structure, sources), config=config, checkpoint_dir=tmp_path, callbacks=[Crash()]
    )
    with pytest.raises(KeyboardInterrupt):
        first.fit(rows_of(sources))
    second = trainer_of(held_crosscoder(structure, sources), config=config, checkpoint_dir=tmp_path)
    second.resume(tmp_path)
    second.fit(rows_of(sources))
    assert same_bits(weights(second.crosscoder), weights(undisturbed.crosscoder))
    assert_held(second.crosscoder)


@held
def test_zeros_are_zero_and_tied_slices_identical_after_training_resuming_and_reloading(
    structure: Structure, sources: Sources, tmp_path: Path
) -> None:
    """Stored, read back, and folded between: every time to the last bit, in normalized space."""
    config, run = {"checkpoint_every_steps": 3}, tmp_path / "run"
    first = trainer_of(
        held_crosscoder(structure, sources), config=config, checkpoint_dir=run, callbacks=[Crash()]
    )
    with pytest.raises(KeyboardInterrupt):
        first.fit(rows_of(sources))
    resumed = trainer_of(held_crosscoder(structure, sources), config=config, checkpoint_dir=run)
    resumed.resume(run)
    after_resuming = copy.deepcopy(resumed.crosscoder)
    resumed.fit(rows_of(sources))
    resumed.crosscoder.save_pretrained(tmp_path / "plain")
    resumed.crosscoder.fold().save_pretrained(tmp_path / "folded")
    plain, folded = (Crosscoder.from_pretrained(tmp_path / name) for name in ("plain", "folded"))
    for crosscoder in (first.crosscoder, after_resuming, resumed.crosscoder, plain, folded.unfold()):
        assert_held(crosscoder)
    if isinstance(structure, DedicatedLatents):  # zeros need no common space
        assert torch.equal(folded.W_dec == 0, plain.W_dec == 0)
        assert torch.equal(folded.W_enc == 0, plain.W_enc == 0)


def test_a_run_with_another_structure_cannot_be_resumed(tmp_path: Path) -> None:
    config = {"checkpoint_every_steps": 1}
    trainer_of(held_crosscoder(SHARED, EQUAL), config=config, checkpoint_dir=tmp_path).fit(
        rows_of(EQUAL, n_steps=2)
    )
    for other in (None, SharedLatents(n_shared=6)):
        trainer = trainer_of(held_crosscoder(other, EQUAL), config=config, checkpoint_dir=tmp_path)
        with pytest.raises(ValueError, match=r"crosscoder config differs \(structure: saved"):
            trainer.resume(tmp_path)


@held
def test_saved_loaded_folded_and_warm_started_weights_hold_and_train_on(
    structure: Structure, sources: Sources, tmp_path: Path
) -> None:
    crosscoder = held_crosscoder(structure, sources, activation_fn=BatchTopK(k=4))
    trainer_of(crosscoder).fit(rows_of(sources))
    crosscoder.save_pretrained(tmp_path / "plain")
    crosscoder.fold().save_pretrained(tmp_path / "folded")
    loaded = Crosscoder.from_pretrained(tmp_path / "plain")
    stored = {**weights(crosscoder), "selection_weight": crosscoder.selection_scale()}
    assert same_bits(weights(loaded), stored)
    for start in (loaded, tmp_path / "folded", crosscoder.fold()):
        warm = warm_start(start, activation_fn=TopK(k=3))
        assert warm.config.structure == structure
        assert_held(warm)
        trainer_of(warm, callbacks=[Watch()]).fit(rows_of(sources, n_steps=4))
        assert_held(warm)


def test_warm_start_under_other_scales_ties_again_and_leaves_the_rest() -> None:
    crosscoder = held_crosscoder(SHARED, EQUAL)
    scaled = [dataclasses.replace(s, scale=s.scale * f) for s, f in zip(EQUAL, (1.0, 1.1, 1.3))]
    warm = warm_start(crosscoder, sources=scaled)
    assert_held(warm)
    torch.testing.assert_close(
        warm.W_dec[:7, :5], crosscoder.W_dec[:7, :5] * (1.0 + 1.1 + 1.3) / 3, rtol=1e-6, atol=0
    )
    factor = torch.tensor([1.0, 1.1, 1.3]).repeat_interleave(5)
    torch.testing.assert_close(warm.W_dec[7:], crosscoder.W_dec[7:] * factor, rtol=1e-6, atol=0)
    dedicated = warm_start(
        held_crosscoder(DedicatedLatents(n_per_source=(3, 2, 1)), UNEQUAL),
        sources=[dataclasses.replace(s, scale=2.0) for s in UNEQUAL],
    )
    assert_held(dedicated)


def test_the_cheaper_tied_latents_take_what_both_sources_have() -> None:
    """What the penalty is for: with a lower price the tied latents carry more of the shared part."""
    sources = tuple(Source(name=name, d_model=6, scale=0.5) for name in ("base", "distilled"))
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(8, 6, generator=generator)
    codes = torch.rand(4096, 8, generator=generator) * (torch.rand(4096, 8, generator=generator) < 0.15)
    rows = (codes @ common).repeat(1, 2) * 4
    use = {}
    for factor in (0.1, 1.0):
        crosscoder = held_crosscoder(SharedLatents(n_shared=12), sources, activation_fn=ReLU())
        penalty = SharedDecoderNormL1(n_shared=12, shared_factor=factor, weight=0.3)
        trainer_of(crosscoder, [Reconstruction(), penalty]).fit(list(rows.repeat(4, 1).split(64)))
        strength = (crosscoder.encode(rows).mean(dim=0) * crosscoder.decoder_norms().sum(dim=1)).detach()
        use[factor] = float(strength[:12].sum() / strength.sum())
    assert use[0.1] > max(0.95, use[1.0])


def test_weight_on_the_difference_improves_the_difference() -> None:
    sources = (EQUAL[0], EQUAL[1])
    rows = rows_of(sources, n_steps=150)
    errors = {}
    for mu in (0.0, 4.0):
        crosscoder = held_crosscoder(None, sources)
        trainer_of(crosscoder, [Reconstruction(), DifferenceReconstruction(weight=mu)]).fit(rows)
        error = (torch.cat(rows) - crosscoder.reconstruct(torch.cat(rows))).detach()
        errors[mu] = float((error[:, 5:] - error[:, :5]).square().sum())
    assert errors[4.0] < 0.9 * errors[0.0]
