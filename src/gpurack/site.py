"""Applying roles to the host pyinfra is preparing: what the files in ``deploys/`` call."""

from __future__ import annotations

import sys
from importlib import import_module

from pyinfra import logger
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.host import Host
from pyinfra.context import ctx_config, ctx_host

from gpurack.facts.preconditions import HostPreconditions, Preconditions
from gpurack.settings import role_models, settings_for

SUPPORTED = {("debian", "12"), ("debian", "13"), ("ubuntu", "22.04"), ("ubuntu", "24.04")}


def apply(*roles: str) -> None:
    """Declare the named roles, in this order, on the current host; a disabled role is left out.

    A host that cannot be managed, or on which a role finds a reason not to go on, fails here, before anything is
    changed on it; the other hosts go on.

    Raises:
        KeyError: no role of that name.
        pyinfra.api.exceptions.PyinfraError: no host is left.
    """
    models = {role: role_models()[role] for role in roles}
    host: Host = ctx_host.get()
    found: Preconditions | None = host.get_fact(HostPreconditions, _sudo=False)
    if found is None:  # pyinfra has printed why, and failed the host
        return
    if obstacle := _obstacle(host, found):
        _fail(host, f"cannot be managed: {obstacle}")
        return
    for role, model in models.items():
        settings = settings_for(host, model)
        if not settings.enabled:
            continue
        try:
            getattr(import_module(f"roles.{role}.deploy"), role)(settings)
        except PyinfraError as error:
            _fail(host, f"role {role}: {error}")
        if host in host.state.failed_hosts:
            return


def _obstacle(host: Host, found: Preconditions) -> str | None:
    """Return why a host cannot be managed, with the cure; None when it can."""
    if (found.os_id, found.os_version) not in SUPPORTED:
        return (
            f"{found.os_name or 'an unknown system'} is not supported; install "
            "Debian 12 or 13, or Ubuntu 22.04 or 24.04"
        )
    if found.privilege == "none":
        return "no root rights: the user is not root and sudo is not installed; connect as root once, or install sudo"
    config = ctx_config.get()
    if found.privilege == "password" and not (_has_sudo_password(host) or sys.stdin.isatty()):
        return "sudo asks for a password, and there is no terminal to ask on"
    if found.privilege != "root" and not (host.data.get("_sudo") or config.SUDO):
        return "no root rights: set _sudo = True in group_data, or run pyinfra with --sudo"
    return None


def _has_sudo_password(host: Host) -> bool:
    return bool(ctx_config.get().SUDO_PASSWORD or host.data.get("_sudo_password"))


def _fail(host: Host, reason: str) -> None:
    """Fail one host alone."""
    logger.error(f"{host.print_prefix}{reason}")
    logger.error(f"{host.print_prefix}Error: not prepared, nothing was changed")
    host.state.fail_hosts({host})
