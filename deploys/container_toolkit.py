"""Apply the container_toolkit role alone."""

from gpurack.site import apply

apply("container_toolkit")
