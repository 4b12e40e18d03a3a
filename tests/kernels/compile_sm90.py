"""Compile every sparse kernel for Hopper without a GPU, at real shapes, and print what each one takes.

Run without TRITON_INTERPRET. The operations themselves run, on tensors without data, with the launch replaced
by compilation; so what is compiled is what would be launched, and an operation that looked at a number on the
host would fail.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from crosscoders.kernels.adam import AdamMatrix, AdamStep
from crosscoders.kernels.sparse_latents import LatentMajor, SparseLatents
from crosscoders.kernels.triton.adam import adam_rows_
from crosscoders.kernels.triton.backward import (
    decoder_backward,
    decoder_backward_adam_,
    encoder_backward,
    encoder_backward_adam_,
)
from crosscoders.kernels.triton.decode import decode, decode_residual

N_TOKENS, K = 4096, 100


class Hopper:
    """What Triton asks of a driver before it compiles."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class Compiled:
    """Stands in for launching: compiles, and notes under the current label what was compiled."""

    def __init__(self) -> None:
        self.label = ""
        self.found: dict[str, dict[str, Any]] = {}
        self._run = JITFunction.run

    def run(self, kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        """Compile one launch."""
        compiled = self._run(kernel, *args, grid=grid, warmup=True, **kwargs)
        name = f"{self.label} {kernel.__name__} {compiled.hash[:8]}"
        if name not in self.found:
            self.found[name] = resources(compiled)
        return compiled


def resources(compiled: Any) -> dict[str, Any]:
    """Registers, stack and local memory of a thread, and accesses to it in the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (cuobjdump(f"--dump-{what}", file.name) for what in ("resource-usage", "sass"))
    registers, stack, shared, local = map(int, re.findall(r"(?:REG|STACK|SHARED|LOCAL):(\d+)", usage)[-4:])
    spills = len(re.findall(r"\b(?:LDL|STL)\b", code))
    return {"registers": registers, "stack": stack + local, "spills": spills, "shared": shared}


def cuobjdump(*arguments: str) -> str:
    return subprocess.run(
        [triton.knobs.nvidia.cuobjdump.path, *arguments], check=True, capture_output=True, text=True
    ).stdout


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def run_all(d_model: int, n_latents: int, dtype: torch.dtype) -> None:
    """Call every operation once on a crosscoder of two sources."""
    width, n_entries = 2 * d_model, N_TOKENS * K
    counts = [empty(n, dtype=torch.int64) for n in (n_entries, n_entries, N_TOKENS + 1, n_latents + 1)]
    latents = SparseLatents(empty(n_entries), counts[0], counts[2], n_latents)
    by_latent = LatentMajor(counts[0], counts[1], counts[3])
    x, weight = empty(N_TOKENS, width, dtype=dtype), empty(n_latents, width, dtype=dtype)
    step = AdamStep(
        lr=1e-4, beta1=0.9, beta2=0.999, eps=1e-8, n=2, grad_scale=empty(), skip=empty(dtype=torch.bool)
    )
    full = [empty(n_latents, width) for _ in range(4)]
    encoder = AdamMatrix(
        weight=full[0],
        exp_avg=full[1],
        exp_avg_sq=full[2],
        shadow=empty(n_latents, width, dtype=torch.bfloat16),
    )
    decoder = replace(encoder, norms=empty(n_latents, 2), boundaries=(0, d_model, width))
    decode(latents, weight, out_dtype=dtype)
    decode_residual(latents, weight, b_dec=empty(width), x=x, out_dtype=dtype)
    decoder_backward(x, latents, by_latent, W_dec=weight)
    encoder_backward(empty(n_entries), x, by_latent)
    decoder_backward_adam_(x, latents, by_latent, matrix=decoder, step=step)
    encoder_backward_adam_(empty(n_entries), x, by_latent, matrix=encoder, step=step)
    adam_rows_(decoder, full[3], step=step)


def main() -> None:
    """Print one JSON object."""
    triton.runtime.driver.set_active(Hopper())
    compiled = Compiled()
    JITFunction.run = lambda kernel, *args, **kwargs: compiled.run(kernel, *args, **kwargs)
    shapes = itertools.product((1536, 5120), (32768, 131072), (torch.bfloat16, torch.float32))
    for d_model, n_latents, dtype in shapes:
        compiled.label = f"{d_model} {n_latents} {str(dtype).removeprefix('torch.')}"
        run_all(d_model, n_latents, dtype)
    json.dump({"triton": triton.__version__, "kernels": compiled.found}, sys.stdout)


if __name__ == "__main__":
    main()
