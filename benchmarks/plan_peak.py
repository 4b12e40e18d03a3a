"""The plan's peak for a GPU against `torch.cuda.max_memory_allocated` of the same training.

Run on a machine with a GPU: `python benchmarks/plan_peak.py path/to/config.json` (twice that model), or with
two configs for a pair; `--n-latents`, `--preset`, `--rows` and `--length` as in a run. Weights are random;
the models hold what a truncated load holds. It prints planned and measured bytes and their ratio, which
should lie within 10% of 1.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from crosscoders.harvest import ModelSources
from crosscoders.models.base import LanguageModel
from crosscoders.models.model_config import cut_config, read_config
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.corpus import Corpus
from crosscoders.pipeline.fit import fit_crosscoder
from crosscoders.pipeline.planning.plan import plan
from crosscoders.pipeline.run import measure_reconstruction
from crosscoders.pipeline.sizes import shown_bytes

N_STEPS = 12  # enough for the first window and for every kind of tensor that a step makes


def truncated(config: Any, *, name: str, device: str, dtype: torch.dtype) -> LanguageModel:
    """A decoder of half the layers with random weights: a truncated load, but for the final norm."""
    half = int(config.num_hidden_layers) // 2
    with torch.device(device):
        decoder = AutoModel.from_config(cut_config(config, n_layers=half), dtype=dtype)
    return LanguageModel(name=name, hf_model=decoder.eval())


def run_config(paths: list[Path], arguments: argparse.Namespace) -> RunConfig:
    """A short run at half depth in which no latent dies."""
    models = {
        name: {"path": str(path), "dtype": arguments.dtype}
        for name, path in zip(("base", "distilled"), paths, strict=True)
    }
    n_tokens = arguments.rows * arguments.length
    data = {
        "sequence_length": arguments.length,
        "sequences_per_harvest": arguments.rows,
        "splice_tokens": 0,
        "skip_positions": 0,
        "max_norm_multiple": None,
        "buffer_bytes": 1 << 33,
        "n_tokens": max(N_STEPS * 4096, n_tokens),
    }
    return RunConfig.from_dict(
        {
            "preset": arguments.preset, **models, "text": "", "out": "", "n_latents": arguments.n_latents,
            "device": arguments.device, "data": data,
            "training": {
                "checkpoint_every_steps": 0, "calibration_batches": N_STEPS, "dead_after_tokens": 10**9,
            },
        }
    )  # fmt: skip


def train_and_measure(config: RunConfig, configs: dict[str, Any]) -> None:
    """What a run does on the device: harvest, train, calibrate, and measure held-out rows."""
    models = {
        name: truncated(configs[name], name=name, device=config.device, dtype=model.torch_dtype)
        for name, model in config.models().items()
    }
    hooks = {name: f"blocks.{model.n_layers - 1}.hook_resid_post" for name, model in models.items()}
    sources = ModelSources(models, hook_names=hooks, tokenizer=None)
    n_rows = -(-int(config.data.n_tokens or 0) // config.data.sequence_length)
    tokens = torch.randint(
        10, 1000, (n_rows + config.data.sequences_per_harvest, config.data.sequence_length)
    )
    held_out = tokens[n_rows:]
    corpus = Corpus(train=tokens[:n_rows], held_out=held_out, origin=torch.zeros_like(held_out))
    measure_reconstruction(fit_crosscoder(sources, corpus, config), sources, corpus, config)


def main() -> None:
    """Train for a few steps and print planned and measured peak."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("configs", nargs="+", type=Path, help="one config.json or two")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--preset", default="field")
    parser.add_argument("--n-latents", type=int, default=32_768)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    arguments = parser.parse_args()
    paths = (arguments.configs * 2)[:2]
    config = run_config(paths, arguments)
    configs = {name: read_config(path) for name, path in zip(("base", "distilled"), paths, strict=True)}
    found = plan(config, vram_bytes=80 * 10**9, model_configs=configs, dead_fraction=0.0)
    print(found.summary())
    planned = next(p for p in found.placements if p.name == "both truncated").needs[found.device]
    if config.device == "cpu":
        train_and_measure(config, configs)
        print(f"planned {shown_bytes(planned)}; the CPU keeps no count of its peak")
        return
    torch.cuda.reset_peak_memory_stats()
    train_and_measure(config, configs)
    measured = torch.cuda.max_memory_allocated()
    print(f"planned {shown_bytes(planned)}, measured {shown_bytes(measured)}, ratio {planned / measured:.3f}")


if __name__ == "__main__":
    main()
