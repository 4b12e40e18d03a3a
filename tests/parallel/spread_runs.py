"""Toy runs on any mesh, and what the tests compare of them."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing import assert_close

from crosscoders.activation_fns import ActivationFn, ActivationModule, BatchTopK, JumpReLU, ReLU, TopK
from crosscoders.crosscoder import Crosscoder, CrosscoderOutput
from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.losses import (
    AuxK,
    DecoderNormL1,
    DifferenceReconstruction,
    JumpReLUL0,
    LossBreakdown,
    LossContext,
    LossTerm,
    PreActivation,
    Reconstruction,
    SharedDecoderNormL1,
    TanhSparsity,
    WeightedTerm,
)
from crosscoders.structures import SharedLatents, Structure
from crosscoders.training import Callback, StepReport, Trainer, TrainerConfig
from tests.core.toy import toy_crosscoder, toy_rows

BATCH, N_LATENTS = 32, 31
CASES: dict[str, tuple[ActivationFn, list[LossTerm]]] = {
    "relu": (ReLU(), [Reconstruction(), DecoderNormL1(weight=0.1)]),
    "topk": (TopK(k=3, k_initial=9, anneal_fraction=0.5), [Reconstruction(), AuxK()]),
    "batch_topk": (BatchTopK(k=3, k_initial=9, anneal_fraction=0.5), [Reconstruction(), AuxK(k_aux=4)]),
    "jumprelu": (JumpReLU(), [Reconstruction(), JumpReLUL0(weight=0.1)]),
    "jumprelu_tanh": (
        JumpReLU(),
        [Reconstruction(), TanhSparsity(weight=0.1, warmup_fraction=1.0), PreActivation(weight=0.01)],
    ),
    "difference": (
        BatchTopK(k=4),
        [
            Reconstruction(),
            DifferenceReconstruction(weight=0.5),
            SharedDecoderNormL1(weight=0.1, n_shared=13),
        ],
    ),
    "topk_tanh": (TopK(k=4), [Reconstruction(), TanhSparsity(weight=0.1), AuxK(k_aux=30)]),
}
Shape = tuple[int, int] | None


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a rank tells of a run: the whole weights, and of each step what it selected and reported."""

    weights: dict[str, Tensor]
    fired: list[Tensor]
    losses: list[float]
    reports: list[dict[str, float]]
    silence: Tensor
    explanation: str


def toy_run(
    *,
    case: str,
    shape: Shape,
    n_steps: int = 12,
    dtype: torch.dtype = torch.float64,
    short: int = 3,
    scale: float = 1.0,
    watch: bool = True,
    bias: float = 0.0,
    calibrate: bool = True,
    cls: type[Trainer] = Trainer,
    **numbers: Any,
) -> Run:
    """Train one case on a mesh of this shape (data, latents), or alone; the last batch has `short` rows."""
    trainer = toy_trainer(case=case, shape=shape, dtype=dtype, cls=cls, **numbers)
    log, fired = Log(), list[Tensor]()
    trainer.crosscoder.b_enc.data.add_(bias)
    if not calibrate:  # which needs a token that fires
        trainer._ring.capacity = 0
    trainer.callbacks = (log,)
    batches = toy_batches(n_steps, short=short, scale=scale)
    if watch:
        watcher = _watcher(fired, trainer, n_rows=[len(batch) for batch in batches])
        trainer.crosscoder.activation.register_forward_hook(watcher)
    trainer.fit(batches)
    rows = trainer.ranks.latents.part(N_LATENTS)
    silence = torch.zeros(N_LATENTS, dtype=torch.int64)
    silence[rows] = trainer.tokens_since_fired
    return Run(
        weights={name: t.clone() for name, t in trainer.whole_crosscoder().state_dict().items()},
        fired=fired,
        losses=[report["loss"] for report in log.reports],
        reports=log.reports,
        silence=trainer.ranks.latents.sum(silence),
        explanation=trainer.explain(),
    )


def toy_runs(*, cases: list[str], **options: Any) -> list[Run]:
    """Several cases one after the other, which saves starting a world for each."""
    return [toy_run(case=case, **options) for case in cases]


def talks_per_step(*, case: str, shape: tuple[int, int]) -> float:
    """How often a step makes this rank wait for others."""
    n_talks = [0, 0]
    for i, n_steps in enumerate((2, 12)):
        with pytest.MonkeyPatch.context() as patch:
            for name in ("all_reduce", "all_gather", "all_gather_object"):
                patch.setattr(dist, name, _counted(getattr(dist, name), n_talks, i))
            numbers = {"watch": False, "log_every_steps": 0, "dead_after_tokens": 10**6}
            toy_run(case=case, shape=shape, n_steps=n_steps, dtype=torch.float32, **numbers)
    return (n_talks[1] - n_talks[0]) / 10


def _counted(call: Callable[..., object], counts: list[int], at: int) -> Callable[..., object]:
    def counted(*args: Any, **kwargs: Any) -> object:
        counts[at] += 1
        return call(*args, **kwargs)

    return counted


def toy_trainer(
    *,
    case: str,
    shape: Shape,
    dtype: torch.dtype = torch.float64,
    cls: type[Trainer] = Trainer,
    **numbers: Any,
) -> Trainer:
    """A trainer of a case on a mesh of this shape, or alone."""
    activation_fn, objective = CASES[case]
    crosscoder = toy_crosscoder(activation_fn, n_latents=N_LATENTS).to(dtype)
    with torch.no_grad():
        crosscoder.b_enc[::5] -= 3.0  # these hardly ever fire
    return _trainer(crosscoder, objective, mesh=_mesh(shape), cls=cls, **numbers)


def toy_batches(n_steps: int, *, short: int, scale: float = 1.0) -> list[Tensor]:
    """Different rows for each step, the last batch short."""
    return list((toy_rows((n_steps - 1) * BATCH + short, seed=11) * scale).split(BATCH))


class Log(Callback):
    """Keeps the numbers of every step."""

    def __init__(self) -> None:
        self.reports: list[dict[str, float]] = []

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        """Keep them."""
        numbers = report.metrics or report.scalars()
        self.reports.append({**numbers, "tokens": report.tokens_seen, "n": report.n_tokens})


def _watcher(fired: list[Tensor], trainer: Trainer, *, n_rows: list[int]) -> Any:
    def watch(module: nn.Module, args: Any, latents: Tensor | SparseLatents) -> None:
        if not module.training:
            return
        dense = (latents.to_dense() if isinstance(latents, SparseLatents) else latents).detach() != 0
        ranks = trainer.ranks
        row, latent = dense.nonzero().unbind(1)
        row = row + ranks.data.part(n_rows[len(fired)]).start
        fired.append(row * N_LATENTS + latent + ranks.latents.part(N_LATENTS).start)

    return watch


def assert_same_run(alone: Run, ranks: list[Run], *, atol: float, at: str) -> None:
    """The same selections, bit for bit, and the same weights, numbers and silences."""
    for step, expected in enumerate(alone.fired):
        found = torch.cat([run.fired[step] for run in ranks]).unique()
        assert torch.equal(found, expected.sort().values), f"{at}: other latents at step {step}"
    for run in ranks:
        assert "mesh" in run.explanation
        assert torch.equal(run.silence, alone.silence), at
        assert_close(run.weights, alone.weights, rtol=0, atol=atol, msg=lambda told: f"{at}: {told}")
        for ours, theirs in zip(run.reports, alone.reports, strict=True):
            assert ours.keys() == theirs.keys(), at
            for key, value in theirs.items():
                assert abs(ours[key] - value) <= 1e-7 * (1 + abs(value)), f"{at}: {key} {ours[key]} {value}"


class TwoTerms(Trainer):
    """An objective of its own: a mean over the rows it sees, and a square of what the library computes.

    A rank without rows has NaN for the mean, and for its gradient with respect to `b_dec`.
    """

    def compute_losses(self, output: CrosscoderOutput, context: LossContext) -> LossBreakdown:
        """The objective with two more terms."""
        losses = super().compute_losses(output, context)
        error = (output.inputs - output.reconstruction).abs().sum(dim=1).mean()
        square = losses.terms["reconstruction"].value.square()
        error = error * (1 + self.crosscoder.b_dec.square().sum())
        own = {"l1": WeightedTerm(error, 0.3), "square": WeightedTerm(square, 0.01)}
        return LossBreakdown({**losses.terms, **own})


@dataclass(frozen=True, kw_only=True)
class Local(LossTerm):
    """A term that knows nothing of ranks."""

    name: ClassVar[str] = "local"

    def value(self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext) -> Tensor:
        """Mean over the rows it sees."""
        return output.reconstruction.square().sum(dim=1).mean()


@dataclass(frozen=True, kw_only=True)
class Halves(ActivationFn):
    """An activation function that knows nothing of ranks."""

    kind: ClassVar[str] = "halves_of_ranks"

    def build(self, n_latents: int) -> ActivationModule:
        """Make the module."""
        return _Halves()


class _Halves(ActivationModule):
    def forward(self, pre_acts: Tensor, selection_scale: Tensor) -> Tensor:
        return pre_acts.relu() / 2


@dataclass(frozen=True, kw_only=True)
class Kept(Halves):
    """One with statistics."""

    kind: ClassVar[str] = "kept_of_ranks"

    def build(self, n_latents: int) -> ActivationModule:
        """Make the module."""
        module = _Halves()
        module.register_buffer("seen", torch.zeros(()))
        return module


def structured_run(*, structure: Structure, shape: Shape) -> dict[str, Tensor]:
    """Weights of a short run that is held to a structure."""
    whole = toy_crosscoder(CASES["topk"][0], n_latents=N_LATENTS)
    config = dataclasses.replace(whole.config, structure=structure)
    trainer = _trainer(Crosscoder(config).double(), CASES["topk"][1], mesh=_mesh(shape))
    trainer.fit(toy_batches(5, short=9))
    return dict(trainer.whole_crosscoder().state_dict())


def messages() -> dict[str, str]:
    """What is said where something cannot be spread over two ranks."""
    rank = dist.get_rank()
    wide, deep, odd = _mesh((2, 1)), _mesh((1, 2)), init_device_mesh("cpu", (2,), mesh_dim_names=("rows",))
    topk, terms = CASES["topk"]
    held = dataclasses.replace(toy_crosscoder(topk).config, structure=SharedLatents(n_shared=7))
    batches = [toy_rows(8, seed=rank)]
    demanding = {"backend": "triton"}
    return {
        "trainer": _message(lambda: _trainer(toy_crosscoder(topk), terms, mesh=deep, cls=TwoTerms)),
        "term": _message(lambda: _trainer(toy_crosscoder(topk), [Reconstruction(), Local()], mesh=deep)),
        "structure": _message(lambda: _trainer(Crosscoder(held), terms, mesh=deep)),
        "activation": _message(lambda: _trainer(toy_crosscoder(Halves()), terms, mesh=deep)),
        "statistics": _message(lambda: _trainer(toy_crosscoder(Kept()), terms, mesh=wide)),
        "too few": _message(lambda: _trainer(toy_crosscoder(ReLU(), n_latents=1), terms, mesh=deep)),
        "other weights": _message(lambda: _trainer(toy_crosscoder(topk, seed=rank), terms, mesh=wide)),
        "other batches": _message(lambda: _trainer(toy_crosscoder(topk), terms, mesh=wide).fit(batches)),
        "save": _message(lambda: _trainer(toy_crosscoder(topk), terms, mesh=deep).crosscoder.fold()),
        "names": _message(lambda: _trainer(toy_crosscoder(topk), terms, mesh=odd)),
        "kernels": _message(
            lambda: _trainer(toy_crosscoder(topk), terms, mesh=deep, **demanding).fit([toy_rows(8)])
        ),
    }


def observed(*, shape: Shape) -> dict[str, Any]:
    """A run that evaluates every second step and that the last rank ends after the fourth; then one fails."""
    calls: list[int] = []

    def evaluation(crosscoder: Crosscoder) -> dict[str, float]:
        calls.append(len(crosscoder.W_dec))
        error = crosscoder.reconstruct(toy_rows(16, seed=5)) - toy_rows(16, seed=5)
        return {"n_latents": float(calls[-1]), "error": round(float(error.square().mean()), 9)}

    def failing(crosscoder: Crosscoder) -> dict[str, float]:
        raise RuntimeError("failed on purpose")

    crosscoder = toy_crosscoder(CASES["batch_topk"][0], n_latents=N_LATENTS).double()
    trainer = _trainer(crosscoder, CASES["batch_topk"][1], mesh=_mesh(shape), evaluate_every_steps=2)
    trainer.evaluation, trainer.callbacks = evaluation, (StopAtFour(),)
    trainer.fit(toy_batches(9, short=3))
    seen = {"step": trainer.step, "stop_reason": trainer.stop_reason, "n_evaluations": len(calls)}
    trainer.evaluation = failing
    return {**seen, "metrics": trainer.last_evaluation, "failure": _message(trainer._evaluate)}


class StopAtFour(Callback):
    """Asks for an end after the fourth step, on the last rank only."""

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        """Ask."""
        axes = trainer.ranks.data, trainer.ranks.latents
        if report.step == 4 and all(axis.rank == axis.size - 1 for axis in axes):
            trainer.request_stop("the last rank has seen enough")


def _mesh(shape: Shape) -> DeviceMesh | None:
    names = ("data", "latents")
    return None if shape is None else init_device_mesh("cpu", shape, mesh_dim_names=names)


def _trainer(
    crosscoder: Crosscoder,
    objective: list[LossTerm],
    *,
    mesh: DeviceMesh | None,
    cls: type[Trainer] = Trainer,
    **numbers: Any,
) -> Trainer:
    config = {"lr": 1e-2, "log_every_steps": 7, "calibration_batches": 4, "dead_after_tokens": 160, **numbers}
    return cls(crosscoder, objective, config=TrainerConfig(**config), mesh=mesh)


def _message(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return str(error)
    return "nothing was said"
