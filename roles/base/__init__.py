"""What every host needs: name, time, package sources, security updates, logs and kernel parameters."""
