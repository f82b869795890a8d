"""Text of OpenSSH server configurations: small pure functions of the sshd role."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

DROP_INS = "/etc/ssh/sshd_config.d/*.conf"


def with_drop_ins(lines: Iterable[str]) -> str:
    """Return a main configuration that reads the drop-ins before anything else.

    sshd takes the first value it finds for a keyword, so the Include belongs above all others; Debian ships it there.
    """
    text = [line.rstrip("\r\n") for line in lines]
    for line in text:
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0].lower() == "include" and DROP_INS in words[1:]:
            return "\n".join(text) + "\n"
        break
    remaining = [line for line in text if line.split() != ["Include", DROP_INS]]
    return "\n".join([f"Include {DROP_INS}", *remaining]) + "\n"


def known_of(wanted: Sequence[str], known: Sequence[str], what: str) -> list[str]:
    """Return the wanted algorithms an OpenSSH version knows, in the wanted order.

    Raises:
        ValueError: it knows none of them; sshd would not start.
    """
    found = [name for name in wanted if name in known]
    if not found:
        raise ValueError(f"this OpenSSH knows none of {what} = {', '.join(wanted)}; it knows {', '.join(known)}")
    return found
