"""Apply the docker role alone."""

from gpurack.site import apply

apply("docker")
