"""Apply the vectordb role alone."""

from gpurack.site import apply

apply("vectordb")
