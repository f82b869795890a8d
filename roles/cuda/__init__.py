"""CUDA toolkit on the host, for those who compile there; containers carry their own."""
