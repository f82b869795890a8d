"""Apply the base role alone."""

from gpurack.site import apply

apply("base")
