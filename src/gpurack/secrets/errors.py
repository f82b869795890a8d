"""What goes wrong with secrets. No message ever holds a value."""

from __future__ import annotations


class SecretError(Exception):
    """A secret cannot be had, or is not what it must be; the message says why and what to do."""


class StoreError(SecretError):
    """The store as a whole cannot be read or written."""
