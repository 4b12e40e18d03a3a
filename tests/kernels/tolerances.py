"""How far a kernel may be from its definition: one table, by the type of what it returns.

The measure is `|got - expected| / |expected|` over all numbers of a result, with `expected` in float64 from
the same rounded inputs. Kernels add in float32, up to 10,240 terms. Selections are not here: they are exact.
"""

import torch

RELATIVE_ERROR = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    # The hardware rounds, by half a unit in the last place at most; the interpreter cuts off, by a whole one.
    torch.bfloat16: 5e-3,
}
