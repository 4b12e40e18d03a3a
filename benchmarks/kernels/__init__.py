"""How fast and how large a training step is, beside its roofline, plain PyTorch and other libraries.

    python -m benchmarks.kernels                  # the CPU set; appends to benchmarks/results/cpu.csv
    python -m benchmarks.kernels --device cuda    # tests, sanitizer and measurements on a GPU; cuda.csv
    python -m benchmarks.kernels tables           # writes the generated part of docs/performance.md

Every implementation is a process of its own with its own environment's Python; a coordinator lets one of them
work at a time, in turn. Nothing is timed before its losses agree with a float64 computation.
"""
