"""What is known of Ollama on this side: names of models, model files, and the way to its API."""
