"""Compile the selection kernels for Hopper without a GPU, at real shapes, and print what each one takes.

Run without TRITON_INTERPRET, as `compile_sm90` says.
"""

import json
import sys

import torch
import triton
from triton.runtime.jit import JITFunction

from crosscoders.kernels.triton.launch import threshold_sizes
from crosscoders.kernels.triton.selection import batch_topk, row_topk
from crosscoders.kernels.triton.selection_threshold import mark, unpack
from tests.kernels.compile_sm90 import N_TOKENS, Compiled, Hopper, K, empty


def run_all(n_latents: int, dtype: torch.dtype, *, is_scaled: bool) -> None:
    """Call every selection once; the one that waits for the host in its two parts."""
    pre, scale = empty(N_TOKENS, n_latents, dtype=dtype), empty(n_latents) if is_scaled else None
    row_topk(pre, K, scale=scale)
    batch_topk(pre, K, scale=scale, floor=empty())
    sizes = threshold_sizes(n_latents // 32)
    marks, _ = mark(pre, empty(n_latents), scale=scale, sizes=sizes)
    unpack(pre, marks, row_ptr=empty(N_TOKENS + 1, dtype=torch.int64), nnz=N_TOKENS * K, sizes=sizes)


def main() -> None:
    """Print one JSON object."""
    triton.runtime.driver.set_active(Hopper())
    compiled = Compiled()
    JITFunction.run = lambda kernel, *args, **kwargs: compiled.run(kernel, *args, **kwargs)
    for n_latents in (32768, 131072):
        for dtype, is_scaled in ((torch.bfloat16, False), (torch.bfloat16, True), (torch.float32, True)):
            compiled.label = (
                f"{n_latents} {str(dtype).removeprefix('torch.')} {'scaled' * is_scaled or 'plain'}"
            )
            run_all(n_latents, dtype, is_scaled=is_scaled)
    json.dump({"triton": triton.__version__, "kernels": compiled.found}, sys.stdout)


if __name__ == "__main__":
    main()
