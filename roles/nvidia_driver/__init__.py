"""NVIDIA's driver: the right branch and kernel module for the cards, kept over kernel updates."""
