"""Settings of the sshd role."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from gpurack.settings import Location, RoleSettings

Port = Annotated[int, Field(ge=1, le=65535)]
Pattern = Annotated[str, Field(pattern=r"^[A-Za-z0-9_*?!][A-Za-z0-9_.*?@:/-]*$")]
Algorithm = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9@.-]*$")]

MANAGED_KEYWORDS = frozenset(
    {
        "allowagentforwarding",
        "allowgroups",
        "allowtcpforwarding",
        "allowusers",
        "authenticationmethods",
        "challengeresponseauthentication",
        "ciphers",
        "clientalivecountmax",
        "clientaliveinterval",
        "gssapiauthentication",
        "hostbasedauthentication",
        "hostkeyalgorithms",
        "ignorerhosts",
        "include",
        "kbdinteractiveauthentication",
        "kexalgorithms",
        "logingracetime",
        "loglevel",
        "macs",
        "match",
        "maxauthtries",
        "maxsessions",
        "maxstartups",
        "passwordauthentication",
        "permitemptypasswords",
        "permitrootlogin",
        "permituserenvironment",
        "port",
        "pubkeyauthentication",
        "subsystem",
        "usepam",
        "x11forwarding",
    }
)


class SshdSettings(RoleSettings):
    """How one logs in to a host."""

    ports: tuple[Port, ...] = Field(default=(22,), min_length=1, description="Ports the server listens on.")
    root_login: Literal["no", "prohibit-password"] = Field(
        default="no", description="Whether root may log in: not at all, or with a key."
    )
    allow_users: tuple[Pattern, ...] = Field(
        default=(), description="Only these users may log in (sshd's AllowUsers patterns); empty: no restriction."
    )
    allow_groups: tuple[Pattern, ...] = Field(
        default=(), description="Only members of these groups may log in; empty: no restriction."
    )
    kex_algorithms: tuple[Algorithm, ...] = Field(
        default=(
            "mlkem768x25519-sha256",
            "sntrup761x25519-sha512",
            "sntrup761x25519-sha512@openssh.com",
            "curve25519-sha256",
            "curve25519-sha256@libssh.org",
            "diffie-hellman-group18-sha512",
            "diffie-hellman-group16-sha512",
        ),
        min_length=1,
        description="Key exchange, best first; what the host's OpenSSH does not know is left out.",
    )
    ciphers: tuple[Algorithm, ...] = Field(
        default=(
            "chacha20-poly1305@openssh.com",
            "aes256-gcm@openssh.com",
            "aes128-gcm@openssh.com",
            "aes256-ctr",
            "aes192-ctr",
            "aes128-ctr",
        ),
        min_length=1,
        description="Ciphers, best first; unknown ones are left out.",
    )
    macs: tuple[Algorithm, ...] = Field(
        default=(
            "hmac-sha2-512-etm@openssh.com",
            "hmac-sha2-256-etm@openssh.com",
            "umac-128-etm@openssh.com",
        ),
        min_length=1,
        description="Message authentication codes, best first; unknown ones are left out.",
    )
    host_key_algorithms: tuple[Algorithm, ...] = Field(
        default=(
            "ssh-ed25519",
            "ssh-ed25519-cert-v01@openssh.com",
            "rsa-sha2-512",
            "rsa-sha2-512-cert-v01@openssh.com",
            "rsa-sha2-256",
            "rsa-sha2-256-cert-v01@openssh.com",
        ),
        min_length=1,
        description="How the host proves who it is; clients need a key of one of these kinds in known_hosts.",
    )
    login_grace_time: timedelta = Field(
        default=timedelta(seconds=30),
        ge=timedelta(seconds=5),
        le=timedelta(minutes=10),
        description="A login not finished after this time is cut off.",
    )
    max_auth_tries: int = Field(default=4, ge=2, le=20, description="Keys a client may try on one connection.")
    max_sessions: int = Field(default=10, ge=1, le=100, description="Sessions on one connection.")
    client_alive_interval: timedelta = Field(
        default=timedelta(minutes=1),
        ge=timedelta(seconds=5),
        le=timedelta(hours=1),
        description="A silent client is asked for a sign of life this often; after the third time it is cut off.",
    )
    tcp_forwarding: bool = Field(
        default=False, description="Allow tunnels; needed on a host others are reached through (ProxyJump)."
    )
    agent_forwarding: bool = Field(default=False, description="Allow forwarding of a client's key agent.")
    extra: dict[str, str] = Field(
        default_factory=dict, description='Further sshd_config keywords, such as {"Banner": "/etc/issue.net"}.'
    )
    confirm_timeout: timedelta = Field(
        default=timedelta(seconds=60),
        ge=timedelta(seconds=10),
        le=timedelta(minutes=10),
        description="The host takes a change back unless a fresh connection confirms it within this time.",
    )

    @field_validator("extra")
    @classmethod
    def _extra_is_one_line_each(cls, extra: dict[str, str]) -> dict[str, str]:
        for keyword, value in extra.items():
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", keyword):
                raise ValueError(f"{keyword!r} is not an sshd_config keyword (see man sshd_config)")
            if keyword.lower() in MANAGED_KEYWORDS:
                raise ValueError(f"{keyword} is managed by this role; use the role's own setting for it")
            if not value.strip() or not value.isprintable():
                raise ValueError(f"the value of {keyword} must be one line of printable text")
        return extra

    def problems_on(self, host: str, data: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
        """Yield settings that would lock gpurack itself out, as far as the inventory tells."""
        del host
        user = data.get("ssh_user")
        if user == "root" and self.root_login == "no":
            yield (
                ("root_login",),
                'gpurack connects as root (ssh_user), and "no" would lock it out; '
                'connect as an administrator of the users role, or allow "prohibit-password"',
            )
        if user and self.allow_users and not any(name_matches(user, pattern) for pattern in self.allow_users):
            yield (
                ("allow_users",),
                f"would lock out {user}, the user gpurack connects as (ssh_user); add {user} to the list",
            )
        if data.get("ssh_password") and not data.get("ssh_key"):
            yield (
                ("enabled",),
                "the role turns password logins off, and gpurack connects with ssh_password; "
                "set ssh_key to a key the host accepts",
            )


def name_matches(user: str, pattern: str) -> bool:
    """Tell whether an AllowUsers pattern lets a user in from some address (``*`` and ``?`` are wildcards)."""
    name = pattern.partition("@")[0]
    expression = "".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in name)
    return re.fullmatch(expression, user) is not None
