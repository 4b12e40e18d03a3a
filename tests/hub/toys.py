"""Small artifacts for the tests of the Hub, as files in memory or on disk."""

import json
from pathlib import Path
from typing import Any

import torch

from crosscoders._io import write_manifest
from crosscoders.activation_fns import ActivationFn, BatchTopK
from crosscoders.artifact import read_header
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.sources import Source

SOURCES = (
    Source(
        name="base",
        d_model=6,
        hook_name="blocks.1.hook_resid_pre",
        model_id="owner/base-model",
        revision="f" * 40,
        scale=0.2,
        tokenizer_fingerprint="ab" * 32,
    ),
    Source(name="distilled", d_model=4, model_id="/srv/someone/distilled", scale=0.8),
)


def toy(*, n_latents: int = 32, seed: int = 0, activation_fn: ActivationFn | None = None) -> Crosscoder:
    """A crosscoder over two sources of unequal width, with a threshold."""
    config = CrosscoderConfig(
        sources=SOURCES, n_latents=n_latents, activation_fn=activation_fn or BatchTopK(k=3)
    )
    crosscoder = Crosscoder(config, generator=torch.Generator().manual_seed(seed))
    if isinstance(config.activation_fn, BatchTopK):
        crosscoder.activation.calibrate(torch.tensor([0.01, 0.02]))
    return crosscoder.eval()


def saved(folder: Path, **options: Any) -> Crosscoder:
    """A toy crosscoder that was written to a folder."""
    crosscoder = toy(**options)
    crosscoder.save_pretrained(folder, training_summary={"steps": 3})
    return crosscoder


def files_of(folder: Path, *, subfolder: str = "") -> dict[str, bytes]:
    """The files of a folder by name in a repository."""
    prefix = f"{subfolder}/" if subfolder else ""
    return {f"{prefix}{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}


def rewrite(folder: Path, **changes: object) -> None:
    """Change entries of config.json and make its own digest right again; None removes nothing."""
    content = json.loads((folder / "config.json").read_text(encoding="ascii"))
    del content["config_sha256"]
    write_manifest(folder / "config.json", {**content, **changes})


def rows(n_rows: int = 20) -> torch.Tensor:
    """Raw activations of both sources."""
    return torch.randn(n_rows, 10, generator=torch.Generator().manual_seed(1))


def header_of(folder: Path) -> dict[str, Any]:
    """Content of config.json."""
    return read_header(folder)
