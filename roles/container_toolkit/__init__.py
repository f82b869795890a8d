"""NVIDIA's container toolkit: containers see the GPUs, and go on seeing them."""
