"""Apply the ollama role alone."""

from gpurack.site import apply

apply("ollama")
