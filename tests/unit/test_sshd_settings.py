"""Settings and pure functions of the sshd role, and of guarded changes."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from pydantic import ValidationError

from gpurack.facts.connection import Connection, ConnectionInfo
from gpurack.facts.guarded import GuardedFiles, GuardState
from gpurack.facts.sshd import MARK, SshServer
from gpurack.operations.guarded import is_in_place
from gpurack.sshd_config import known_of, with_drop_ins
from roles.sshd.deploy import lock_out
from roles.sshd.settings import SshdSettings, name_matches

INCLUDE = "Include /etc/ssh/sshd_config.d/*.conf"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ports": []}, "at least 1 item"),
        ({"ports": [0]}, "greater than or equal to 1"),
        ({"ports": [65536]}, "less than or equal to 65535"),
        ({"root_login": "yes"}, "'no' or 'prohibit-password'"),
        ({"allow_users": ["a b"]}, "should match pattern"),
        ({"ciphers": []}, "at least 1 item"),
        ({"ciphers": ["aes256-ctr,3des-cbc"]}, "should match pattern"),
        ({"confirm_timeout": 5}, "greater than or equal to 10 seconds"),
        ({"confirm_timeout": 3600}, "less than or equal to 10 minutes"),
        ({"extra": {"Port": "22"}}, "Port is managed by this role"),
        ({"extra": {"passwordAuthentication": "yes"}}, "passwordAuthentication is managed by this role"),
        ({"extra": {"Match": "all"}}, "Match is managed by this role"),
        ({"extra": {"Banner none\nX": "y"}}, "is not an sshd_config keyword"),
        ({"extra": {"Banner": "none\nPasswordAuthentication yes"}}, "one line of printable text"),
        ({"extra": {"Banner": " "}}, "one line of printable text"),
        ({"max_auth_tries": 1}, "greater than or equal to 2"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SshdSettings(**values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "data", "field", "message"),
    [
        ({}, {"ssh_user": "root"}, ("root_login",), "would lock it out"),
        ({"allow_users": ["bob"]}, {"ssh_user": "alice"}, ("allow_users",), "would lock out alice"),
        ({}, {"ssh_user": "alice", "ssh_password": "x"}, ("enabled",), "set ssh_key"),
    ],
)
def test_settings_that_lock_gpurack_out_are_problems(
    values: dict[str, Any], data: dict[str, Any], field: tuple[str, ...], message: str
) -> None:
    [(location, text)] = SshdSettings(**values).problems_on("gpu1", data)
    assert location == field
    assert message in text


@pytest.mark.parametrize(
    ("values", "data"),
    [
        ({}, {}),
        ({}, {"ssh_user": "alice", "ssh_key": "k", "ssh_password": "x"}),
        ({"root_login": "prohibit-password"}, {"ssh_user": "root"}),
        ({"allow_users": ["bob", "al*@10.0.0.0/8"]}, {"ssh_user": "alice"}),
    ],
)
def test_settings_that_do_not_are_none(values: dict[str, Any], data: dict[str, Any]) -> None:
    assert list(SshdSettings(**values).problems_on("gpu1", data)) == []


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [("alice", True), ("al?ce", True), ("a*", True), ("*", True), ("alice@10.1.2.3", True), ("alic", False)],
)
def test_name_matches(pattern: str, matches: bool) -> None:
    assert name_matches("alice", pattern) is matches


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"root_login": "no"}, "connected as root"),
        ({"root_login": "prohibit-password", "allow_users": ["bob"]}, "not in sshd.allow_users"),
        ({"root_login": "prohibit-password", "allow_groups": ["ssh"]}, "in no group of sshd.allow_groups"),
        ({"root_login": "prohibit-password", "ports": [2222]}, "connected on port 22"),
    ],
)
def test_lock_out_is_foreseen_on_the_host(values: dict[str, Any], message: str) -> None:
    problem = lock_out(SshdSettings(**values), ConnectionInfo("root", frozenset({"root"}), 22))
    assert problem is not None
    assert message in problem


def test_no_lock_out() -> None:
    settings = SshdSettings(allow_users=("al*",), allow_groups=("adm*",), ports=(22, 2222))
    assert lock_out(settings, ConnectionInfo("alice", frozenset({"alice", "admins"}), 2222)) is None
    assert lock_out(settings, ConnectionInfo("alice", frozenset({"admins"}), None)) is None


def test_include_is_put_first() -> None:
    assert with_drop_ins(["# c", "UsePAM yes"]) == f"{INCLUDE}\n# c\nUsePAM yes\n"
    assert with_drop_ins([]) == f"{INCLUDE}\n"


def test_include_behind_other_keywords_is_moved() -> None:
    assert with_drop_ins(["Port 22", INCLUDE, "UsePAM yes"]) == f"{INCLUDE}\nPort 22\nUsePAM yes\n"


@pytest.mark.parametrize("first", [INCLUDE, f"include /etc/other.conf {INCLUDE.split()[1]}"])
def test_include_that_is_first_is_left_alone(first: str) -> None:
    lines = ["# Debian's", "", first, "Port 22"]
    assert with_drop_ins(lines) == "\n".join(lines) + "\n"
    assert with_drop_ins(with_drop_ins(lines).splitlines()) == with_drop_ins(lines)


def test_known_algorithms_keep_the_wanted_order() -> None:
    assert known_of(["new", "b", "a"], ["a", "b", "c"], "x") == ["b", "a"]


def test_no_known_algorithm_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"knows none of sshd\.macs = new; it knows a, b"):
        known_of(["new"], ["a", "b"], "sshd.macs")


def test_connection_fact() -> None:
    fact = Connection()
    assert fact.process(["alice", "alice adm", "10.0.0.9 50000 10.0.0.1 2222"]) == ConnectionInfo(
        "alice", frozenset({"alice", "adm"}), 2222
    )
    assert fact.process(["root", "root", ""]).port is None


def test_ssh_server_fact() -> None:
    output = ["k1", "k2", MARK, "c1", MARK, "m1", MARK, "h1", MARK, INCLUDE, "", "UsePAM yes"]
    info = SshServer().process(output)
    assert info.kex == ("k1", "k2")
    assert info.host_key_algorithms == ("h1",)
    assert info.main_config == (INCLUDE, "", "UsePAM yes")


def test_guarded_files_are_in_place_only_when_equal_and_confirmed() -> None:
    checksum = hashlib.sha256(b"text\n").hexdigest()
    state = GuardedFiles().process([f"{checksum}  /etc/a b", "mode 644 /etc/a b"])
    assert state == GuardState(False, {"/etc/a b": checksum}, {"/etc/a b": "644"})
    assert is_in_place(state, {"/etc/a b": "text\n"}, "0644")
    assert not is_in_place(state, {"/etc/a b": "other\n"}, "644")
    assert not is_in_place(state, {"/etc/a b": "text\n"}, "440")
    assert not is_in_place(state, {"/etc/a b": "text\n", "/etc/c": ""}, "644")
    pending = GuardedFiles().process(["pending", f"{checksum}  /etc/a b", "mode 644 /etc/a b"])
    assert not is_in_place(pending, {"/etc/a b": "text\n"}, "644")
