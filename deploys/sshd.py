"""Apply the sshd role alone."""

from gpurack.site import apply

apply("sshd")
