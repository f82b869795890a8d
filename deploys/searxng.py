"""Apply the searxng role alone."""

from gpurack.site import apply

apply("searxng")
