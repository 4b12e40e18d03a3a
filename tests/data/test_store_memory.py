"""A store larger than the memory that a process may have trains a crosscoder, and memory stays as it is."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Reads every batch and trains on every twentieth, so that the time goes into the store.
_TRAINING = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (1_500_000_000, 1_500_000_000))
import torch
from crosscoders.activation_fns import TopK
from crosscoders.buffer import ActivationBuffer
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.losses import Reconstruction
from crosscoders.sources import Source
from crosscoders.store import ActivationStore
from crosscoders.training import Trainer, TrainerConfig

WIDTH, LENGTH, N_BATCHES, EPOCHS = 4096, 2048, 180, 5


class Wide:
    sources = (Source(name="a", d_model=WIDTH // 2), Source(name="b", d_model=WIDTH // 2))
    values = torch.randn(LENGTH + N_BATCHES, WIDTH, generator=torch.Generator().manual_seed(0))

    def harvest(self, tokens):
        first = int(tokens[0, 0])
        return self.values[first : first + LENGTH][None]


def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


def every_twentieth(buffer):
    for n_read, batch in enumerate(buffer, start=1):
        if n_read % N_BATCHES == 0:
            print(resident())
        if n_read % 20 == 0:
            yield batch


tokens = [torch.arange(i, i + LENGTH)[None] for i in range(N_BATCHES)]
store = ActivationStore.create(sys.argv[1], Wide(), tokens)
store.fill(Wide(), tokens)
print(store.n_bytes)
generator = torch.Generator().manual_seed(0)
buffer = ActivationBuffer.from_store(
    store, max_bytes=200_000_000, generator=generator, batch_tokens=LENGTH, epochs=EPOCHS
)
config = CrosscoderConfig(sources=buffer.sources, n_latents=16, activation_fn=TopK(k=4))
crosscoder = Crosscoder(config, generator=generator)
settings = TrainerConfig(total_tokens=EPOCHS * N_BATCHES // 20 * LENGTH)
Trainer(crosscoder, [Reconstruction()], config=settings).fit(every_twentieth(buffer))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_a_store_of_3_gb_trains_within_half_of_it_and_memory_stays(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _TRAINING, str(tmp_path / "rows")]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    finally:
        shutil.rmtree(tmp_path / "rows", ignore_errors=True)
    assert done.returncode == 0, done.stderr
    n_bytes, *resident = (int(line) for line in done.stdout.split())
    assert n_bytes >= 3_000_000_000
    assert len(resident) == 5
    assert resident[-1] < 1.05 * resident[0]
