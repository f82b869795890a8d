"""Secrets: references in settings, the encrypted store, and the commands on it."""

from __future__ import annotations

import copy
import json
import os
import pickle
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pyinfra_cli.util
import pyrage
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError

from gpurack import problems
from gpurack.cli import main
from gpurack.inventory import load
from gpurack.rendering import block_options, render
from gpurack.secrets import Secret, SecretError, Shape, StoreError, demand, keys, stores, within
from gpurack.secrets.document import Document
from gpurack.secrets.editing import edited, is_in_memory
from gpurack.secrets.stores import Store
from gpurack.settings import Layer, RoleSettings, merge

CANARY = "canary-5b1f00d5"


class Account(BaseModel):
    password: Annotated[Secret, Shape("password", 12)]


class DoorSettings(RoleSettings):
    key: Annotated[Secret, Shape("hex", 16)] = Secret.stored("door_key")
    salt: Annotated[Secret, Shape("hex", 16, keep="what is locked with it stays locked")] = Secret.stored("door_salt")
    bind: Secret | None = None
    accounts: dict[str, Account] = Field(default_factory=dict)
    others: tuple[Secret, ...] = ()


@pytest.fixture
def identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file of a private age key that is used for everything."""
    key = pyrage.x25519.Identity.generate()
    path = tmp_path / "identity"
    path.write_text(f"# public key: {key.to_public()}\n{key}\n")
    path.chmod(0o600)
    monkeypatch.setenv(keys.IDENTITY_VARIABLE, str(path))
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    return path


@pytest.fixture
def folder(tmp_path: Path, identity: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the directory of an inventory whose one role asks for secrets, with its reader as the recipient."""
    for module in (problems, demand):
        monkeypatch.setattr(module, "role_models", lambda: {"door": DoorSettings})
    monkeypatch.setattr("pyinfra_cli.util.PYTHON_CODES", {})
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "inventories/prod"
    path.mkdir(parents=True)
    (path / "hosts.py").write_text('gpu = [("gpu1", {})]\n')
    public = identity.read_text().splitlines()[0].split()[-1]
    (path / "recipients.txt").write_text(f"# the reader\n{public}\n")
    stores.use(path)
    yield path
    stores.use(Path("/nowhere"))


def run(*arguments: str, stdin: str = "") -> Result:
    """Run gpurack secrets COMMAND inventories/prod."""
    command, *rest = arguments
    return CliRunner().invoke(main, ["secrets", command, "inventories/prod", *rest], input=stdin)


def found_problems() -> list[str]:
    pyinfra_cli.util.PYTHON_CODES.clear()  # pyinfra's cache of files, by relative name
    return [str(item) for item in problems.problems_in(load("inventories/prod"), "inventories/prod/hosts.py")]


def ssh_key(path: Path, kind: str = "ed25519", words: str = "") -> str:
    """Make an SSH key and return its public half."""
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", words, "-C", "somebody@desk", "-f", str(path)], check=True)
    return path.with_suffix(".pub").read_text()


# ---- the type


def test_a_secret_prints_as_asterisks_everywhere(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(CANARY + "\n")
    settings = DoorSettings.model_validate({"bind": {"file": str(file)}})
    assert settings.bind is not None and settings.bind.reveal() == CANARY
    shown = [str(settings), repr(settings), f"{settings.bind}", settings.model_dump_json(), str(settings.model_dump())]
    shown += [repr(pickle.dumps(settings)), repr(copy.deepcopy(settings)), str(vars(settings)), repr(settings.bind)]
    assert not [text for text in shown if CANARY in text]
    assert json.loads(settings.model_dump_json())["bind"] == "********"
    assert problems.masked(("other",), settings.bind) == "********"
    assert problems.masked(("bind",), "hunter2", DoorSettings) == "********"


def test_a_template_that_would_print_the_asterisks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOOR", CANARY)
    template = tmp_path / "x.j2"
    template.write_text("{{ secret.reveal() }}")
    assert render(str(template), secret=Secret("env", "DOOR")) == CANARY
    template.with_name("y.j2").write_text("{{ secret }}")
    with pytest.raises(TypeError, match=r"reveal\(\)"):
        render(str(template.with_name("y.j2")), secret=Secret("env", "DOOR"))
    assert "finalize" in block_options()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hunter2", "a secret is not written here"),
        (["hunter2"], "a secret is not written here"),
        ({"stor": "hunter2"}, "expected exactly one of"),
        ({"store": "a", "file": "hunter2"}, "expected exactly one of"),
        ({}, "expected exactly one of"),
        ({"store": "hunter2 hunter2"}, "the name of a secret has"),
        ({"store": ""}, "store is a text that is not empty"),
        ({"env": "hunter2="}, "the name of a variable"),
        ({"file": 7}, "file is a text"),
        ({"command": "pass show hunter2"}, "a command is a list of words"),
        ({"command": []}, "a command is a list of words"),
        ({"command": ["pass", 7]}, "a command is a list of words"),
    ],
)
def test_wrong_references_say_what_is_allowed_and_quote_nothing(folder: Path, value: Any, message: str) -> None:
    (folder / "group_data").mkdir()
    (folder / "group_data/gpu.py").write_text(f'door = {{"enabled": True, "bind": {value!r}}}\n')
    line = next(line for line in found_problems() if "door.bind" in line)
    assert line.startswith("inventories/prod/group_data/gpu.py [gpu1]: door.bind = ********: ")
    assert message in line and "hunter2" not in line


@given(
    st.recursive(st.none() | st.text(max_size=8) | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
def test_any_value_is_a_reference_or_a_message(value: Any) -> None:
    try:
        secret = DoorSettings.model_validate({"bind": value}).bind
    except ValidationError as errors:
        assert all(error["type"] == "secret_form" for error in errors.errors())
    else:
        assert secret is None or DoorSettings.model_validate({"bind": secret.reference}).bind == secret


def test_files_variables_and_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"two\nlines\r\n")
    assert Secret("file", str(file)).reveal() == "two\nlines"
    monkeypatch.setenv("DOOR", CANARY)
    assert Secret("env", "DOOR").reveal() == CANARY
    counted = ("sh", "-c", f"echo run >> {tmp_path}/runs; echo {CANARY}")
    assert [Secret("command", counted).reveal() for _ in range(3)] == [CANARY] * 3
    assert (tmp_path / "runs").read_text() == "run\n"


@pytest.mark.parametrize(
    ("secret", "message"),
    [
        (Secret("env", "GPURACK_NOT_SET"), "variable GPURACK_NOT_SET is not set"),
        (Secret("file", "/nowhere/secret"), "/nowhere/secret: No such file"),
        (Secret("file", "/"), "/: Is a directory"),
        (Secret("file", "/dev/null"), "the secret is empty"),
        (Secret("command", ("/nowhere/pass", "--token=hunter2")), "command /nowhere/pass: No such file"),
        (Secret("command", ("sh", "-c", "echo hunter2; exit 3")), "exit status 3"),
        (Secret("command", ("printf", "\\377hunter2")), "not UTF-8"),
        (Secret("command", ("printf", "a\\000hunter2")), "NUL"),
        (Secret("command", ("echo", "hunter2"), Shape("hex", 4)), "8 or more hexadecimal digits"),
    ],
)
def test_what_cannot_be_had_is_said_without_a_value(secret: Secret, message: str) -> None:
    with pytest.raises(SecretError) as caught:
        secret.reveal()
    assert message in str(caught.value) and "hunter2" not in str(caught.value)


def test_a_reference_of_a_stronger_layer_replaces_the_whole(tmp_path: Path) -> None:
    layers = [
        Layer("group all", {"door": {"bind": {"store": "a"}, "accounts": {"x": {"password": {"store": "x"}}}}}),
        Layer(
            "host gpu1", {"door": {"bind": {"command": ["pass", "b"]}, "accounts": {"y": {"password": {"env": "Y"}}}}}
        ),
    ]
    merged = merge(layers, "door")
    assert merged.values["bind"] == {"command": ["pass", "b"]}
    assert merged.values["accounts"] == {"x": {"password": {"store": "x"}}, "y": {"password": {"env": "Y"}}}
    assert merged.origin(("bind",)) is layers[1]


def test_secrets_are_found_at_any_depth_with_their_shapes() -> None:
    values = {
        "accounts": {"ada": {"password": {"store": "ada"}}},
        "others": [{"env": "A"}, {"file": "b"}],
    }
    found = dict(within(DoorSettings.model_validate(values)))
    assert set(found) == {("key",), ("salt",), ("accounts", "ada", "password"), ("others", 0), ("others", 1)}
    assert found["accounts", "ada", "password"].shape == Shape("password", 12)
    assert found["key",].shape.kind == "hex" and found["others", 0].shape == Shape()


@given(st.sampled_from(["hex", "base64", "password"]), st.integers(1, 64))
def test_what_is_made_has_its_shape_and_is_new(kind: Any, size: int) -> None:
    shape = Shape(kind, size)
    assert shape.problem(shape.make()) == ""
    assert shape.problem(shape.make()[:-1]) != ""
    assert shape.problem("") != ""
    if size > 16:
        assert shape.make() != shape.make()


def test_a_given_secret_is_not_made() -> None:
    with pytest.raises(ValueError, match="cannot be made"):
        Shape().make()


# ---- the document


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}", fullmatch=True)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)


@given(
    st.dictionaries(NAMES, TEXTS, max_size=4), st.dictionaries(NAMES, TEXTS, max_size=4), st.lists(NAMES, max_size=3)
)
def test_every_text_comes_back_as_it_was(first: dict[str, str], second: dict[str, str], recipients: list[str]) -> None:
    document = Document().with_values(first).with_values(second).encrypted_for(recipients)
    assert Document(document.text).values == {**first, **second}
    assert list(Document(document.text).encrypted_to) == recipients
    assert document.text.startswith("# Secrets of this inventory.")
    assert Document(document.without(first).text).values == {k: v for k, v in second.items() if k not in first}


def test_comments_and_order_stay() -> None:
    text = 'version = 1\n\n[secrets]\n# from the directory team, until 2027\nbind = "old"  # LDAP\nother = "x"\n'
    changed = Document(text).with_values({"bind": "new"}).encrypted_for(["age1x"])
    assert changed.text == text.replace("old", "new").join(['encrypted_to = [\n    "age1x",\n]\n', ""])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected version = 1"),
        ("version = 2\n[secrets]\n", "a newer gpurack"),
        ("version = true\n", "expected version = 1"),
        ('version = 1\nhunter2 = "x"\n[secrets]\n', "1 unknown names outside"),
        ('version = 1\n[secrets]\na = "hunter2\n', "not valid TOML"),
        ("version = 1\n[secrets]\na = hunter2\n", "not valid TOML"),
        ("version = 1\n[secrets]\na = 7\n", "secret a: expected a text"),
        ('version = 1\n[secrets]\na = ""\n', "secret a: is empty"),
        ('version = 1\n[secrets]\na.b = "hunter2"\n', "secret a: expected a text"),
        ('version = 1\n[secrets]\n"a b" = "hunter2"\n', "the name of a secret"),
        ('version = 1\nsecrets = "hunter2"\n', "is a table"),
        ('version = 1\n[secrets]\na = "x"\na = "hunter2"\n', "not valid TOML"),
    ],
)
def test_wrong_documents_say_what_is_wrong_and_quote_no_value(text: str, message: str) -> None:
    with pytest.raises(SecretError) as caught:
        Document(text)
    assert message in str(caught.value) and "hunter2" not in str(caught.value)


# ---- the store


def test_set_get_and_what_is_on_the_disk(folder: Path) -> None:
    assert run("set", "bind", stdin=CANARY + "\n").exit_code == 0
    assert run("get", "bind").stdout == CANARY + "\n"
    store = folder / "secrets.age"
    assert stat.S_IMODE(store.stat().st_mode) == 0o600
    assert store.read_text().startswith("-----BEGIN AGE ENCRYPTED FILE-----")
    everything = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert CANARY.encode() not in everything
    assert sorted(path.name for path in folder.iterdir()) == ["hosts.py", "recipients.txt", "secrets.age"]


def test_generate_makes_what_is_missing_and_nothing_else(folder: Path) -> None:
    (folder / "group_data").mkdir()
    (folder / "group_data/gpu.py").write_text(
        'door = {"bind": {"store": "bind"}, "accounts": {"ada": {"password": {"store": "ada"}}}}\n'
    )
    first = run("generate")
    assert first.exit_code == 1, first.output
    assert "made door_key (hex, 16 bytes) for door.key" in first.output
    assert "bind is for you to give (door.bind): gpurack secrets set inventories/prod bind" in first.output
    before = Store(folder).document().values
    assert set(before) == {"door_key", "door_salt", "ada"} and len(before["ada"]) == 12
    assert run("check").exit_code == 1
    assert run("set", "bind", stdin="given").exit_code == 0
    again = run("generate")
    assert again.exit_code == 0 and "nothing is missing" in again.output
    assert Store(folder).document().values == {**before, "bind": "given"}
    assert not [value for value in before.values() if value in first.output + again.output + run("list").output]
    assert run("check").exit_code == 0
    assert found_problems() == []


def test_preflight_names_file_field_and_the_nearest_name(folder: Path) -> None:
    lines = found_problems()
    assert len(lines) == 2 and all("no such store; gpurack secrets generate inventories/prod" in line for line in lines)
    run("generate")
    (folder / "group_data").mkdir()
    (folder / "group_data/gpu.py").write_text('door = {"key": {"store": "door_kye"}}\n')
    [line] = found_problems()
    assert line.startswith("inventories/prod/group_data/gpu.py [gpu1]: door.key = ********: ")
    assert line.endswith("secrets.age has no secret door_kye; did you mean door_key?")
    (folder / "group_data/gpu.py").write_text('door = {"enabled": False, "key": {"store": "door_kye"}}\n')
    assert found_problems() == []


def test_rotate_respects_what_would_be_lost(folder: Path) -> None:
    run("generate")
    before = Store(folder).document().values
    kept = run("rotate", "door_salt")
    assert kept.exit_code == 2 and "what is locked with it stays locked" in kept.output
    assert "did you mean door_key?" in run("rotate", "door_kex").output
    run("set", "other", stdin="x")
    assert "no setting says how to make it" in run("rotate", "other").output
    assert run("rotate", "door_key").exit_code == 0
    after = Store(folder).document().values
    assert after["door_salt"] == before["door_salt"] and after["door_key"] != before["door_key"]
    assert run("rotate", "door_salt", "--force").exit_code == 0
    assert Store(folder).document().values["door_salt"] != before["door_salt"]


def test_rekey_follows_the_list_of_recipients(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("set", "bind", stdin=CANARY)
    mine = (folder / "recipients.txt").read_text()
    (folder / "recipients.txt").write_text(mine + ssh_key(tmp_path / "colleague") + ssh_key(tmp_path / "rsa", "rsa"))
    for change in (("set", "bind"), ("generate",), ("edit",)):
        refused = run(*change, stdin="x")
        assert refused.exit_code == 2 and "(2 added, 0 removed)" in refused.output, refused.output
    assert run("check").exit_code == 1
    done = run("rekey")
    assert done.exit_code == 0 and "+ ssh-ed25519" in done.output and "somebody@desk" in done.output
    for name in ("colleague", "rsa"):
        assert Store(folder, str(tmp_path / name)).value("bind") == CANARY
    (folder / "recipients.txt").write_text(mine)
    assert "still able to read" in run("check").output
    done = run("rekey")
    assert done.exit_code == 0 and "- ssh-rsa" in done.output and "rotate them" in done.output
    refused = run("get", "bind", "--identity", str(tmp_path / "colleague"))
    assert refused.exit_code == 2 and "is not encrypted to you" in refused.output


def test_nobody_locks_himself_out(folder: Path, tmp_path: Path) -> None:
    run("set", "bind", stdin=CANARY)
    (folder / "recipients.txt").write_text(ssh_key(tmp_path / "colleague"))
    refused = run("rekey")
    assert refused.exit_code == 2 and "your own identity is not among" in refused.output
    assert Store(folder).value("bind") == CANARY


def test_wrong_recipients_are_named_by_line(folder: Path, tmp_path: Path) -> None:
    file = folder / "recipients.txt"
    ecdsa = ssh_key(tmp_path / "ecdsa", "ecdsa")
    for text, message in (
        ("", "nobody in it"),
        ("# only a comment\n", "nobody in it"),
        (file.read_text() + ecdsa, "recipients.txt:3: expected a key age1..., ssh-ed25519 or ssh-rsa"),
        ("age1nonsense\n", "recipients.txt:1: the key is damaged"),
        ("ssh-ed25519 AAAA\n", "recipients.txt:1: the key is damaged"),
    ):
        file.write_text(text)
        refused = run("set", "bind", stdin="x")
        assert refused.exit_code == 2 and message in refused.output, refused.output
    file.unlink()
    assert "no such file; write into it" in run("set", "bind", stdin="x").output


def test_wrong_identities_are_explained(
    folder: Path, identity: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("set", "bind", stdin=CANARY)
    ssh_key(tmp_path / "ecdsa", "ecdsa")
    ssh_key(tmp_path / "locked", words="words")
    (tmp_path / "garbage").write_bytes(b"\xff\xfe")
    (tmp_path / "garbage").chmod(0o600)
    for name, message in (
        ("ecdsa", "ed25519 and RSA keys only"),
        ("locked", "needs a passphrase, and there is no terminal"),
        ("garbage", "neither age identities"),
        ("missing", "No such file"),
    ):
        refused = run("get", "bind", "--identity", str(tmp_path / name))
        assert refused.exit_code == 2 and message in refused.output, refused.output
    identity.chmod(0o644)
    keys._read.cache_clear()
    assert "others can read it (mode 644)" in run("get", "bind").output
    monkeypatch.delenv(keys.IDENTITY_VARIABLE)
    assert "no identity to read the secrets with" in run("get", "bind").output


def test_keys_with_a_passphrase_are_opened_on_a_terminal(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = ssh_key(tmp_path / "locked", words="open sesame")
    (folder / "recipients.txt").write_text((folder / "recipients.txt").read_text() + public)
    run("set", "bind", stdin=CANARY)
    sealed = tmp_path / "sealed"
    sealed.write_bytes(pyrage.passphrase.encrypt((tmp_path / "identity").read_bytes(), "open sesame"))
    sealed.chmod(0o600)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for name in ("locked", "sealed"):
        monkeypatch.setattr(keys, "getpass", lambda _: "wrong")
        with pytest.raises(StoreError, match="the passphrase is wrong"):
            Store(folder, str(tmp_path / name)).value("bind")
        monkeypatch.setattr(keys, "getpass", lambda _: "open sesame")
        assert Store(folder, str(tmp_path / name)).value("bind") == CANARY


@pytest.mark.parametrize("armored", [True, False])
def test_a_store_cut_anywhere_is_an_error_and_never_half_a_store(folder: Path, *, armored: bool) -> None:
    run("set", "bind", stdin=CANARY)
    path = folder / "secrets.age"
    text = Store(folder).document().text.encode()
    whole = pyrage.encrypt(text, [item.age for item in Store(folder).recipients()], armored=armored)
    for length in {*range(0, len(whole) - 1, 7), len(whole) - 3}:
        path.write_bytes(whole[:length])
        with pytest.raises(StoreError, match=r"secrets\.age: is (damaged|empty|not an age file)"):
            Store(folder).document()
    path.write_bytes(b"<<<<<<< HEAD\n" + whole)
    with pytest.raises(StoreError, match="merge conflicts"):
        Store(folder).document()
    path.write_bytes(whole)
    assert Store(folder).value("bind") == CANARY


def test_two_writers_do_not_lose_each_others_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("set", "bind", stdin=CANARY)
    monkeypatch.setattr(stores, "LOCK_SECONDS", 0.2)
    with Store(folder).locked():
        refused = run("set", "other", stdin="x")
        assert refused.exit_code == 2 and "another gpurack secrets is changing it" in refused.output
        assert run("edit").exit_code == 2
        assert run("get", "bind").stdout == CANARY + "\n"
    assert run("set", "other", stdin="x").exit_code == 0
    assert Store(folder).document().values == {"bind": CANARY, "other": "x"}


def test_a_failed_write_leaves_the_store_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("set", "bind", stdin=CANARY)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stores.os, "fsync", full)
    refused = run("set", "bind", stdin="new")
    assert refused.exit_code == 2 and "No space left on device; the store is as before" in refused.output
    assert run("get", "bind").stdout == CANARY + "\n"
    assert sorted(path.name for path in folder.iterdir()) == ["hosts.py", "recipients.txt", "secrets.age"]


def test_set_refuses_what_does_not_fit(folder: Path) -> None:
    for name, value, message in (
        ("door_key", "short", "32 or more hexadecimal digits"),
        ("bind", "", "is empty"),
        ("a b", "x", "the name of a secret"),
    ):
        refused = run("set", name, stdin=value)
        assert refused.exit_code == 2 and message in refused.output, refused.output
    assert not (folder / "secrets.age").exists()


# ---- the editor


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_edit_in_memory_only(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("set", "bind", stdin="before")
    seen = tmp_path / "seen"
    command = f'stat -c "%a %n" "$1" > {seen}; stat -f -c %T "$1" >> {seen}; sed -i s/before/{CANARY}/ "$1"'
    monkeypatch.setenv("EDITOR", script(tmp_path / "editor", command))
    monkeypatch.delenv("VISUAL", raising=False)
    done = run("edit")
    assert done.exit_code == 0 and "changed: bind" in done.output
    assert Store(folder).value("bind") == CANARY
    mode, path = seen.read_text().splitlines()[0].split(" ")
    assert mode == "600" and seen.read_text().splitlines()[1] == "tmpfs" and not Path(path).parent.exists()
    assert "nothing changed" in run("edit").output


@pytest.mark.parametrize("command", ["exit 1", 'sed -i s/version/versoin/ "$1"', 'rm "$1"'])
def test_an_edit_that_goes_wrong_changes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    run("set", "bind", stdin=CANARY)
    before = (folder / "secrets.age").read_bytes()
    monkeypatch.setenv("EDITOR", script(tmp_path / "editor", command))
    monkeypatch.delenv("VISUAL", raising=False)
    refused = run("edit")
    assert refused.exit_code == 2 and "nothing is changed" in refused.output
    assert (folder / "secrets.age").read_bytes() == before and CANARY not in refused.output


def test_no_file_system_in_memory_no_editing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpurack.secrets.editing.is_in_memory", lambda _: False)
    with pytest.raises(StoreError, match="use gpurack secrets set"):
        edited("x")
    monkeypatch.undo()
    assert is_in_memory(Path("/dev/shm")) and not is_in_memory(tmp_path / "gone")
    assert os.access("/proc", os.R_OK) and not is_in_memory(Path("/proc"))
