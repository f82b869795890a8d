"""Which models Ollama has on a host, with their parameters."""
