"""What a secret must look like, and how gpurack makes one."""

from __future__ import annotations

import base64
import binascii
import re
import secrets
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic_core import core_schema

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler

    from gpurack.secrets.secret import Secret

ALPHABET = string.ascii_letters + string.digits
"""Of passwords: nothing that a shell, a URL, an env file or YAML could read as something else."""


@dataclass(frozen=True)
class Shape:
    """Kind and size of a secret, as metadata of a settings field: ``Annotated[Secret, Shape("hex", 32)]``.

    Attributes:
        kind: ``hex`` and ``base64`` of random bytes, ``password`` of letters and digits, or ``given``: something that
            only others can make, such as a directory's bind password.
        size: bytes of a ``hex`` or ``base64`` secret, characters of a ``password``. An existing secret may be longer;
            of a ``given`` one it is the least number of characters.
        keep: why a new value would lose data; empty where the secret may be rotated at any time.
    """

    kind: Literal["hex", "base64", "password", "given"] = "given"
    size: int = 1
    keep: str = ""

    def __str__(self) -> str:
        unit = "bytes" if self.kind in ("hex", "base64") else "characters"
        return f"{self.kind}, {self.size} {unit}" if self.kind != "given" else "given by others"

    @property
    def can_be_made(self) -> bool:
        """Whether gpurack can make such a secret."""
        return self.kind != "given"

    def make(self) -> str:
        """Return a new random secret.

        Raises:
            ValueError: the kind is ``given``.
        """
        if self.kind == "hex":
            return secrets.token_hex(self.size)
        if self.kind == "base64":
            return base64.b64encode(secrets.token_bytes(self.size)).decode()
        if self.kind == "password":
            return "".join(secrets.choice(ALPHABET) for _ in range(self.size))
        raise ValueError("a given secret cannot be made")

    def problem(self, value: str) -> str:
        """Return why a value does not have this shape, without quoting it; empty if it has."""
        if self.kind == "hex":
            if not re.fullmatch(r"([0-9a-fA-F]{2})+", value) or len(value) < 2 * self.size:
                return f"expected {2 * self.size} or more hexadecimal digits, an even number of them"
        elif self.kind == "base64":
            try:
                size = len(base64.b64decode(value, validate=True))
            except (binascii.Error, ValueError):
                size = -1
            if size < self.size:
                return f"expected {self.size} or more bytes in base64"
        elif len(value) < self.size:
            return f"expected {self.size} or more characters"
        return ""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Give every secret of an annotated field this shape."""

        def shaped(value: Secret | None) -> Secret | None:
            return value if value is None else value.shaped(self)

        return core_schema.no_info_after_validator_function(shaped, handler(source))
