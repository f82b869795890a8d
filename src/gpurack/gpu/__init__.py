"""NVIDIA GPUs: which cards a host has, what its driver says of them, and which driver they need."""
