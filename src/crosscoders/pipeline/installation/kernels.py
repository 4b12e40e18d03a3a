"""Doctor: a few training steps on every kernel that can run here, beside the library's reference."""

import importlib.util

import torch
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.activation_fns import BatchTopK
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.losses import AuxK, Reconstruction
from crosscoders.pipeline.installation.checks import Check
from crosscoders.sources import Source
from crosscoders.training import Trainer, TrainerConfig

_N_STEPS, _BATCH, _WIDTH, _N_LATENTS = 4, 96, 24, 160
# Four steps of Adam at 1e-3 move a weight by about 4e-3; sums in another order move it by about 1e-6.
_TOLERANCE = 1e-4


@typed
def check_kernels() -> list[Check]:
    """Train a small crosscoder on each kernel of each device; compare its weights with the reference's."""
    checks = []
    for device in ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]:
        expected = trained_weights("reference", device)
        checks += [_check_backend(backend, device, expected) for backend in _backends(device)]
    return checks


def _backends(device: str) -> list[str]:
    if device == "cpu":
        return ["dense", "cpu"]
    has_triton = importlib.util.find_spec("triton") is not None
    return ["dense", "triton"] if has_triton else ["dense"]


def _check_backend(backend: str, device: str, expected: dict[str, Tensor]) -> Check:
    name = f"kernels {backend!r} on {device}"
    advice = f'leave them out with training.backend = "{"reference" if backend == "dense" else "dense"}"'
    try:
        got = trained_weights(backend, device)
    except Exception as err:  # a compiler, a driver or a kernel may raise anything
        return Check(name=name, level="fault", found=f"{type(err).__name__}: {err}", advice=advice)
    differences = [(got[key] - expected[key]).abs().max() for key in expected]
    error = float(torch.stack(differences).max())
    found = f"weights after {_N_STEPS} steps differ from the reference by at most {error:.1e}"
    if not error <= _TOLERANCE:  # NaN is no agreement
        return Check(name=name, level="fault", found=f"{found}, more than {_TOLERANCE:.0e}", advice=advice)
    return Check(name=name, level="ok", found=found)


def trained_weights(backend: str, device: str) -> dict[str, Tensor]:
    """Weights of a small crosscoder after a few steps on these kernels; the same data and start each time."""
    generator = torch.Generator().manual_seed(0)
    sources = (Source(name="base", d_model=_WIDTH), Source(name="distilled", d_model=_WIDTH))
    config = CrosscoderConfig(sources=sources, n_latents=_N_LATENTS, activation_fn=BatchTopK(k=8))
    crosscoder = Crosscoder(config, generator=generator).to(device)
    rows = torch.randn(_N_STEPS * _BATCH, 2 * _WIDTH, generator=generator)
    numbers = TrainerConfig(
        lr=1e-3, warmup_fraction=0.0, backend=backend, dead_after_tokens=_BATCH, log_every_steps=0
    )
    trainer = Trainer(crosscoder, (Reconstruction(), AuxK()), config=numbers)
    trainer.fit(list(rows.split(_BATCH)))
    return {name: value.detach().cpu().float() for name, value in crosscoder.named_parameters()}
