"""MIG: GPUs divided into devices of their own, as declared, and again after every boot."""
