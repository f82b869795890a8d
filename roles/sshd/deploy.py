"""Deploy of the sshd role."""

from __future__ import annotations

from pyinfra import host
from pyinfra.api import OperationError
from pyinfra.api.deploy import deploy
from pyinfra.operations import systemd

from gpurack.facts.connection import Connection, ConnectionInfo
from gpurack.facts.sshd import SshServer
from gpurack.operations import guarded
from gpurack.rendering import render
from gpurack.sshd_config import known_of, with_drop_ins
from roles.sshd.settings import SshdSettings, name_matches

DROP_IN = "/etc/ssh/sshd_config.d/00-gpurack.conf"
MAIN = "/etc/ssh/sshd_config"
# The new files as a whole, with the drop-ins of others, but without our old one: it may be what is broken.
VALIDATE = (
    "mkdir -p /run/sshd && rm -rf {1}.d && mkdir {1}.d && "
    "find /etc/ssh/sshd_config.d -name '*.conf' -exec cp -t {1}.d {{}} + && cp {0} {1}.d/00-gpurack.conf && "
    "sed 's|/etc/ssh/sshd_config.d/|'{1}'.d/|' {1} >{1}.whole && /usr/sbin/sshd -t -f {1}.whole"
)
# A restart, not a reload: it returns when the new server listens. Sessions live on (KillMode=process). reset-failed,
# because systemd refuses a sixth start within ten seconds and would leave the host without a server. Where the port
# belongs to a socket unit (Ubuntu 24.04), that one reads the configuration.
RELOAD = (
    "systemctl daemon-reload && "
    "{ ! systemctl --quiet is-active ssh.socket || systemctl restart ssh.socket; } && "
    "{ systemctl reset-failed ssh.service || true; } && systemctl restart ssh.service"
)


@deploy("SSH server")
def sshd(settings: SshdSettings) -> None:
    """Allow keys and modern algorithms only, under guard.

    Raises:
        OperationError: the settings would lock gpurack out of this host, or its OpenSSH cannot do what they ask.
    """
    server = host.get_fact(SshServer)
    if server is None:
        raise OperationError("no OpenSSH server is installed here; install openssh-server or disable the role sshd")
    if problem := lock_out(settings, host.get_fact(Connection, _sudo=False)):
        raise OperationError(problem)
    try:
        algorithms = {
            "KexAlgorithms": known_of(settings.kex_algorithms, server.kex, "sshd.kex_algorithms"),
            "Ciphers": known_of(settings.ciphers, server.ciphers, "sshd.ciphers"),
            "MACs": known_of(settings.macs, server.macs, "sshd.macs"),
            "HostKeyAlgorithms": known_of(
                settings.host_key_algorithms, server.host_key_algorithms, "sshd.host_key_algorithms"
            ),
        }
    except ValueError as error:
        raise OperationError(str(error)) from error
    guarded.change(
        name="Configure logins, confirmed by a fresh connection",
        identity="sshd",
        contents={
            DROP_IN: render("templates/sshd/00-gpurack.conf.j2", settings=settings, algorithms=algorithms),
            MAIN: with_drop_ins(server.main_config),
        },
        validate=VALIDATE,
        reload=RELOAD,
        confirm_timeout=settings.confirm_timeout,
    )
    systemd.service(name="Run SSH server", service="ssh", running=True, enabled=True)


def lock_out(settings: SshdSettings, connection: ConnectionInfo) -> str | None:
    """Return why the settings would lock out the very user gpurack is connected as; None if they would not."""
    user = connection.user
    if user == "root" and settings.root_login == "no":
        return 'gpurack is connected as root, and sshd.root_login = "no" would lock it out'
    if settings.allow_users and not any(name_matches(user, pattern) for pattern in settings.allow_users):
        return f"gpurack is connected as {user}, who is not in sshd.allow_users: add {user} to it"
    if settings.allow_groups and not any(
        name_matches(group, pattern) for group in connection.groups for pattern in settings.allow_groups
    ):
        return f"gpurack is connected as {user}, who is in no group of sshd.allow_groups: add one of that user's groups"
    if connection.port is not None and connection.port not in settings.ports:
        return (
            f"gpurack is connected on port {connection.port}, which is not in sshd.ports; to move to another port, "
            f"list both, run, change ssh_port in the inventory, then take {connection.port} away"
        )
    return None
