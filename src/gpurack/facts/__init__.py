"""pyinfra facts: what gpurack reads from a host."""
