"""Who may read a store (recipients), and who reads it now (identities): age's own keys, and SSH keys."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from getpass import getpass
from pathlib import Path
from typing import Any

import pyrage
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_ssh_private_key,
)

from gpurack.secrets.errors import StoreError

IDENTITY_VARIABLE = "GPURACK_IDENTITY"
DEFAULT_IDENTITIES = ("~/.config/gpurack/identity", "~/.ssh/id_ed25519", "~/.ssh/id_rsa")

# pyrage has no types: its recipients and identities, of age or of SSH.
RecipientKey = Any
IdentityKey = Any


@dataclass(frozen=True)
class Recipient:
    """Somebody who may read a store.

    Attributes:
        key: ``age1...``, or type and key of an SSH public key.
        label: comment of the SSH key, or the comment line above an age key; may be empty.
    """

    key: str
    label: str = ""

    def __str__(self) -> str:
        short = self.key if len(self.key) <= 70 else f"{self.key[:28]}...{self.key[-12:]}"
        return f"{short} ({self.label})" if self.label else short

    @property
    def age(self) -> RecipientKey:
        """The key as the age library has it.

        Raises:
            ValueError: age has no use for such a key; the message says why.
        """
        try:
            if self.key.startswith("age1"):
                return pyrage.x25519.Recipient.from_str(self.key)
            return pyrage.ssh.Recipient.from_str(self.key)
        except pyrage.RecipientError:
            kind = self.key.split(" ", 1)[0]
            if kind in ("ssh-ed25519", "ssh-rsa") or kind.startswith("age1"):
                raise ValueError("the key is damaged or of a kind that is not supported") from None
            raise ValueError("expected a key age1..., ssh-ed25519 or ssh-rsa: age can use no other") from None


def read_recipients(path: Path) -> list[Recipient]:
    """Return the recipients in a file, which has the format of ``age --recipients-file``.

    Raises:
        StoreError: no such file, nobody in it, or a line that is no key; the message names file and line.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file; {_how_to(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: cannot be read: {error}") from None
    found: dict[str, Recipient] = {}
    comment = ""
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            comment = line.strip().lstrip("# ") if words else ""
            continue
        age = words[0].startswith("age1")
        label = comment if age else " ".join(words[2:]) or comment
        recipient = Recipient(" ".join(words[: 1 if age else 2]), label)
        try:
            _ = recipient.age
        except ValueError as error:
            raise StoreError(f"{path}:{number}: {error}") from None
        found[recipient.key] = recipient
    if not found:
        raise StoreError(f"{path}: nobody in it; {_how_to(path)}")
    return list(found.values())


def _how_to(path: Path) -> str:
    return (
        "write into it the age or SSH public key (ed25519 or RSA) of everyone who may read the secrets, one a line: "
        f"cat ~/.ssh/id_ed25519.pub >> {path}"
    )


def identity_files(chosen: str | None = None) -> list[Path]:
    """Return the files of private keys to try: the chosen one, that of GPURACK_IDENTITY, or the default ones there are.

    Raises:
        StoreError: there is none.
    """
    if path := chosen or os.environ.get(IDENTITY_VARIABLE):
        return [Path(path).expanduser()]
    if found := [path for path in (Path(name).expanduser() for name in DEFAULT_IDENTITIES) if path.is_file()]:
        return found
    raise StoreError(
        f"no identity to read the secrets with: give --identity, set {IDENTITY_VARIABLE}, or have one of "
        f"{', '.join(DEFAULT_IDENTITIES)}"
    )


def read_identities(files: Sequence[Path]) -> list[IdentityKey]:
    """Return the private keys in files: age identities, SSH keys, and either of them protected by a passphrase.

    Raises:
        StoreError: a file cannot be used; the message says why. With several files, only if none can.
    """
    keys: list[IdentityKey] = []
    errors = []
    for file in files:
        try:
            keys += _read(file)
        except StoreError as error:
            errors.append(str(error))
    if not keys or (errors and len(files) == 1):
        raise StoreError("; ".join(errors) or f"{files[0]}: no key in it")
    return keys


@cache
def _read(file: Path) -> tuple[IdentityKey, ...]:
    try:
        mode = file.stat().st_mode
        data = file.read_bytes()
    except OSError as error:
        raise StoreError(f"identity {file}: {error.strerror}") from None
    if stat.S_ISREG(mode) and mode & 0o077:
        raise StoreError(f"identity {file}: others can read it (mode {mode & 0o777:o}); chmod 600 {file}")
    if data.startswith((b"age-encryption.org/", b"-----BEGIN AGE ENCRYPTED FILE-----")):
        data = _with_passphrase(file, lambda words: pyrage.passphrase.decrypt(data, words))
    if data.lstrip().startswith(b"-----BEGIN"):
        return (_ssh(file, data),)
    return _age(file, data)


def _age(file: Path, data: bytes) -> tuple[IdentityKey, ...]:
    try:
        lines = [line.strip() for line in data.decode().splitlines()]
        found = [pyrage.x25519.Identity.from_str(line) for line in lines if line and not line.startswith("#")]
    except (pyrage.IdentityError, UnicodeDecodeError):
        found = []
    if not found:
        raise StoreError(f"identity {file}: neither age identities (AGE-SECRET-KEY-1...) nor an SSH private key")
    return tuple(found)


def _ssh(file: Path, data: bytes) -> IdentityKey:
    try:
        return pyrage.ssh.Identity.from_buffer(data)
    except pyrage.IdentityError as error:
        if "decrypted first" not in str(error):
            raise StoreError(f"identity {file}: age can use ed25519 and RSA keys only, in OpenSSH's format") from None

    def opened(words: str) -> bytes:
        key = load_ssh_private_key(data, words.encode())
        return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())

    return pyrage.ssh.Identity.from_buffer(_with_passphrase(file, opened))


def _with_passphrase(file: Path, use: Callable[[str], bytes]) -> bytes:
    """Ask for a file's passphrase on the terminal and return what it opens."""
    if not sys.stdin.isatty():
        raise StoreError(f"identity {file}: needs a passphrase, and there is no terminal to ask on")
    try:
        return use(getpass(f"Passphrase of {file}: "))
    except (ValueError, TypeError, UnsupportedAlgorithm, pyrage.DecryptError):
        raise StoreError(f"identity {file}: the passphrase is wrong, or the key is of an unknown kind") from None
