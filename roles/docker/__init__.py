"""Docker engine and Compose v2, with bounded logs and containers that outlive a restart of the daemon."""
