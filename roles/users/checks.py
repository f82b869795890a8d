"""Controls of the users role."""

from __future__ import annotations

import hashlib
from typing import Any

from gpurack.controls import NotApplicable, control
from gpurack.facts.accounts import Account, AccountInfo
from roles.users.settings import UsersSettings

LOCKED = "locked"


def account(host: Any, user: str) -> AccountInfo | None:
    """Read an account with the command of pyinfra's fact."""
    fact = Account()
    return fact.process(host.run("sh -c %s", fact.command(user)).stdout.splitlines())


def administrators_of(host: Any, settings: UsersSettings) -> dict[str, AccountInfo]:
    """Return the accounts of administrators; a missing one fails the control."""
    if not settings.administrators:
        raise NotApplicable("no administrators are listed")
    found = {person.name: account(host, person.name) for person in settings.administrators}
    missing = [name for name, info in found.items() if info is None]
    assert not missing, f"no account: {', '.join(missing)}"
    return {name: info for name, info in found.items() if info is not None}


def leavers_of(host: Any, settings: UsersSettings) -> dict[str, AccountInfo]:
    """Return the accounts leavers still have."""
    if not settings.leavers:
        raise NotApplicable("no leavers are listed")
    found = {name: account(host, name) for name in settings.leavers}
    return {name: info for name, info in found.items() if info is not None}


@control(
    "USER-01",
    "Every administrator has an account that is open",
    severity="medium",
    satisfies=["ISO 27001 A.5.16"],
)
def test_accounts(host: Any, settings: UsersSettings) -> None:
    """Shared accounts begin where somebody has none."""
    found = administrators_of(host, settings)
    for person in settings.administrators:
        info = found[person.name]
        assert not info.expires, f"the account {person.name} has an expiry date"
        assert info.shell == person.shell, f"the shell of {person.name} is {info.shell}, expected {person.shell}"


@control(
    "USER-02",
    "Administrators log in with the listed keys and no others",
    severity="critical",
    satisfies=["ISO 27001 A.5.17", "ISO 27001 A.8.5"],
)
def test_keys(host: Any, settings: UsersSettings) -> None:
    """A key added by hand is access nobody has granted, and nobody will take away."""
    found = administrators_of(host, settings)
    for person in settings.administrators:
        info = found[person.name]
        keys = {line for line in info.key_lines or () if line.strip() and not line.startswith("#")}
        wanted = set(person.ssh_keys)
        assert not keys - wanted, f"{person.name} has {len(keys - wanted)} keys that are not listed"
        assert not wanted - keys, f"{person.name} lacks {len(wanted - keys)} of the listed keys"
        assert "keys2" not in info.modes, f"{person.name} has an authorized_keys2, which sshd reads too"
        assert info.modes["keys"] == (person.name, "600"), f"authorized_keys of {person.name} is open to others"
        assert info.modes.get("ssh") == (person.name, "700"), f".ssh of {person.name} is open to others"


@control(
    "USER-03",
    "Administrators have the root rights they were given, and no other privileged group",
    severity="high",
    satisfies=["CIS Debian 12 5.2", "ISO 27001 A.8.2"],
)
def test_sudo(host: Any, settings: UsersSettings) -> None:
    """Asked of sudo itself, which reads every file there is; membership in docker or disk is root by another name."""
    found = administrators_of(host, settings)
    validity = host.run("visudo -c -f /etc/sudoers.d/50-gpurack")
    assert validity.rc == 0, f"no valid /etc/sudoers.d/50-gpurack: {validity.stderr.strip()}"
    for person in settings.administrators:
        listed = host.run("sudo -l -U %s", person.name).stdout
        allowed = "(ALL : ALL)" in listed
        assert allowed == (person.sudo != "none"), f"sudo says of {person.name}: {' '.join(listed.split())[-120:]}"
        without = "NOPASSWD: ALL" in listed
        assert without == (person.sudo == "nopasswd"), f"sudo of {person.name}: expected {person.sudo}"
        groups = found[person.name].groups
        assert groups == person.all_groups, f"{person.name} is in {sorted(groups)}, expected {sorted(person.groups)}"


@control(
    "USER-04",
    "Passwords of administrators are locked, except where sudo asks for one",
    severity="high",
    satisfies=["ISO 27001 A.5.17"],
)
def test_passwords(host: Any, settings: UsersSettings) -> None:
    """A password that is not needed is one more that can be guessed, at the console too."""
    found = administrators_of(host, settings)
    for person in settings.administrators:
        secret = person.password_hash
        wanted = hashlib.sha256(secret.get_secret_value().encode()).hexdigest() if secret else LOCKED
        state = "locked" if wanted == LOCKED else "the given one"
        assert found[person.name].password == wanted, f"the password of {person.name} is not {state}"


@control(
    "USER-05",
    "Leavers cannot log in",
    severity="critical",
    satisfies=["ISO 27001 A.5.18", "ISO 27001 A.6.5"],
)
def test_leavers_are_locked_out(host: Any, settings: UsersSettings) -> None:
    """Password, expiry, shell and keys: each of them alone leaves a way in."""
    for name, info in leavers_of(host, settings).items():
        assert info.password == LOCKED, f"the password of {name} is not locked"
        assert info.expires == "1", f"the account {name} has not expired"
        assert info.shell.endswith("/nologin"), f"{name} has the shell {info.shell}"
        assert not {"keys", "keys2"} & set(info.modes), f"{name} has SSH keys again"


@control(
    "USER-06",
    "Nothing of leavers is running, now or later",
    severity="critical",
    satisfies=["ISO 27001 A.5.18", "ISO 27001 A.6.5"],
)
def test_leavers_have_no_sessions(host: Any, settings: UsersSettings) -> None:
    """A session that was open lives on behind a locked account; a job comes back every night."""
    for name, info in leavers_of(host, settings).items():
        assert not info.running, f"{name} has processes"
        assert not info.jobs, f"{name} has {', '.join(info.jobs)}"


@control(
    "USER-07",
    "Leavers have no rights left",
    severity="high",
    satisfies=["ISO 27001 A.5.18", "ISO 27001 A.8.2"],
)
def test_leavers_have_no_rights(host: Any, settings: UsersSettings) -> None:
    """An account that is opened again by mistake should not be an administrator's."""
    for name, info in leavers_of(host, settings).items():
        assert not info.groups, f"{name} is in {', '.join(sorted(info.groups))}"
        assert not info.rules, f"{name} is named in {', '.join(info.rules)}"
        if settings.remove_leavers_home:
            assert "home" not in info.modes, f"the home of {name} is still there"
