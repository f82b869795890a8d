"""Apply the cuda role alone."""

from gpurack.site import apply

apply("cuda")
