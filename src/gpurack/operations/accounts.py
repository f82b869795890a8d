"""Accounts of people: those who administer a host, and those who no longer do.

pyinfra's ``server.user`` reads every account of the host for each one it manages, gives passwords on the command line
and knows neither locks, expiry nor sessions; these operations read one account at once.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Generator, Iterable, Sequence

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from gpurack.facts.accounts import OWN_PROCESSES, Account, AccountInfo, MissingGroups

NOLOGIN = "/usr/sbin/nologin"
LONG_AGO = "1"
"""Expiry date of a closed account, in days since 1970; 0 means different things to different programs."""
KEYS_HEADER = "# Managed by gpurack, role users."


@operation()
def groups_exist(groups: Sequence[str]) -> Generator[PyinfraCommand, None, None]:
    """Make groups that are to have members; packages that come later use them as they are.

    Args:
        groups: names of system groups.
    """
    missing = host.get_fact(MissingGroups, groups=list(groups)) if groups else []
    if not missing:
        host.noop("groups exist")
    for group in missing:
        yield StringCommand("groupadd", "--system", QuoteString(group))


@operation()
def open_account(
    user: str,
    *,
    full_name: str,
    shell: str,
    groups: Iterable[str],
    ssh_keys: Sequence[str],
    password_hash: str | None = None,
) -> Generator[PyinfraCommand, None, None]:
    """Make an account that is reached with some SSH keys and no other.

    Args:
        user: login name.
        full_name: the person's name.
        shell: login shell.
        groups: secondary groups, which must exist; all others are taken away.
        ssh_keys: public keys; all others are taken away.
        password_hash: hash of the password; None locks it.
    """
    found = host.get_fact(Account, user=user)
    changed = False
    for command in [
        *account_commands(found, user, full_name=full_name, shell=shell, groups=frozenset(groups)),
        *password_commands(found, user, password_hash),
        *key_commands(found, user, ssh_keys),
    ]:
        changed = True
        yield command
    if not changed:
        host.noop(f"account {user} is as wanted")


def account_commands(
    found: AccountInfo | None, user: str, *, full_name: str, shell: str, groups: frozenset[str]
) -> list[StringCommand]:
    """Return what makes or alters an account's entry."""
    wanted = ",".join(sorted(groups))
    if found is None:
        arguments = ["--create-home", "--shell", shell, "--comment", full_name, "--groups", wanted]
        name = shlex.quote(user)
        # A group of that name may be left over from an account that was deleted.
        group = f'$(getent group {name} >/dev/null && echo "--gid {name}" || echo --user-group)'
        return [StringCommand("useradd", group, *map(QuoteString, arguments), QuoteString(user))]
    arguments = []
    if found.shell != shell:
        arguments += ["--shell", shell]
    if found.full_name != full_name:
        arguments += ["--comment", full_name]
    if found.groups != groups:
        arguments += ["--groups", wanted]
    if found.expires:
        arguments += ["--expiredate", ""]
    return [StringCommand("usermod", *map(QuoteString, arguments), QuoteString(user))] if arguments else []


def password_commands(found: AccountInfo | None, user: str, password_hash: str | None) -> list[StringCommand]:
    """Return what locks or sets a password; a hash goes through standard input, never into a process list."""
    if password_hash is None:
        if found is None or found.password == "locked":  # noqa: S105 - useradd leaves the password locked
            return []
        return [StringCommand("usermod", "--password", QuoteString("*"), QuoteString(user))]
    if found is not None and found.password == hashlib.sha256(password_hash.encode()).hexdigest():
        return []
    return [StringCommand("chpasswd", "--encrypted", _stdin=f"{user}:{password_hash}")]


def key_commands(found: AccountInfo | None, user: str, ssh_keys: Sequence[str]) -> list[StringCommand]:
    """Return what makes ``~/.ssh/authorized_keys`` hold some keys only, with modes that sshd accepts.

    The file is written as the user: root does not follow links in a directory that somebody else owns.
    """
    lines = [KEYS_HEADER, *ssh_keys]
    owned = {
        "home": found is not None and _is_owned(found, "home", user),
        "ssh": found is not None and found.modes.get("ssh") == (user, "700"),
        "keys": found is not None and found.modes.get("keys") == (user, "600"),
    }
    if found is not None and all(owned.values()) and found.key_lines == lines and "keys2" not in found.modes:
        return []
    name = shlex.quote(user)
    commands = []
    if found is not None and not owned["home"]:
        home = shlex.quote(found.home)
        commands.append(StringCommand(f"mkdir -p {home} && chown {name}: {home} && chmod go-w {home}"))
    commands.append(
        StringCommand(
            f"d=$(getent passwd {name} | cut -d: -f6)/.ssh; "
            f'if [ -L "$d" ]; then rm -f "$d"; elif [ -e "$d" ]; then chown -hR {name}: "$d"; fi'
        )
    )
    script = (
        "set -e; umask 077; cd; mkdir -p .ssh; chmod 700 .ssh; cat >.ssh/authorized_keys.gpurack-new; "
        "mv -f .ssh/authorized_keys.gpurack-new .ssh/authorized_keys; rm -f .ssh/authorized_keys2"
    )
    commands.append(
        StringCommand(
            "runuser", "-u", QuoteString(user), "--", "env", f"HOME=$(getent passwd {name} | cut -d: -f6)",
            "sh", "-c", QuoteString(script), _stdin=lines,
        )
    )  # fmt: skip
    return commands


def _is_owned(found: AccountInfo, what: str, user: str) -> bool:
    owner, mode = found.modes.get(what, ("", "0"))
    return owner == user and not int(mode, 8) & 0o022


@operation()
def close_account(user: str, *, remove_home: bool = False) -> Generator[PyinfraCommand, None, None]:
    """Take all access of a person away, and end what they are running; the account's number stays taken.

    Args:
        user: login name; a host without such an account is left alone.
        remove_home: delete the home directory too.
    """
    found = host.get_fact(Account, user=user)
    if found is None:
        host.noop(f"there is no account {user}")
        return
    commands = closing_commands(found, user, remove_home=remove_home)
    if not commands:
        host.noop(f"account {user} is closed")
    yield from commands


def closing_commands(found: AccountInfo, user: str, *, remove_home: bool) -> list[StringCommand]:
    """Return what is still to be done to close an account; no new logins first, then what runs."""
    name, home = shlex.quote(user), shlex.quote(found.home)
    commands = []
    if found.password != "locked" or found.expires != LONG_AGO or found.shell != NOLOGIN:  # noqa: S105
        commands.append(f"usermod --password '*' --expiredate {LONG_AGO} --shell {NOLOGIN} {name}")
    if {"keys", "keys2"} & set(found.modes):
        commands.append(f"rm -f -- {home}/.ssh/authorized_keys {home}/.ssh/authorized_keys2")
    if found.groups:
        commands.append(f"usermod --groups '' {name}")
    commands += [without_rules(file, user) for file in found.rules]
    if found.jobs:
        commands.append(f"rm -f -- {shlex.join(found.jobs)}")
    if found.running:
        commands.append(
            f"loginctl terminate-user {name} 2>/dev/null; uid={found.uid}; i=0; "
            f'while pids=$({OWN_PROCESSES}) && [ -n "$pids" ]; do '
            f'[ "$i" -lt 50 ] || {{ echo "processes of" {name} "do not end:" $pids >&2; exit 1; }}; '
            "kill -KILL $pids 2>/dev/null; i=$((i + 1)); sleep 0.1; done; true"
        )
    if remove_home and "home" in found.modes:
        if found.home.count("/") < 2:
            commands.append(f"echo the home of {name} is {home}, which is too much to delete >&2; false")
        else:
            commands.append(f"rm -rf --one-file-system -- {home}")
    return [StringCommand(command) for command in commands]


def without_rules(file: str, user: str) -> str:
    """Return a shell command that takes a user's rules out of a sudoers file, if the rest is still valid."""
    path, new = shlex.quote(file), shlex.quote(f"{file}.gpurack-new")
    expression = shlex.quote(rf"/^[[:space:]]*{user}[[:space:]]/d")
    return (
        f"cp -p {path} {new} && sed -i {expression} {new} && visudo -c -f {new} >/dev/null && mv -f {new} {path} "
        f"|| {{ rm -f {new}; false; }}"
    )
