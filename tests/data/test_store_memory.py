"""A store larger than the memory that a process may have trains a crosscoder, and memory stays as it is."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

LIMIT = 1_500_000_000  # bytes of RLIMIT_DATA
_TRAINING = """
import resource, sys
LIMIT = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
import torch
from crosscoders.activation_fns import TopK
from crosscoders.buffer import ActivationBuffer
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.losses import Reconstruction
from crosscoders.sources import Source
from crosscoders.store import ActivationStore
from crosscoders.training import Callback, Trainer, TrainerConfig

# 8 MB a batch in float32: malloc keeps what is freed of that size, and asks anew for each tensor of 32 MB.
WIDTH, LENGTH, N_BATCHES, EPOCHS = 4096, 512, 360, 5


class Wide:
    sources = (Source(name="a", d_model=WIDTH // 2), Source(name="b", d_model=WIDTH // 2))
    values = torch.randn(LENGTH + N_BATCHES, WIDTH, generator=torch.Generator().manual_seed(0))

    def harvest(self, tokens):
        first = int(tokens[0, 0])
        return self.values[first : first + LENGTH][None]


def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


class AfterEachEpoch(Callback):
    def on_step_end(self, trainer, report):
        if report.step % N_BATCHES == 0:
            print(resident(), report.tokens_seen)


tokens = [torch.arange(i, i + LENGTH)[None] for i in range(N_BATCHES)]
store = ActivationStore.create(sys.argv[1], Wide(), tokens, dtype=torch.float32)
store.fill(Wide(), tokens)
print(store.n_bytes)
generator = torch.Generator().manual_seed(0)
buffer = ActivationBuffer.from_store(
    store, max_bytes=200_000_000, generator=generator, batch_tokens=LENGTH, epochs=EPOCHS
)
config = CrosscoderConfig(sources=buffer.sources, n_latents=8, activation_fn=TopK(k=1))
crosscoder = Crosscoder(config, generator=generator)
settings = TrainerConfig(log_every_steps=0)
Trainer(crosscoder, [Reconstruction()], config=settings, callbacks=[AfterEachEpoch()]).fit(buffer)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_a_store_of_3_gb_trains_within_half_of_it_and_memory_stays(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _TRAINING, str(tmp_path / "rows"), str(LIMIT)]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    finally:
        shutil.rmtree(tmp_path / "rows", ignore_errors=True)
    assert done.returncode == 0, done.stderr
    size, *epochs = (line.split() for line in done.stdout.splitlines())
    assert int(size[0]) >= max(3_000_000_000, 2 * LIMIT)
    assert [int(rows) for _, rows in epochs] == [epoch * 360 * 512 for epoch in range(1, 6)]
    resident = [int(n_bytes) for n_bytes, _ in epochs]
    assert resident[-1] < 1.05 * resident[0]
