"""A warm start computes what its origin computed, and training goes on from there."""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from crosscoders.activation_fns import ActivationFn, ActivationModule, BatchTopK, JumpReLU, ReLU, TopK
from crosscoders.crosscoder import Crosscoder
from crosscoders.errors import CheckpointError
from crosscoders.kernels import SparseLatents
from crosscoders.sources import Source
from crosscoders.training import History, Trainer, TrainerConfig, warm_start
from tests.core.toy import ACTIVATION_FNS, OBJECTIVES, SOURCES, kind_of, toy_crosscoder, toy_rows
from tests.training.toy_run import same_bits, weights


def rescaled(*factors: float) -> tuple[Source, ...]:
    """The toy sources with each scale times its factor."""
    return tuple(
        dataclasses.replace(source, scale=source.scale * factor, model_id="new")
        for source, factor in zip(SOURCES, factors, strict=True)
    )


N_STEPS = 100
OTHER_SCALES = rescaled(0.37, 2.9)


def dense(latents: Tensor | SparseLatents) -> Tensor:
    return latents if isinstance(latents, Tensor) else latents.to_dense()


def trained(activation_fn: ActivationFn) -> Crosscoder:
    """A crosscoder in eval mode whose activation function has a state of its own."""
    crosscoder = toy_crosscoder(activation_fn).eval()
    with torch.no_grad():
        for tensor in crosscoder.activation.state_dict().values():
            tensor.copy_(0.5 + 0.01 * torch.arange(tensor.numel(), dtype=tensor.dtype).view(tensor.shape))
    return crosscoder


@pytest.mark.parametrize("activation_fn", ACTIVATION_FNS, ids=kind_of)
@pytest.mark.parametrize("where", ["memory", "folder", "folded"])
def test_a_warm_start_computes_what_its_origin_does(
    activation_fn: ActivationFn, where: str, tmp_path: Path
) -> None:
    old, x = trained(activation_fn), toy_rows()
    before = weights(old)
    old.save_pretrained(tmp_path / "saved")
    origin = {"memory": old, "folder": tmp_path / "saved", "folded": old.fold()}[where]
    warm = warm_start(origin)
    assert not warm.training
    assert not warm.config.is_folded
    torch.testing.assert_close(warm.reconstruct(x), old.reconstruct(x))
    torch.testing.assert_close(dense(warm.encode(x)), dense(old.encode(x)))
    with torch.no_grad():
        warm.W_dec.zero_()
    assert same_bits(weights(old), before)


@pytest.mark.parametrize("activation_fn", [ReLU(), JumpReLU()], ids=kind_of)
def test_other_scales_leave_the_raw_function_as_it_was(activation_fn: ActivationFn) -> None:
    old, x = trained(activation_fn).double(), toy_rows(512).double()
    warm = warm_start(old, sources=OTHER_SCALES)
    assert warm.sources == OTHER_SCALES
    assert warm.W_enc.dtype == torch.float64
    expected = old.reconstruct(x).detach()
    assert float((warm.reconstruct(x).detach() - expected).abs().max() / expected.abs().max()) < 1e-6
    torch.testing.assert_close(dense(warm.encode(x)), dense(old.encode(x)))
    assert not torch.allclose(warm.normalize(x), old.normalize(x))


@pytest.mark.parametrize("activation_fn", [TopK(k=3), BatchTopK(k=3)], ids=kind_of)
def test_under_other_scales_top_k_ranks_anew_and_one_common_factor_changes_no_rank(
    activation_fn: ActivationFn,
) -> None:
    old, x = trained(activation_fn).double().train(), toy_rows(512).double()
    codes = dense(old.encode(x))
    same = warm_start(old, sources=rescaled(3.0, 3.0)).train()
    torch.testing.assert_close(same.reconstruct(x), old.reconstruct(x), rtol=1e-9, atol=1e-9)
    other = warm_start(old, sources=OTHER_SCALES).train()
    torch.testing.assert_close(other.pre_activations(x), old.pre_activations(x))
    torch.testing.assert_close(other.decode(codes), old.decode(codes))
    assert not torch.equal(dense(other.encode(x)) != 0, codes != 0)


@pytest.mark.parametrize(
    "options",
    [{"activation_fn": BatchTopK(k=5)}, {"sources": rescaled(3.0, 3.0)}, {"sources": OTHER_SCALES}],
    ids=["k", "scale", "scales"],
)
def test_a_calibrated_threshold_never_outlives_what_it_was_calibrated_for(options: dict) -> None:
    warm = warm_start(trained(BatchTopK(k=3)), **options)
    with pytest.raises(ValueError, match="needs a threshold"):
        warm.encode(toy_rows())


def test_a_threshold_that_still_holds_is_kept() -> None:
    old = trained(BatchTopK(k=3))
    moved = tuple(dataclasses.replace(source, model_id="elsewhere") for source in SOURCES)
    warm = warm_start(old, activation_fn=BatchTopK(k=3), sources=moved)
    assert torch.equal(weights(warm)["activation.threshold"], weights(old)["activation.threshold"])
    torch.testing.assert_close(warm.reconstruct(toy_rows()), old.reconstruct(toy_rows()))


@pytest.mark.parametrize("activation_fn", [TopK(k=3), BatchTopK(k=3)], ids=kind_of)
def test_another_ranking_is_not_lost_in_silence(activation_fn: ActivationFn, tmp_path: Path) -> None:
    """As an artifact that was converted from another library may have one."""
    folded, x = trained(activation_fn).fold(), toy_rows(512)
    folded.selection_weight.fill_(1.0)
    folded.save_pretrained(tmp_path / "converted")
    before = dense(folded.encode(x)) != 0
    with pytest.raises(ValueError, match="would select other latents; pass rank_by_norms=True"):
        warm_start(tmp_path / "converted")
    warm = warm_start(tmp_path / "converted", rank_by_norms=True)
    if isinstance(activation_fn, BatchTopK):  # its threshold was in units of the other weight
        with pytest.raises(ValueError, match="needs a threshold"):
            warm.encode(x)
        warm.activation.calibrate(torch.tensor([0.5]))
    assert not torch.equal(dense(warm.encode(x)) != 0, before)
    torch.testing.assert_close(warm.pre_activations(x), folded.pre_activations(x))
    kept = warm_start(trained(activation_fn).fold(), rank_by_norms=True)
    torch.testing.assert_close(dense(kept.encode(x)), dense(trained(activation_fn).encode(x)))


def test_learned_thresholds_survive_another_bandwidth_and_other_scales() -> None:
    old = trained(JumpReLU(bandwidth=2.0))
    warm = warm_start(old, activation_fn=JumpReLU(bandwidth=1.0), sources=OTHER_SCALES)
    torch.testing.assert_close(dense(warm.encode(toy_rows())), dense(old.encode(toy_rows())))
    other_kind = warm_start(old, activation_fn=ReLU())
    assert "activation.log_threshold" not in other_kind.state_dict()


@dataclass(frozen=True, kw_only=True)
class GainFn(ActivationFn):
    """Learns one number and calibrates another."""

    kind: ClassVar[str] = "gain_for_a_test"

    def build(self, n_latents: int) -> ActivationModule:
        return _Gain()


class _Gain(ActivationModule):
    needs_calibration = True

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(1.0))
        self.register_buffer("limit", torch.tensor(-1.0))

    def forward(self, pre_acts: Tensor, selection_scale: Tensor) -> Tensor:
        return self.gain * pre_acts.relu()


def test_what_was_learned_is_kept_where_what_was_calibrated_is_dropped() -> None:
    old = trained(GainFn())
    state = warm_start(old, sources=OTHER_SCALES).state_dict()
    assert (float(state["activation.gain"]), float(state["activation.limit"])) == (0.5, -1.0)


def batches(n_steps: int, *, seed: int) -> list[Tensor]:
    return list(toy_rows(n_steps * 64, seed=seed).split(64))


def fitted(crosscoder: Crosscoder, *, seed: int, n_steps: int = N_STEPS, lr: float = 1e-2) -> list[float]:
    """Train; give the loss of each step."""
    objective = next(
        terms for fn, terms in OBJECTIVES if isinstance(crosscoder.config.activation_fn, type(fn))
    )
    numbers = {"lr": lr, "log_every_steps": 1, "calibration_batches": 8, "warmup_fraction": 0.1}
    history = History()
    trainer = Trainer(crosscoder, objective, config=TrainerConfig.from_dict(numbers), callbacks=[history])
    trainer.fit(batches(n_steps, seed=seed))
    return [row["loss"] for row in history.rows]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@functools.cache
def finished_run(activation_fn: ActivationFn) -> tuple[Crosscoder, list[float]]:
    """A trained crosscoder and the loss of each step; nobody changes it."""
    crosscoder = toy_crosscoder(activation_fn)
    return crosscoder, fitted(crosscoder, seed=1)


@pytest.mark.parametrize("activation_fn", [TopK(k=3), BatchTopK(k=3), JumpReLU()], ids=kind_of)
def test_training_goes_on_where_it_ended(activation_fn: ActivationFn) -> None:
    first, losses = finished_run(activation_fn)
    begin, end = mean(losses[:10]), mean(losses[-10:])
    assert end < 0.5 * begin
    again = fitted(warm_start(first), seed=2)
    assert mean(again[:10]) < end + 0.05 * (begin - end)
    assert max(again) < end + 0.2 * (begin - end)
    assert mean(again[-10:]) < end + 0.02 * (begin - end)


def test_training_goes_on_under_the_scales_of_new_data() -> None:
    first, x = finished_run(BatchTopK(k=3))[0], toy_rows(512, seed=9)
    warm = warm_start(first, sources=rescaled(0.8, 1.25))
    before = float((warm.train().reconstruct(x).detach() - x).square().mean())
    fitted(warm := warm_start(first, sources=rescaled(0.8, 1.25)), seed=2)
    assert float((warm.reconstruct(x).detach() - x).square().mean()) < before


def test_another_k_trains_and_its_threshold_is_calibrated_anew() -> None:
    warm = warm_start(finished_run(BatchTopK(k=3))[0], activation_fn=BatchTopK(k=6))
    fitted(warm, seed=2)
    smallest = []
    for batch in batches(N_STEPS, seed=2)[-8:]:
        scores = (warm.pre_activations(batch) * warm.selection_scale()).detach().flatten()
        smallest.append(float(scores.sort(descending=True).values[6 * 64 - 1]))
    assert float(warm.state_dict()["activation.threshold"]) == pytest.approx(mean(smallest))
    l0 = float((dense(warm.encode(toy_rows(2048, seed=9))) != 0).float().sum(dim=1).mean())
    assert l0 == pytest.approx(6, rel=0.1)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    old = trained(BatchTopK(k=3))
    for wrong in (SOURCES[::-1], SOURCES[:1], (SOURCES[0], Source(name="distilled", d_model=7))):
        with pytest.raises(ValueError, match=r"warm_start: the crosscoder reads the sources \[\('base', 6\)"):
            warm_start(old, sources=wrong)
    with pytest.raises(ValueError, match="only 32"):
        warm_start(old, activation_fn=TopK(k=33))
    with pytest.raises(CheckpointError, match="no such file"):
        warm_start(tmp_path)
