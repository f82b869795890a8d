"""Secrets of an inventory: the encrypted store, and the type of settings that hold a secret."""

from gpurack.secrets.errors import SecretError, StoreError
from gpurack.secrets.secret import Secret, within
from gpurack.secrets.shape import Shape

__all__ = ["Secret", "SecretError", "Shape", "StoreError", "within"]
