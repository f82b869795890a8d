"""AnythingLLM on a host: what must hold before it is started, and how a release takes the place of another."""
