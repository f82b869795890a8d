"""The text inside a store: TOML with a version, and one flat table of names and values.

Comments and order stay as somebody wrote them. ``encrypted_to`` is what the store was last encrypted to: age itself
does not tell.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping

import tomlkit

from gpurack.secrets.errors import SecretError, StoreError

VERSION = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
NAME_RULE = "the name of a secret has up to 64 letters, digits, _ and -, and starts with a letter or digit"
EMPTY = """\
# Secrets of this inventory. Change them with `gpurack secrets edit`; comments stay.
version = 1
encrypted_to = []

[secrets]
"""


class Document:
    """The decrypted content of a store."""

    def __init__(self, text: str = EMPTY) -> None:
        """Parse a text.

        Raises:
            StoreError: it is not such a document; the message names the place and quotes no value.
        """
        self.text = text
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise StoreError(f"not valid TOML: {_without_quotes(str(error))}") from None
        if data.get("version") != VERSION or isinstance(data.get("version"), bool):
            raise StoreError(f"expected version = {VERSION}; a newer gpurack may have written this")
        if unknown := set(data) - {"version", "encrypted_to", "secrets"}:
            raise StoreError(f"{len(unknown)} unknown names outside of [secrets]; secrets stand below that line")
        secrets = data.get("secrets", {})
        if not isinstance(secrets, Mapping):
            raise StoreError("[secrets] is a table of names and values")
        for name, value in secrets.items():
            check_name(name)
            check_value(name, value)
        keys = data.get("encrypted_to", [])
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise StoreError("encrypted_to is a list of keys; gpurack writes it")
        self.values: dict[str, str] = dict(secrets)
        self.encrypted_to: tuple[str, ...] = tuple(keys)

    def with_values(self, values: Mapping[str, str]) -> Document:
        """Return the document with values set or replaced.

        Raises:
            SecretError: a name or a value cannot be kept.
        """
        document = tomlkit.parse(self.text)
        if "secrets" not in document:
            document["secrets"] = tomlkit.table()
        table = document["secrets"]
        for name, value in values.items():
            check_name(name)
            check_value(name, value)
            table[name] = tomlkit.item(_quoted(value))
        return Document(tomlkit.dumps(document))

    def without(self, names: Iterable[str]) -> Document:
        """Return the document without some secrets.

        Raises:
            KeyError: one of them is not there.
        """
        document = tomlkit.parse(self.text)
        for name in names:
            document["secrets"].remove(name)
        return Document(tomlkit.dumps(document))

    def encrypted_for(self, keys: Iterable[str]) -> Document:
        """Return the document with the keys it is going to be encrypted to."""
        keys = list(keys)
        if list(self.encrypted_to) == keys:
            return self
        document = tomlkit.parse(self.text)
        listed = tomlkit.array()
        for key in keys:
            listed.append(key)
        listed.multiline(multiline=True)
        if "encrypted_to" in document:
            document["encrypted_to"] = listed
            return Document(tomlkit.dumps(document))
        head = tomlkit.document()
        head["encrypted_to"] = listed
        return Document(tomlkit.dumps(head) + self.text)  # at the start, where it belongs to no table


def _quoted(value: str) -> tomlkit.items.String:
    # TOML drops a newline at the start of a text of several lines.
    return tomlkit.string(value, multiline="\n" in value and "\r" not in value and not value.startswith("\n"))


def check_name(name: str) -> None:
    """Refuse what cannot be the name of a secret.

    Raises:
        SecretError: with the rule.
    """
    if not NAME.fullmatch(name):
        raise SecretError(NAME_RULE)


def check_value(name: str, value: object) -> None:
    """Refuse what cannot be a secret's value.

    Raises:
        SecretError: with the name.
    """
    if not isinstance(value, str):
        raise SecretError(f"secret {name}: expected a text in quotation marks")
    if not value:
        raise SecretError(f"secret {name}: is empty")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise SecretError(f"secret {name}: has a character in it that no file can hold")


def _without_quotes(message: str) -> str:
    """Return a parser's message without what it quotes of the text."""
    return re.sub(r"'.*'|\".*\"", "...", message, flags=re.DOTALL)
