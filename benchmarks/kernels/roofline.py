"""The floor of a step and of each kernel, from counted bytes and measured bandwidth.

Step: no implementation that updates every weight by Adam can be below

    floor = time of the encode GEMM alone + optimizer bytes / bandwidth.

Counted per parameter in float32: read weight, both moments and the gradient (16 bytes), write weight and
both moments (12 bytes). Selection, decoding, both backward passes, and writing the gradient count as nothing.
"""

from collections.abc import Mapping

from benchmarks.kernels.machine import LOOP_BYTES, N_ELEMENTS, N_RESIDENT, N_RESIDENT_READS
from benchmarks.kernels.problem import Shape

ADAM_BYTES = 28


def gemm_flops(shape: Shape) -> int:
    """Multiplications and additions of the encode product."""
    return 2 * shape.batch * shape.n_latents * shape.width


def optimizer_bytes(shape: Shape) -> int:
    """Bytes that one Adam update must move."""
    return ADAM_BYTES * shape.n_params


def bandwidth(loop_ms: Mapping[str, float]) -> float:
    """Bytes per second of the fastest loop: the strictest floor.

    Args:
        loop_ms: Milliseconds by name of the loop; other names are ignored.
    """
    return max(
        LOOP_BYTES[name] * N_ELEMENTS / (loop_ms[name] * 1e-3) for name in LOOP_BYTES if name in loop_ms
    )


def cache_bandwidth(loop_ms: Mapping[str, float]) -> float:
    """Bytes per second of reads that stay within the second-level cache of a GPU."""
    return 4 * N_RESIDENT * N_RESIDENT_READS / (loop_ms["cached read"] * 1e-3)


def floor_ms(shape: Shape, *, gemm_ms: float, bytes_per_second: float) -> float:
    """Encode GEMM plus optimizer bytes at the measured bandwidth, in milliseconds."""
    return gemm_ms + optimizer_bytes(shape) / bytes_per_second * 1e3


def kernel_bytes(name: str, shape: Shape) -> tuple[int, int] | None:
    """Bytes that a kernel of the bfloat16 step must move: from and to memory, and gathered from the cache.

    Args:
        name: Function in `crosscoders.kernels.triton`.
        shape: Sizes.

    Returns:
        Both counts, or None for what is no kernel of ours.
    """
    matrix, rows = shape.n_latents * shape.width, shape.batch * shape.width
    gathered = 2 * shape.batch * shape.k * shape.width
    scores = 2 * shape.batch * shape.n_latents
    known = {
        "row_topk": (scores, 0),
        "batch_topk": (scores, 0),
        # Decoder rows; inputs and residual in float32.
        "decode_residual": (2 * matrix + 8 * rows, gathered),
        # Decoder rows and residual in bfloat16, gradient in float32.
        "decoder_backward": (6 * matrix + 2 * rows, gathered),
        "encoder_backward": (4 * matrix + 2 * rows, gathered),
        # Weight and moments read and written, bfloat16 copy written; the gradient stays in registers.
        "decoder_backward_adam_": (26 * matrix + 2 * rows, gathered),
        "encoder_backward_adam_": (26 * matrix + 2 * rows, gathered),
        "adam_rows_": (30 * matrix, 0),
    }
    return known.get(name)


def kernel_floor_ms(name: str, shape: Shape, *, loop_ms: Mapping[str, float]) -> float | None:
    """The longer of memory time and cache time; they can overlap."""
    counted = kernel_bytes(name, shape)
    if counted is None or "cached read" not in loop_ms:
        return None
    return max(counted[0] / bandwidth(loop_ms), counted[1] / cache_bandwidth(loop_ms)) * 1e3
