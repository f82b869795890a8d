"""Who administers a host, and who no longer does."""
