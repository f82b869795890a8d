"""Settings, facts and pure functions of the users role."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gpurack.facts.accounts import Account, AccountInfo
from gpurack.operations.accounts import (
    KEYS_HEADER,
    account_commands,
    closing_commands,
    key_commands,
    password_commands,
)
from gpurack.rendering import render
from gpurack.ssh_keys import check_public_key, key_blob, public_key_of
from roles.users.deploy import obstacle
from roles.users.settings import UsersSettings

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl alice@example.org"
OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7tBnF5n1bFQ0sXU5Gd0zq2j8e8GmXGq8bS0Vh0wq3x"
ALICE = {"name": "alice", "ssh_keys": [KEY]}


def make_key(path: Path, *options: str) -> str:
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-f", path, *options], check=True)
    return Path(f"{path}.pub").read_text().strip()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"administrators": [{"name": "alice"}]}, "Field required"),
        ({"administrators": [{"name": "alice", "ssh_keys": []}]}, "at least 1 item"),
        ({"administrators": [{"name": "Alice", "ssh_keys": [KEY]}]}, "should match pattern"),
        ({"administrators": [{"name": "root", "ssh_keys": [KEY]}]}, "a system account, not a person's"),
        ({"administrators": [ALICE, ALICE]}, "listed twice: alice"),
        ({"administrators": [ALICE], "leavers": ["alice"]}, "both administrator and leaver: alice"),
        ({"leavers": ["root"]}, "a system account, not a person's"),
        ({"administrators": [{**ALICE, "sudo": "password"}]}, "needs password_hash"),
        ({"administrators": [{**ALICE, "password_hash": "$6$x"}]}, 'is for sudo = "password" only'),
        ({"administrators": [{**ALICE, "sudo": "password", "password_hash": "secret"}]}, "not the password itself"),
        ({"administrators": [{**ALICE, "full_name": "a:b"}]}, "should match pattern"),
        ({"administrators": [{**ALICE, "shell": "bash"}]}, "should match pattern"),
        ({"administrators": [{**ALICE, "groups": ["a b"]}]}, "should match pattern"),
        ({"administrators": [{**ALICE, "ssh_keys": ["ssh-dss AAAA"]}]}, "DSA keys are refused"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        UsersSettings(**values)
    assert message in str(caught.value)


def test_a_password_hash_is_never_shown() -> None:
    settings = UsersSettings(administrators=[{**ALICE, "sudo": "password", "password_hash": "$6$hash"}])
    assert "$6$" not in repr(settings)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "this is a private key"),
        ("AAAA", "begins with its type"),
        ('from="10.0.0.1" ' + KEY, "begins with its type"),
        (KEY + "\n" + KEY, "one line"),
        ("ssh-ed25519", "is not such a key"),
        (KEY[:40], "is not such a key|is cut off"),
        (KEY.replace("ssh-ed25519 ", "ssh-rsa "), "is not such a key"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5", "is cut off"),
    ],
)
def test_what_is_no_public_key_is_refused(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_public_key(line)


def test_keys_of_every_type_are_taken(tmp_path: Path) -> None:
    for kind in (["-t", "ed25519"], ["-t", "ecdsa"], ["-t", "rsa", "-b", "2048"]):
        line = make_key(tmp_path / kind[1], *kind)
        assert check_public_key(f"  {line}\n".strip("\n")) == line


def test_short_rsa_keys_are_refused(tmp_path: Path) -> None:
    line = make_key(tmp_path / "k", "-t", "rsa", "-b", "1024")
    with pytest.raises(ValueError, match="RSA key of 1024 bits is too weak"):
        check_public_key(line)


def test_public_key_is_found_beside_or_in_the_private_one(tmp_path: Path) -> None:
    line = make_key(tmp_path / "k", "-t", "ed25519")
    assert public_key_of(tmp_path / "k") == key_blob(line)
    (tmp_path / "k.pub").unlink()
    assert public_key_of(tmp_path / "k") == key_blob(line)
    assert public_key_of(tmp_path / "absent") is None


@pytest.mark.parametrize(
    ("values", "data", "field", "message"),
    [
        ({"leavers": ["bob", "alice"]}, {}, ("leavers", 1), "connect as somebody else"),
        ({"administrators": [{**ALICE, "sudo": "none"}]}, {}, ("administrators", 0, "sudo"), "needs root rights"),
        (
            {"administrators": [{**ALICE, "sudo": "password", "password_hash": "$6$x"}]},
            {},
            ("administrators", 0, "sudo"),
            "would be asked for a password",
        ),
    ],
)
def test_taking_gpuracks_own_access_is_a_problem(
    values: dict[str, Any], data: dict[str, Any], field: tuple[str | int, ...], message: str
) -> None:
    [(location, text)] = UsersSettings(**values).problems_on("gpu1", {"ssh_user": "alice", **data})
    assert location == field
    assert message in text


def test_so_is_a_list_of_keys_without_the_one_in_use(tmp_path: Path) -> None:
    line = make_key(tmp_path / "k", "-t", "ed25519")
    data = {"ssh_user": "alice", "ssh_key": str(tmp_path / "k")}
    [(location, text)] = UsersSettings(administrators=[ALICE]).problems_on("gpu1", data)
    assert location == ("administrators", 0, "ssh_keys")
    assert "would be locked out" in text
    assert list(UsersSettings(administrators=[{**ALICE, "ssh_keys": [KEY, line]}]).problems_on("gpu1", data)) == []


def test_obstacles_on_the_host() -> None:
    settings = UsersSettings(administrators=[{**ALICE, "sudo": "none"}], leavers=["bob", "svc"])
    assert "connect as somebody else" in str(obstacle(settings, "bob", {}))
    assert "root rights" in str(obstacle(settings, "alice", {}))
    assert "svc has uid 998" in str(obstacle(settings, "admin", {"bob": 1001, "svc": 998}))
    assert obstacle(settings, "admin", {"bob": 1001}) is None


OUTPUT = [
    "passwd alice:x:1001:1001:Alice A:/home/alice:/bin/bash",
    "group alice",
    "groups alice adm docker",
    "password locked",
    "expires ",
    "mode home alice 755",
    "mode ssh alice 700",
    "mode keys alice 600",
    f"key {KEYS_HEADER}",
    f"key {KEY}",
]


def account(**changes: Any) -> AccountInfo:
    found = Account().process(OUTPUT)
    assert found is not None
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def test_account_fact() -> None:
    found = account()
    assert (found.uid, found.home, found.shell, found.full_name) == (1001, "/home/alice", "/bin/bash", "Alice A")
    assert found.groups == {"adm", "docker"}
    assert found.key_lines == [KEYS_HEADER, KEY]
    assert not found.running
    assert Account().process([]) is None
    more = Account().process([*OUTPUT, "job /var/spool/cron/crontabs/alice", "rule /etc/sudoers.d/x y", "running"])
    assert more is not None
    assert (more.jobs, more.rules, more.running) == (
        ["/var/spool/cron/crontabs/alice"],
        ["/etc/sudoers.d/x y"],
        True,
    )


WANTED: dict[str, Any] = {"full_name": "Alice A", "shell": "/bin/bash", "groups": frozenset({"adm", "docker"})}


def test_account_as_wanted_needs_nothing() -> None:
    found = account()
    assert account_commands(found, "alice", **WANTED) == []
    assert password_commands(found, "alice", None) == []
    assert key_commands(found, "alice", [KEY]) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"shell": "/bin/sh"}, "usermod --shell /bin/bash alice"),
        ({"full_name": ""}, "usermod --comment 'Alice A' alice"),
        ({"groups": frozenset({"adm", "docker", "sudo"})}, "usermod --groups adm,docker alice"),
        ({"expires": "1"}, "usermod --expiredate '' alice"),
    ],
)
def test_account_that_differs_is_altered(changes: dict[str, Any], expected: str) -> None:
    [command] = account_commands(account(**changes), "alice", **WANTED)
    assert str(command) == expected


def test_password_goes_through_standard_input() -> None:
    [command] = password_commands(account(), "alice", "$6$hash")
    assert str(command) == "chpasswd --encrypted"
    assert command.connector_arguments["_stdin"] == "alice:$6$hash"
    same = account(password=hashlib.sha256(b"$6$hash").hexdigest())
    assert password_commands(same, "alice", "$6$hash") == []
    [locking] = password_commands(same, "alice", None)
    assert str(locking) == "usermod --password '*' alice"


@pytest.mark.parametrize(
    "changes",
    [
        {"key_lines": [KEYS_HEADER, KEY, OTHER]},
        {"key_lines": None},
        {"modes": {"home": ("alice", "755"), "ssh": ("alice", "755"), "keys": ("alice", "600")}},
        {"modes": {"home": ("alice", "777"), "ssh": ("alice", "700"), "keys": ("alice", "600")}},
        {"modes": {**account().modes, "keys2": ("alice", "600")}},
    ],
)
def test_keys_that_differ_are_written_again(changes: dict[str, Any]) -> None:
    commands = key_commands(account(**changes), "alice", [KEY])
    assert commands[-1].connector_arguments["_stdin"] == [KEYS_HEADER, KEY]


CLOSED: dict[str, Any] = {
    "expires": "1",
    "shell": "/usr/sbin/nologin",
    "groups": frozenset(),
    "modes": {"home": ("alice", "755")},
}


def test_closed_account_needs_nothing() -> None:
    closed = account(**CLOSED)
    assert closing_commands(closed, "alice", remove_home=False) == []
    [command] = closing_commands(closed, "alice", remove_home=True)
    assert str(command) == "rm -rf --one-file-system -- /home/alice"


def test_a_home_that_is_the_system_is_not_deleted() -> None:
    [command] = closing_commands(account(**CLOSED, home="/"), "alice", remove_home=True)
    assert str(command).endswith("; false")


def test_login_is_closed_before_anything_is_ended() -> None:
    found = account(running=True, jobs=["/var/spool/cron/crontabs/alice"], rules=["/etc/sudoers.d/x"])
    texts = [str(command) for command in closing_commands(found, "alice", remove_home=False)]
    assert texts[0].startswith("usermod --password '*' --expiredate 1")
    assert "authorized_keys2" in texts[1]
    assert texts[-1].startswith("loginctl terminate-user alice")


def test_sudoers_file() -> None:
    settings = UsersSettings(
        administrators=[
            ALICE,
            {"name": "bob", "ssh_keys": [KEY], "sudo": "none"},
            {"name": "carol", "ssh_keys": [KEY], "sudo": "password", "password_hash": "$6$x"},
        ]
    )
    assert render("templates/users/50-gpurack.j2", settings=settings).splitlines() == [
        "# Managed by gpurack, role users.",
        "alice ALL=(ALL:ALL) NOPASSWD: ALL",
        "carol ALL=(ALL:ALL) ALL",
    ]
