"""Everything, in order: what ``pyinfra inventories/prod deploys/`` runs."""

from gpurack.site import apply

apply(
    "base",
    "users",
    "sshd",
    "nvidia_driver",
    "cuda",
    "mig",
    "container_toolkit",
    "docker",
    "ollama",
    "ollama_models",
    "vectordb",
    "searxng",
    "anythingllm",
)
