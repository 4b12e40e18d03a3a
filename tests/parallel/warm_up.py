"""Imported once, before the workers of the pool are forked: what a first run builds, they then all have."""

import torch

torch.set_num_threads(1)

from tests.parallel.spread_runs import CASES, toy_run  # noqa: E402 - threads are counted at the first use

for _case in CASES:
    toy_run(case=_case, shape=None, n_steps=2)
