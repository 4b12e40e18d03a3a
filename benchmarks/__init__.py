"""Benchmarks: programs that print or record measurements; none is part of the library."""
