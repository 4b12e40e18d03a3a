"""How the Triton kernels run in these tests: natively where there is a GPU, else interpreted.

`tests/conftest.py` sets `TRITON_INTERPRET`, before any test module is imported; here it is checked.
"""

import pytest
import torch
import triton
import triton.language as tl

INTERPRETED = not torch.cuda.is_available()

if INTERPRETED and isinstance(tl.sum, triton.JITFunction):
    raise pytest.UsageError(
        "tests/kernels: there is no CUDA device, and triton was imported before TRITON_INTERPRET=1 was set, "
        "so its kernels cannot be interpreted; import it after tests/conftest.py, or set the variable."
    )
