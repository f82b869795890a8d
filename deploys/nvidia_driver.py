"""Apply the nvidia_driver role alone."""

from gpurack.site import apply

apply("nvidia_driver")
