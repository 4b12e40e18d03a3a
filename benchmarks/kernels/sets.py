"""The sets: which parts a run on a CPU or a GPU has."""

from dataclasses import replace

from benchmarks.kernels.measure import Part
from benchmarks.kernels.problem import BATCH_TOPK, TOPK, Case, Problem, Shape
from benchmarks.kernels.registry import (
    COMPILED,
    END_TO_END,
    MACHINE,
    OPS,
    OPS_PLAIN,
    OPS_TRITON,
    OURS,
    OURS_DENSE,
    OURS_SPARSE,
    OURS_TRITON,
    PEERS,
    PLAIN,
    Entry,
)

CPU_SHAPE = Shape(d_model=256, n_latents=16384, batch=2048, k=32)
DEMO_SHAPE = Shape(d_model=128, n_latents=1024, batch=2048, k=32)
SWEEP_SHAPE = Shape(d_model=256, n_latents=4096, batch=512, k=16)
SWEEP_K = (16, 64, 128, 256, 512, 1024)
TINY_SHAPE = Shape(d_model=32, n_latents=512, batch=256, k=8)

# Those with BatchTopK and without a pre-bias; and one entry per peer, for the quick table.
_BATCH_PEERS = tuple(peer for peer in PEERS if peer.name in ("sae-lens", "llamascopium"))
_QUICK_PEERS = tuple(peer for peer in PEERS if "," not in peer.name)


def cpu_parts() -> list[Part]:
    """Main shape, BatchTopK + AuxK + clip, demo shape, sweep over k."""
    everyone = (OURS, OURS_DENSE, PLAIN, COMPILED, *PEERS)
    return [
        Part(
            name="main",
            problem=Problem(shape=CPU_SHAPE),
            entries=everyone,
            has_memory=True,
            rounds=8,
            budget_s=6.0,
        ),
        Part(
            name="batch_topk",
            problem=Problem(shape=CPU_SHAPE, case=BATCH_TOPK),
            entries=(OURS, PLAIN, *_BATCH_PEERS),
            rounds=6,
            budget_s=5.0,
        ),
        Part(
            name="demo",
            problem=Problem(shape=DEMO_SHAPE),
            entries=(OURS, OURS_DENSE, PLAIN, *_QUICK_PEERS),
            block_s=0.2,
            budget_s=2.5,
        ),
        *_sweep(),
        Part(
            name="ops",
            problem=Problem(shape=CPU_SHAPE),
            entries=(),
            ungated=(MACHINE, *OPS, OPS_PLAIN),
            rounds=5,
            budget_s=6.0,
        ),
        Part(
            name="end_to_end",
            problem=Problem(shape=DEMO_SHAPE),
            entries=(),
            precisions=("float32",),
            ungated=END_TO_END,
            rounds=2,
            budget_s=1.0,
        ),
    ]


def _sweep() -> list[Part]:
    return [
        Part(
            name="sweep",
            problem=Problem(shape=replace(SWEEP_SHAPE, k=k)),
            entries=(OURS_SPARSE, OURS_DENSE),
            ungated=(),
            rounds=6,
            block_s=0.2,
            budget_s=3.0,
        )
        for k in SWEEP_K
    ]


def tiny_parts() -> list[Part]:
    """The CPU set at sizes that say nothing, to see that everything runs."""
    parts = [part for part in cpu_parts() if part.name != "sweep"]
    return [
        replace(part, problem=replace(part.problem, shape=TINY_SHAPE), rounds=3, block_s=0.01, budget_s=0.1)
        for part in parts
    ]


def cuda_parts() -> list[Part]:
    """The model sizes of the cost model, TopK and BatchTopK, in bfloat16."""
    parts = [_cuda_part("main", d_model=1536, entries=(OURS_TRITON, OURS_DENSE, PLAIN, COMPILED, *PEERS))]
    parts.append(_cuda_part("clip", d_model=1536, case=Case(max_grad_norm=1.0)))
    parts.append(_cuda_part("batch_topk", d_model=1536, case=BATCH_TOPK))
    parts += [_cuda_part(f"d{d_model}", d_model=d_model) for d_model in (3584, 5120)]
    parts.append(_cuda_part("f131072", d_model=1536, n_latents=131072, entries=(OURS_TRITON, OURS_DENSE)))
    return [
        *parts,
        replace(parts[0], name="ops", entries=(), ungated=(MACHINE, OPS_TRITON), has_memory=False),
    ]


def _cuda_part(
    name: str,
    *,
    d_model: int,
    n_latents: int = 32768,
    case: Case = TOPK,
    entries: tuple[Entry, ...] = (OURS_TRITON, OURS_DENSE, PLAIN),
) -> Part:
    shape = Shape(d_model=d_model, n_latents=n_latents, batch=4096, k=100)
    return Part(
        name=name,
        problem=Problem(shape=shape, case=case, device="cuda"),
        entries=entries,
        precisions=("bfloat16",),
        has_memory=name == "main",
        rounds=10,
        budget_s=60.0,
    )
