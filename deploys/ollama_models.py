"""Apply the ollama_models role alone."""

from gpurack.site import apply

apply("ollama_models")
