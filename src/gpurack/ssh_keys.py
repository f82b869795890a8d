"""OpenSSH public keys, as they are written into an inventory."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

import paramiko

KEY_TYPES = (
    "ssh-ed25519",
    "sk-ssh-ed25519@openssh.com",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "ssh-rsa",
)
LEAST_RSA_BITS = 2048


def check_public_key(line: str) -> str:
    """Return a public key without surrounding space.

    Args:
        line: type, base64 and an optional comment, as ``ssh-keygen`` writes it; no options before the type.

    Raises:
        ValueError: the line is not a public key, or one that OpenSSH servers refuse; the message says why.
    """
    text = line.strip()
    if "PRIVATE KEY" in text:
        raise ValueError("this is a private key: replace it everywhere, and put the .pub file's line here")
    if "\n" in text or not text.isprintable():
        raise ValueError("a public key is one line")
    kind, _, rest = text.partition(" ")
    if kind == "ssh-dss":
        raise ValueError("DSA keys are refused by OpenSSH; make one with ssh-keygen -t ed25519")
    if kind not in KEY_TYPES:
        raise ValueError(f"a public key begins with its type, one of {', '.join(KEY_TYPES)}")
    blob = key_blob(text)
    if blob is None or not blob.startswith(len(kind).to_bytes(4, "big") + kind.encode()):
        raise ValueError(f"the text after {kind} is not such a key (cut off, or a line break in it?)")
    fields = _fields(blob)
    if fields is None or len(fields) < 2:
        raise ValueError(f"the text after {kind} is cut off")
    if kind == "ssh-rsa" and (bits := int.from_bytes(fields[-1], "big").bit_length()) < LEAST_RSA_BITS:
        raise ValueError(f"an RSA key of {bits} bits is too weak; {LEAST_RSA_BITS} is the least, ed25519 is better")
    del rest
    return text


def key_blob(line: str) -> bytes | None:
    """Return the binary part of a public key line, which identifies the key whatever its comment says."""
    words = line.split()
    try:
        return base64.b64decode(words[1], validate=True) if len(words) > 1 else None
    except (binascii.Error, ValueError):
        return None


def public_key_of(private_key: Path) -> bytes | None:
    """Return the binary public key that belongs to a private key file; None if that cannot be told.

    A ``.pub`` file beside it is believed; otherwise the key itself is read, unless it is encrypted.
    """
    beside = Path(f"{private_key}.pub")
    if beside.is_file():
        return key_blob(beside.read_text())
    try:
        return paramiko.PKey.from_path(private_key).asbytes()
    except Exception:  # encrypted, a format of its own, not readable: not for this function to judge
        return None


def _fields(blob: bytes) -> list[bytes] | None:
    """Split the length-prefixed fields of a key; None if it is cut off."""
    fields = []
    while blob:
        length = int.from_bytes(blob[:4], "big")
        if len(blob) < 4 + length or len(blob) < 4:
            return None
        fields.append(blob[4 : 4 + length])
        blob = blob[4 + length :]
    return fields
