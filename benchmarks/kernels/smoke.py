"""A few steps of a small problem on a GPU, held against float64: what compute-sanitizer watches."""

import sys
import tempfile
from pathlib import Path

from benchmarks.kernels.data import read_batches, read_weights, write_data
from benchmarks.kernels.peers import ours
from benchmarks.kernels.problem import BATCH_TOPK, TOPK, Problem, Shape, Variant
from benchmarks.kernels.reference import judge, reference_trajectory

SHAPE = Shape(d_model=72, n_latents=1000, batch=256, k=8)


def main(device: str = "cuda", backend: str = "triton") -> None:
    """Both cases in both precisions; ends with an error if a loss is wrong."""
    faults = []
    for case in (TOPK, BATCH_TOPK):
        for precision in ("float32", "bfloat16"):
            problem = Problem(shape=SHAPE, case=case, precision=precision, device=device)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder)
                write_data(path, SHAPE)
                batches, weights = read_batches(path, device=device), read_weights(path, device=device)
                got = ours.build(problem, weights, batches, option=backend).gate()
                wanted = reference_trajectory(problem, path, variant=Variant())
            if reason := judge(got, wanted, precision=precision).reason:
                faults.append(f"{case.label} {precision}: {reason}")
    sys.exit("\n".join(faults) if faults else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
