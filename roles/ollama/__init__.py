"""Ollama as a Compose project, on NVIDIA GPUs or on the CPU."""
