"""What a host's OpenSSH server can do, and how it is configured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pyinfra.api.facts import FactBase

SECTIONS = ("kex", "ciphers", "macs", "host_key_algorithms", "main_config")
MARK = "gpurack-section"


@dataclass(frozen=True)
class SshServerInfo:
    """An OpenSSH server.

    Attributes:
        kex: key exchange algorithms this version knows.
        ciphers: ciphers it knows.
        macs: message authentication codes it knows.
        host_key_algorithms: host key signature algorithms it knows.
        main_config: the lines of ``/etc/ssh/sshd_config``.
    """

    kex: tuple[str, ...]
    ciphers: tuple[str, ...]
    macs: tuple[str, ...]
    host_key_algorithms: tuple[str, ...]
    main_config: tuple[str, ...]


class SshServer(FactBase[SshServerInfo | None]):
    """Returns :class:`SshServerInfo`; None where no OpenSSH server is installed."""

    def requires_command(self) -> str:
        """Return the daemon's program."""
        return "/usr/sbin/sshd"

    def command(self) -> str:
        """Print what the version supports, and its main configuration file."""
        queries = ("ssh -Q kex", "ssh -Q cipher", "ssh -Q mac", "ssh -Q HostKeyAlgorithms", "cat /etc/ssh/sshd_config")
        return f"; echo {MARK}; ".join(queries)

    def process(self, output: Iterable[str]) -> SshServerInfo:
        """Split the output into its sections."""
        sections: list[list[str]] = [[]]
        for line in output:
            if line == MARK:
                sections.append([])
            else:
                sections[-1].append(line)
        return SshServerInfo(**dict(zip(SECTIONS, map(tuple, sections), strict=True)))
