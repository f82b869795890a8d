"""Apply the anythingllm role alone."""

from gpurack.site import apply

apply("anythingllm")
