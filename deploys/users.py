"""Apply the users role alone."""

from gpurack.site import apply

apply("users")
