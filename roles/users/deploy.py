"""Deploy of the users role."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from pyinfra import host
from pyinfra.api import OperationError
from pyinfra.api.deploy import deploy

from gpurack.facts.accounts import Uids
from gpurack.facts.connection import Connection
from gpurack.operations import accounts, guarded, packages
from gpurack.rendering import render
from roles.users.settings import UsersSettings

LEAST_PERSON_UID = 1000
SUDOERS = "/etc/sudoers.d/50-gpurack"


@deploy("Administrators and leavers")
def users(settings: UsersSettings) -> None:
    """Open the accounts of administrators, close those of leavers.

    Raises:
        OperationError: the user gpurack is connected as would lose access, or a leaver is a system account.
    """
    uids = host.get_fact(Uids, users=list(settings.leavers)) if settings.leavers else {}
    if problem := obstacle(settings, host.get_fact(Connection, _sudo=False).user, uids):
        raise OperationError(problem)
    if settings.administrators:
        packages.installed(name="Install sudo", packages=["sudo"])
    if groups := sorted({group for person in settings.administrators for group in person.groups}):
        accounts.groups_exist(name="Make groups", groups=groups)
    for person in settings.administrators:
        accounts.open_account(
            name=f"Open account {person.name}",
            user=person.name,
            full_name=person.full_name,
            shell=person.shell,
            groups=person.groups,
            ssh_keys=person.ssh_keys,
            password_hash=person.password_hash.get_secret_value() if person.password_hash else None,
        )
    if settings.administrators or settings.leavers:
        guarded.change(
            name="Grant root rights, confirmed by a fresh connection",
            identity="sudoers",
            contents={SUDOERS: render("templates/users/50-gpurack.j2", settings=settings)},
            mode="440",
            validate="visudo -c -f {0} >/dev/null",
            reload="true",  # sudo reads its files every time
            confirm_timeout=timedelta(seconds=60),
        )
    for leaver in settings.leavers:
        accounts.close_account(name=f"Close account {leaver}", user=leaver, remove_home=settings.remove_leavers_home)


def obstacle(settings: UsersSettings, user: str, leaver_uids: Mapping[str, int]) -> str | None:
    """Return why nothing may be changed: the settings take away what gpurack or the system needs. None if they do not.

    Args:
        settings: the wanted state.
        user: whom gpurack is connected as.
        leaver_uids: user numbers of the leavers that have an account on the host.
    """
    if user in settings.leavers:
        return (
            f"gpurack is connected as {user}, who is in users.leavers; connect as somebody else to close that account"
        )
    if any(person.name == user and person.sudo == "none" for person in settings.administrators):
        return f'gpurack is connected as {user}, whose sudo = "none" would take its root rights away'
    for name, uid in leaver_uids.items():
        if uid < LEAST_PERSON_UID:
            return f"{name} has uid {uid}, a system account and not a leaver's; take {name} out of users.leavers"
    return None
