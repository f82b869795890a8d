"""Connection data of every host of every inventory; an inventory's own group_data and hosts override it."""

from gpurack.ssh import transport

# A host whose key is not in known_hosts is not connected to: compare fingerprints first, then `ssh-keyscan` it in.
ssh_strict_host_key_checking = "yes"

# No delayed acknowledgement and no sudo of its own for each command, and no hanging on a dead link; see gpurack/ssh.py.
ssh_paramiko_connect_kwargs = {"transport_factory": transport}
