"""A small but real run to report on: the bundled pair, little text, a short verification."""

import random
from pathlib import Path

from crosscoders.activation_fns import BatchTopK
from crosscoders.diffing.planted.spike_in import SpikeIn
from crosscoders.pipeline.config import DataConfig, RunConfig
from crosscoders.pipeline.run import run
from crosscoders.pipeline.verify import VerifyOptions, verify
from crosscoders.training import TrainerConfig
from crosscoders.zoo import model_path
from crosscoders.zoo.parser import to_text
from crosscoders.zoo.traces import write_trace


def small_run(folder: Path) -> Path:
    """The folder of a finished and verified run: 256 latents, 40,000 tokens, one null pair, one planting."""
    rng = random.Random(0)
    traces = [to_text(write_trace(rng).ids).strip() for _ in range(900)]
    (folder / "text.txt").write_text("\n\n".join(traces), encoding="utf-8")
    base, distilled, null = (str(model_path("tiny-reasoner", name)) for name in ("base", "distilled", "null"))
    config = RunConfig(
        base=base,
        distilled=distilled,
        text=str(folder / "text.txt"),
        out=str(folder / "run"),
        n_latents=256,
        hook_name="blocks.5.hook_resid_pre",
        activation_fn=BatchTopK(k=16),
        data=DataConfig(
            sequence_length=128, held_out_tokens=4000, batch_tokens=1024, splice_tokens=500, n_tokens=40_000
        ),
        training=TrainerConfig(lr=3e-3, log_every_steps=5),
    )
    run(config)
    spike_in = SpikeIn(rates=(0.01,), n_per_rate=2)
    options = VerifyOptions(n_seeds=1, n_null_seeds=1, self_diff=False, causal_tokens=500, spike_in=spike_in)
    verify(config.out, null=null, options=options)
    return folder / "run"
