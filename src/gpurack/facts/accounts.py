"""Everything about one person's account that decides what they can do on a host, in one round trip."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field

from pyinfra.api.facts import FactBase

# Processes of a user outside containers, where the same number may be somebody else: dockerd gives each container a
# process namespace of its own, and "uid 1000" in an image is not the first person of the host.
OWN_PROCESSES = (
    'for p in $(grep -lE "^Uid:.*[[:space:]]$uid([[:space:]]|\\$)" /proc/[0-9]*/status 2>/dev/null); do '
    "p=${p%/status}; "
    '[ "$(readlink "$p/ns/pid")" = "$(readlink /proc/1/ns/pid)" ] && echo "${p#/proc/}"; done'
)


@dataclass
class AccountInfo:
    """One account.

    Attributes:
        uid: user number.
        home: home directory.
        full_name: comment field.
        shell: login shell.
        group: primary group.
        groups: secondary groups.
        password: ``locked``, ``empty``, or the SHA-256 of the password's hash (never the hash itself).
        expires: days since 1970 on which the account expires; empty for never.
        key_lines: the lines of ``~/.ssh/authorized_keys``; None if there is no such file.
        modes: owner and octal mode of ``home``, ``ssh`` (``~/.ssh``), ``keys`` and ``keys2`` where they exist.
        jobs: files of crontab and at jobs, and the mark that lets processes linger.
        rules: sudoers files with a rule that begins with the account's name.
        running: the account has processes outside containers.
    """

    uid: int
    home: str
    full_name: str
    shell: str
    group: str = ""
    groups: frozenset[str] = frozenset()
    password: str = "locked"  # noqa: S105 - a state
    expires: str = ""
    key_lines: list[str] | None = None
    modes: dict[str, tuple[str, str]] = field(default_factory=dict)
    jobs: list[str] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)
    running: bool = False


class Account(FactBase[AccountInfo | None]):
    """Returns the :class:`AccountInfo` of a user; None if there is no such user."""

    def command(self, user: str) -> str:
        """Print the account as lines that begin with what they are."""
        name = shlex.quote(user)
        return f"""
n={name}
entry=$(getent passwd "$n") || exit 0
echo "passwd $entry"
uid=$(id -u "$n"); home=$(echo "$entry" | cut -d: -f6)
echo "group $(id -gn "$n")"; echo "groups $(id -Gn "$n")"
shadow=$(getent shadow "$n")
hash=$(echo "$shadow" | cut -d: -f2)
case $hash in
'') echo "password empty" ;;
'!'* | '*'*) echo "password locked" ;;
*) echo "password $(printf %s "$hash" | sha256sum | cut -c 1-64)" ;;
esac
echo "expires $(echo "$shadow" | cut -d: -f8)"
keys=$home/.ssh/authorized_keys
for pair in "home $home" "ssh $home/.ssh" "keys $keys" "keys2 ${{keys}}2"; do
    stat -c "mode ${{pair%% *}} %U %a" "${{pair#* }}" 2>/dev/null
done
[ ! -f "$keys" ] || sed 's/^/key /' "$keys"
for job in "/var/spool/cron/crontabs/$n" "/var/lib/systemd/linger/$n"; do [ ! -e "$job" ] || echo "job $job"; done
find /var/spool/cron/atjobs -type f -user "$n" -printf 'job %p\\n' 2>/dev/null
grep -slE "^[[:space:]]*$n[[:space:]]" /etc/sudoers /etc/sudoers.d/* | sed 's/^/rule /'
[ -z "$({OWN_PROCESSES})" ] || echo running
true
""".strip()

    def process(self, output: Iterable[str]) -> AccountInfo | None:
        """Parse the lines."""
        found: AccountInfo | None = None
        for line in output:
            what, _, rest = line.partition(" ")
            if what == "passwd":
                fields = rest.split(":")
                found = AccountInfo(uid=int(fields[2]), full_name=fields[4], home=fields[5], shell=fields[6])
            elif found is None:
                continue
            elif what in {"group", "password", "expires"}:
                setattr(found, what, rest)
            elif what == "groups":
                found.groups = frozenset(rest.split()) - {found.group}
            elif what == "mode":
                name, owner, mode = rest.split()
                found.modes[name] = (owner, mode)
                if name == "keys":
                    found.key_lines = []
            elif what == "key" and found.key_lines is not None:
                found.key_lines.append(rest)
            elif what == "job":
                found.jobs.append(rest)
            elif what == "rule":
                found.rules.append(rest)
            elif what == "running":
                found.running = True
        return found


class Uids(FactBase[dict[str, int]]):
    """Returns the user numbers of those of some users that a host has."""

    default = dict

    def command(self, users: list[str]) -> str:
        """Print their passwd entries."""
        return f"getent passwd {shlex.join(users)} || true"

    def process(self, output: Iterable[str]) -> dict[str, int]:
        """Parse names and numbers."""
        return {fields[0]: int(fields[2]) for fields in (line.split(":") for line in output)}


class MissingGroups(FactBase[list[str]]):
    """Returns those of some groups that a host does not have."""

    default = list

    def command(self, groups: list[str]) -> str:
        """Print each group that is missing."""
        return f'for g in {shlex.join(groups)}; do getent group "$g" >/dev/null || echo "$g"; done'

    def process(self, output: Iterable[str]) -> list[str]:
        """Return the names."""
        return [line.strip() for line in output]
