"""Harvest as shipped against a Hugging Face SDPA forward that ends after the same block, and the bridge.

Run: `python benchmarks/harvest.py`, or with `--device cuda --config path/to/config.json` for random weights
of a real config, in bfloat16. Runs of the three alternate in one process, so that a machine that slows down
slows all; medians are reported, and how far apart the activations lie. "hugging face" runs the decoder with
SDPA and ends it with an exception in a hook behind the middle block, as one would without this library.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2Config

from crosscoders.harvest import load_sources
from crosscoders.models import load_model
from crosscoders.models.attention import attention_error
from crosscoders.models.model_config import read_config

N_RUNS = 7
SMALL: dict[str, Any] = {
    "vocab_size": 1000, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 1024,
}  # fmt: skip


class _Stop(Exception):
    """Ends the plain forward."""


def random_model(config: Path | None, *, device: str) -> Any:
    """A model with random weights: of a config file in bfloat16, or the small one in float32."""
    torch.manual_seed(0)
    found = Qwen2Config(**SMALL) if config is None else read_config(config)
    dtype = torch.float32 if config is None else torch.bfloat16
    with torch.device(device):
        return AutoModelForCausalLM.from_config(found, dtype=dtype, attn_implementation="sdpa").eval()


def plain_forward(model: Any, tokens: Tensor, *, n_blocks: int) -> Tensor:
    """Output of block `n_blocks` of a Hugging Face model, nothing behind it computed."""
    seen: list[Tensor] = []

    def stop(module: Any, args: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)
        raise _Stop

    handle = model.model.layers[n_blocks - 1].register_forward_hook(stop)
    try:
        with torch.no_grad():
            model.model(input_ids=tokens, use_cache=False)
    except _Stop:
        return seen[0]
    finally:
        handle.remove()
    raise RuntimeError("the forward never came to the block")


def seconds_of(call: Callable[[], Tensor], *, device: str) -> float:
    """Wall-clock seconds of one call, the device waited for."""
    start = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print one line for each way, then ratios and differences."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--config", type=Path, help="config.json (default: 4 layers, d_model 512)")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = random_model(arguments.config, device=arguments.device)
    n_blocks = model.config.num_hidden_layers // 2
    hook_name = f"blocks.{n_blocks - 1}.hook_resid_post"
    tokens = torch.randint(0, 1000, (arguments.rows, arguments.length))
    there = tokens.to(arguments.device)
    fast = load_model(model, name="fast")
    sources = load_sources({"fast": fast}, hook_name=hook_name)
    bridge = load_model(fast.bridge, name="bridge")
    ways: dict[str, Callable[[], Tensor]] = {
        "hugging face, SDPA": lambda: plain_forward(model, there, n_blocks=n_blocks),
        "harvest as shipped": lambda: sources.harvest(tokens),
        "TransformerBridge": lambda: bridge.capture(tokens, [hook_name])[hook_name],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(N_RUNS + 1):
        for name, call in ways.items():
            measured = seconds_of(call, device=arguments.device)
            if i > 0:  # the first of each warms up
                seconds[name].append(measured)
    expected = ways["hugging face, SDPA"]().float()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        got = ways[name]().float()
        apart = float((got - expected).norm() / expected.norm())
        speed = medians["hugging face, SDPA"] / median
        low, high = min(seconds[name]), max(seconds[name])
        print(f"{name:20s} {median:.4f} s ({low:.4f}-{high:.4f})  {speed:.2f}x  {apart:.1e} apart")
    print(f"fast beside eager attention: {attention_error(fast, tokens[:2], hook_name=hook_name):.1e}")


if __name__ == "__main__":
    main()
