"""pyinfra operations: what gpurack changes on a host where pyinfra has none of its own."""
