"""AnythingLLM as a Compose project on Ollama, with users, workspaces and keys as declared."""
