"""The GPU chain alone, from the driver to containers that can use the cards."""

from gpurack.site import apply

apply(
    "nvidia_driver",
    "cuda",
    "mig",
    "container_toolkit",
    "docker",
)
