"""One part of a benchmark: data, gate, then blocks of steps in turn."""

import contextlib
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.kernels.data import write_data
from benchmarks.kernels.problem import Problem, Variant
from benchmarks.kernels.process import WorkerError, WorkerProcess
from benchmarks.kernels.reference import Trajectory, judge, relative_error
from benchmarks.kernels.registry import MACHINE, Entry
from benchmarks.kernels.results import Place, Row, make_row

MEMORY_STEPS = 3
_MIN_BLOCKS = 4  # of the slowest


@dataclass(frozen=True, kw_only=True)
class Part:
    """A table in the making.

    Args:
        name: What `--only` calls it.
        problem: Shape, case and device; each entry brings its precisions.
        entries: Who takes part.
        precisions: Which of the entries' precisions.
        has_memory: Whether peak memory is measured, in processes that did nothing before.
        ungated: Who is measured in the same rounds without being a whole step: the machine, single ops.
        rounds: Blocks per implementation.
        block_s: Seconds that a block should take.
        budget_s: Seconds after which a slow implementation sits out the later rounds.
    """

    name: str
    problem: Problem
    entries: tuple[Entry, ...]
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    has_memory: bool = False
    ungated: tuple[Entry, ...] = (MACHINE,)
    rounds: int = 10
    block_s: float = 0.6
    budget_s: float = 12.0


@dataclass
class Runner:
    """Processes that live through several parts: one per implementation and precision."""

    place: Place
    n_threads: int
    stack: ExitStack
    workers: dict[tuple[Entry, str], WorkerProcess] = field(default_factory=dict)

    def worker(self, entry: Entry, precision: str) -> WorkerProcess:
        """The process of an implementation; a new one starts importing and is not waited for.

        Raises:
            WorkerError: Its environment is not installed.
        """
        if (entry, precision) not in self.workers:
            process = self.stack.enter_context(WorkerProcess(entry, n_threads=self.n_threads))
            self.workers[entry, precision] = process
        return self.workers[entry, precision]


@dataclass(frozen=True)
class Contender:
    """Something to be timed, with what its rows say of it."""

    worker: WorkerProcess
    fields: dict[str, str]
    block_steps: int
    n_blocks: int
    samples: dict[str, list[float]] = field(default_factory=dict)


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def run_parts(parts: Sequence[Part], *, place: Place, n_threads: int) -> Iterator[list[Row]]:
    """The rows of each part as soon as it is done."""
    with ExitStack() as stack:
        runner = Runner(place=place, n_threads=n_threads, stack=stack)
        for part in parts:
            yield run_part(runner, part)


def run_part(runner: Runner, part: Part) -> list[Row]:
    """Make the data, gate and time everyone, and give back the rows."""
    say(f"== {part.name}: {part.problem.shape.label}, {part.problem.case.label}")
    with tempfile.TemporaryDirectory() as folder:
        skew = write_data(Path(folder), part.problem.shape)
        trial = Trial(runner, part, folder=folder)
        for metric, value in asdict(skew).items():
            trial.record({"level": "data", "op": "", "metric": metric, "unit": "1"}, samples=[value])
        with WorkerProcess(MACHINE, n_threads=runner.n_threads) as judge_process:
            trial.admit_all(judge_process)
        trial.race()
        trial.finish()
    return trial.rows


class Trial:
    """Who takes part in one part of the benchmark, and what was measured."""

    def __init__(self, runner: Runner, part: Part, *, folder: str) -> None:
        self.runner, self.part, self.folder = runner, part, folder
        self.rows: list[Row] = []
        self.contenders: list[Contender] = []
        self.references: dict[Variant, Trajectory] = {}

    def record(self, fields: dict[str, str], *, samples: Sequence[float] = ()) -> None:
        """Add a row."""
        problem = self.part.problem
        base = {"level": "step", "op": problem.case.label, "shape": problem.shape.label}
        self.rows.append(make_row(self.runner.place, {**base, **fields}, samples=samples))

    def admit_all(self, judge_process: WorkerProcess) -> None:
        """Gate everyone; who fails, cannot be built or is not installed is recorded as n/a."""
        self._load(judge_process, "float64")
        self._start_all()
        for entry, precision in self._pairs():
            fields = {"implementation": entry.name, "precision": precision, "level": entry.level}
            try:
                self._admit(entry, precision, fields, judge_process=judge_process)
            except WorkerError as reason:
                self._exclude(fields, str(reason))
                with contextlib.suppress(WorkerError):  # not installed, or dead
                    self.runner.worker(entry, precision).ask("release")

    def race(self) -> None:
        """Blocks in turn, so that whatever slows the machine slows everyone; one works at a time."""
        for i in range(self.part.rounds):
            turn = i % max(1, len(self.contenders))
            for contender in self.contenders[turn:] + self.contenders[:turn]:
                if i < contender.n_blocks:
                    self._time_block(contender)

    def finish(self) -> None:
        """Record the times, on a GPU also our kernels within the step, and let everyone free its memory."""
        for contender in self.contenders:
            for name, samples in contender.samples.items():
                op = {} if name == "step" else {"op": name, "note": self.part.problem.case.label}
                self.record({**contender.fields, **op, "metric": "time", "unit": "ms"}, samples=samples)
            if self.part.problem.device == "cuda" and contender.worker.entry.module == "peers.ours":
                self._record_kernels(contender)
            contender.worker.ask("release")

    def _record_kernels(self, contender: Contender) -> None:
        fields = {**contender.fields, "level": "kernel", "metric": "time", "unit": "ms"}
        try:
            kernels = contender.worker.ask("profile", n_steps=10)["kernels"]
        except WorkerError as reason:
            say(f"   the profiler gave nothing: {reason}")
            return
        for name, milliseconds in kernels.items():
            note = self.part.problem.case.label
            self.record({**fields, "op": name, "note": note}, samples=[milliseconds])

    def _start_all(self) -> None:
        """Let all import at the same time; who cannot start says so when it is asked."""
        for entry, precision in self._pairs():
            with contextlib.suppress(WorkerError):
                self.runner.worker(entry, precision)
        for worker in self.runner.workers.values():
            worker.wait_until_ready()

    def _pairs(self) -> Iterator[tuple[Entry, str]]:
        for entry in (*self.part.entries, *self.part.ungated):
            if not entry.precisions:
                yield entry, ""
            for precision in self.part.precisions:
                if precision in entry.precisions:
                    yield entry, precision

    def _admit(
        self, entry: Entry, precision: str, fields: dict[str, str], *, judge_process: WorkerProcess
    ) -> None:
        """Memory if the process is fresh, then the gate; raises WorkerError if it does not pass."""
        worker = self.runner.worker(entry, precision)
        is_fresh = worker.n_asked == 0
        load = self._load(worker, precision)
        fields |= {"version": load["version"], "torch_version": load["torch"]}
        if self.part.has_memory and entry.has_memory_row and is_fresh:
            used = worker.ask("memory", option=entry.option, n_steps=MEMORY_STEPS)["bytes"]
            memory = {**fields, "level": "memory", "metric": "peak", "unit": "MB"}
            self.record(memory, samples=[used / 1e6])
            self._load(worker, precision)
        built = worker.ask("build", option=entry.option)
        if entry in self.part.entries:
            variant = Variant(**built["variant"])
            for wanted in (variant, Variant()):
                self._compute(wanted, judge_process)
            self._pass_gate(worker, fields, variant=variant)
        self._enter(worker, fields)

    def _pass_gate(self, worker: WorkerProcess, fields: dict[str, str], *, variant: Variant) -> None:
        """Record the errors; raises WorkerError if the implementation computes something else."""
        got = Trajectory(**worker.ask("gate"))
        verdict = judge(got, self.references[variant], precision=fields["precision"])
        deviation = relative_error(got.losses[-1], self.references[Variant()].losses[-1])
        gate = {**fields, "level": "gate", "unit": "1", "note": variant.differs_in(self.part.problem.case)}
        self.record({**gate, "metric": "loss error"}, samples=[verdict.loss_error])
        self.record({**gate, "metric": "L0 error"}, samples=[verdict.l0_error])
        self.record({**gate, "metric": "loss after 3 steps, relative to ours"}, samples=[deviation])
        if verdict.reason:
            raise WorkerError(verdict.reason)

    def _compute(self, variant: Variant, judge_process: WorkerProcess) -> None:
        if variant not in self.references:
            reply = judge_process.ask("reference", variant=asdict(variant))
            self.references[variant] = Trajectory(**reply)

    def _enter(self, worker: WorkerProcess, fields: dict[str, str]) -> None:
        """Warm up, and choose how many steps a block has and how many blocks fit into the budget."""
        part, is_cuda = self.part, self.part.problem.device == "cuda"
        first = worker.ask("samples", n=3 if is_cuda else 1)["samples"]
        sample_s = sum(values[-1] for values in first.values()) / 1e3
        block_steps = 1 if is_cuda else _clamp(part.block_s / sample_s, 1, 20)
        n_blocks = _clamp(
            part.budget_s / (block_steps * sample_s), min(_MIN_BLOCKS, part.rounds), part.rounds
        )
        say(f"   {fields['implementation']} {fields['precision']}: {sample_s * 1e3:.2f} ms")
        self.contenders.append(Contender(worker, fields, block_steps, n_blocks))

    def _time_block(self, contender: Contender) -> None:
        try:
            reply = contender.worker.ask("samples", n=contender.block_steps)
        except WorkerError as reason:
            self.contenders.remove(contender)
            self._exclude(contender.fields, str(reason))
            return
        for name, values in reply["samples"].items():
            contender.samples.setdefault(name, []).extend(values)

    def _exclude(self, fields: dict[str, str], reason: str) -> None:
        say(f"   {fields['implementation']} {fields['precision']}: n/a ({reason})")
        self.record({**fields, "metric": "status", "unit": "n/a", "note": reason})

    def _load(self, worker: WorkerProcess, precision: str) -> dict[str, Any]:
        problem = replace(self.part.problem, precision=precision or "float32")
        return worker.ask(
            "load", problem=problem.to_dict(), folder=self.folder, n_threads=self.runner.n_threads
        )


def _clamp(value: float, low: int, high: int) -> int:
    return max(low, min(high, math.floor(value)))
