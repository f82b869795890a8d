"""The type of a setting that holds a secret: where it is, never what it is.

A :class:`Secret` holds a reference only, so that no copy, dump or traceback of settings has the value in it. The value
is looked up when :meth:`Secret.reveal` is called, and kept in this process's memory.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic_core import PydanticCustomError, core_schema

from gpurack.secrets import stores
from gpurack.secrets.errors import SecretError
from gpurack.secrets.shape import Shape

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler

    from gpurack.settings import Location

MASK = "********"
FORMS = ("store", "file", "env", "command")
COMMAND_TIMEOUT_SECONDS = 120
"""A person may have to type a passphrase or touch a key."""

EXAMPLE = '{"store": "name"}, {"file": "path"}, {"env": "VARIABLE"} or {"command": ["pass", "show", "name"]}'


class Secret:
    """Where a secret is: in the inventory's store, a file, the environment, or what a command prints.

    Prints as asterisks everywhere. ``file`` is relative to the repository's root; of files and commands one newline at
    the end is dropped.
    """

    __slots__ = ("_form", "_shape", "_source")

    def __init__(self, form: str, source: str | tuple[str, ...], shape: Shape | None = None) -> None:
        self._form, self._source, self._shape = form, source, shape or Shape()

    @classmethod
    def stored(cls, name: str) -> Secret:
        """Return the secret of this name in the inventory's store, for defaults of settings."""
        return cls("store", name)

    @property
    def reference(self) -> dict[str, Any]:
        """What stands in the inventory, such as ``{"store": "name"}``."""
        return {self._form: list(self._source) if isinstance(self._source, tuple) else self._source}

    @property
    def store_name(self) -> str | None:
        """Name in the store; None for a secret kept elsewhere."""
        return str(self._source) if self._form == "store" else None

    @property
    def shape(self) -> Shape:
        """What the secret must look like."""
        return self._shape

    def shaped(self, shape: Shape) -> Secret:
        """Return the same secret with another shape."""
        return Secret(self._form, self._source, shape)

    def reveal(self) -> str:
        """Return the value.

        Raises:
            SecretError: it cannot be had, is empty, or has not the shape it must have.
        """
        value = _value(self._form, self._source)
        if not value:
            raise SecretError(f"{self._where}: the secret is empty")
        if problem := self._shape.problem(value):
            raise SecretError(f"{self._where}: {problem}")
        return value

    @property
    def _where(self) -> str:
        if self._form == "store":
            return f"secret {self._source} of the store"
        if self._form == "command":
            return f"command {self._source[0]}"
        return f"variable {self._source}" if self._form == "env" else str(self._source)

    def __str__(self) -> str:
        return MASK

    def __repr__(self) -> str:
        return f"Secret('{MASK}')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and (self._form, self._source) == (other._form, other._source)

    def __hash__(self) -> int:
        return hash((self._form, self._source))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Accept a reference, and show asterisks in JSON."""
        return core_schema.no_info_plain_validator_function(
            _validate,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda _: MASK, when_used="json"),
        )


def _validate(value: Any) -> Secret:
    if isinstance(value, Secret):
        return value
    if not isinstance(value, Mapping):
        raise PydanticCustomError("secret_form", "a secret is not written here: name where it is, as " + EXAMPLE)
    if len(value) != 1 or next(iter(value)) not in FORMS:
        raise PydanticCustomError("secret_form", "expected exactly one of " + EXAMPLE)
    [(form, source)] = value.items()
    if form == "command":
        words = tuple(source) if isinstance(source, list | tuple) else ()
        if not words or not all(isinstance(word, str) and word and "\0" not in word for word in words):
            raise PydanticCustomError("secret_form", 'a command is a list of words, such as ["pass", "show", "name"]')
        return Secret(form, words)
    if not isinstance(source, str) or not source or "\0" in source:
        raise PydanticCustomError("secret_form", f"{form} is a text that is not empty")
    if form == "store" and not stores.NAME.fullmatch(source):
        raise PydanticCustomError("secret_form", stores.NAME_RULE)
    if form == "env" and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", source):
        raise PydanticCustomError("secret_form", "the name of a variable has letters, digits and _ only")
    return Secret(form, source)


def is_reference(value: Any) -> bool:
    """Tell a secret's reference from other mappings: one of a stronger layer replaces one of a weaker as a whole."""
    if not isinstance(value, Mapping) or len(value) != 1:
        return False
    [(form, source)] = value.items()
    return isinstance(source, list | tuple) if form == "command" else form in FORMS and isinstance(source, str)


def _value(form: str, source: str | tuple[str, ...]) -> str:
    if isinstance(source, tuple):
        return _printed_by(source)
    if form == "store":
        return stores.current().value(source)
    if form == "env":
        if source not in os.environ:
            raise SecretError(f"the environment variable {source} is not set")
        return os.environ[source]
    try:
        return _text_of(Path(source).expanduser().read_bytes(), source)
    except OSError as error:
        raise SecretError(f"{source}: {error.strerror or 'cannot be read'}") from None


@cache
def _printed_by(command: tuple[str, ...]) -> str:
    """Return what a command prints; it is run once in a process, and may ask on the terminal.

    What it prints to standard error goes to the terminal and into no message. Its arguments are in no message either.
    """
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=COMMAND_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise SecretError(f"command {command[0]}: no answer in {COMMAND_TIMEOUT_SECONDS} s") from None
    except OSError as error:
        raise SecretError(f"command {command[0]}: {error.strerror}") from None
    if done.returncode:
        raise SecretError(f"command {command[0]}: exit status {done.returncode}; run it by hand to see why")
    return _text_of(done.stdout, f"command {command[0]}")


def _text_of(data: bytes, where: str) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise SecretError(f"{where}: not UTF-8 text") from None
    if "\0" in text:
        raise SecretError(f"{where}: has a NUL character in it")
    return text.removesuffix("\r\n") if text.endswith("\r\n") else text.removesuffix("\n")


def within(value: Any, at: Location = ()) -> Iterator[tuple[Location, Secret]]:
    """Yield every secret in settings with its location, going down through models, lists and dictionaries."""
    if isinstance(value, Secret):
        yield at, value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from within(getattr(value, name), (*at, name))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from within(item, (*at, key))
    elif isinstance(value, list | tuple | set | frozenset):
        for number, item in enumerate(value):
            yield from within(item, (*at, number))
