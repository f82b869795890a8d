"""Apply the mig role alone."""

from gpurack.site import apply

apply("mig")
