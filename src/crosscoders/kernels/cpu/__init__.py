"""CPU kernels on library primitives: NumPy's vectorized partition and sort, `embedding_bag`, fused Adam."""
