"""The store of an inventory: ``secrets.age`` beside its ``hosts.py``, encrypted to everyone in ``recipients.txt``.

What is decrypted stays in this process's memory. A store is written in one step: the new file is encrypted and synced
beside the old one, and takes its name. Whoever writes holds a lock on the inventory's directory.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

import pyrage

from gpurack.secrets.document import NAME, NAME_RULE, Document
from gpurack.secrets.errors import SecretError, StoreError
from gpurack.secrets.keys import IdentityKey, Recipient, identity_files, read_identities, read_recipients

__all__ = ["NAME", "NAME_RULE", "Store", "current", "use"]

STORE = "secrets.age"
RECIPIENTS = "recipients.txt"
LOCK_SECONDS = 10.0
ARMOR = b"-----BEGIN AGE ENCRYPTED FILE-----"
BINARY = b"age-encryption.org/v1"


class Store:
    """The secrets of one inventory."""

    def __init__(self, folder: Path, identity: str | None = None) -> None:
        """Name a store; nothing is read yet.

        Args:
            folder: the inventory's directory.
            identity: file of the private key to read it with; without one, see :func:`keys.identity_files`.
        """
        self.path = folder / STORE
        self.recipients_path = folder / RECIPIENTS
        self._identity = identity
        self._read: tuple[tuple[int, int, int], Document] | None = None

    @property
    def exists(self) -> bool:
        """Whether there is a store yet."""
        return self.path.is_file()

    def value(self, name: str) -> str:
        """Return a secret.

        Raises:
            SecretError: the store cannot be read, or has no such secret.
        """
        values = self.document().values
        if name not in values:
            close = get_close_matches(name, values, n=1, cutoff=0.6)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise SecretError(
                f"{self.path} has no secret {name}{hint or '; gpurack secrets generate makes what settings ask for'}"
            )
        return values[name]

    def document(self) -> Document:
        """Return what is in the store, read again only if the file has changed.

        Raises:
            StoreError: no store, no fitting identity, or a damaged file.
        """
        try:
            found = self.path.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if self._read and self._read[0] == stamp:
                return self._read[1]
            data = self.path.read_bytes()
        except FileNotFoundError:
            raise StoreError(
                f"{self.path}: no such store; gpurack secrets generate {self.path.parent} makes it"
            ) from None
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}") from None
        document = self._decrypted(data)
        self._read = (stamp, document)
        return document

    def recipients(self) -> list[Recipient]:
        """Return everyone who is to read the store.

        Raises:
            StoreError: the list is missing, empty or wrong.
        """
        return read_recipients(self.recipients_path)

    def drift(self, document: Document) -> tuple[list[Recipient], list[str]]:
        """Return who has been added to the recipients since the store was encrypted, and the keys that were removed."""
        recipients = self.recipients()
        keys = [recipient.key for recipient in recipients]
        added = [recipient for recipient in recipients if recipient.key not in document.encrypted_to]
        return added, [key for key in document.encrypted_to if key not in keys]

    @contextmanager
    def locked(self, *, wait: bool = True) -> Iterator[None]:
        """Be the only one who writes.

        Args:
            wait: for some seconds, if another writes just now.

        Raises:
            StoreError: another process is writing.
        """
        try:
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise StoreError(f"{self.path.parent}: {error.strerror}") from None
        try:
            deadline = time.monotonic() + (LOCK_SECONDS if wait else 0)
            while True:
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise StoreError(f"{self.path}: another gpurack secrets is changing it; try again") from None
                    time.sleep(0.1)
            yield
        finally:
            fcntl.flock(folder, fcntl.LOCK_UN)  # closing alone may come later: gevent's close waits for its loop
            os.close(folder)

    def for_change(self) -> Document:
        """Return what is in the store, or an empty document for a new one; call it with the lock held.

        Raises:
            StoreError: it cannot be read, or other people than it was encrypted to are in the list of recipients now.
        """
        if not self.exists:
            return Document()
        document = self.document()
        added, removed = self.drift(document)
        if added or removed:
            raise StoreError(
                f"{self.recipients_path} is not what {self.path} was encrypted to ({len(added)} added, "
                f"{len(removed)} removed); look at it, then gpurack secrets rekey {self.path.parent}"
            )
        return document

    def write(self, document: Document) -> None:
        """Encrypt to everyone in the list of recipients, and replace the store in one step; call it with the lock held.

        Raises:
            StoreError: nobody to encrypt to, the writer could not read it afterwards, or the file cannot be written.
        """
        recipients = self.recipients()
        document = document.encrypted_for(recipient.key for recipient in recipients)
        data = pyrage.encrypt(document.text.encode(), [recipient.age for recipient in recipients], armored=True)
        try:
            pyrage.decrypt(data, self._identities())
        except pyrage.DecryptError:
            raise StoreError(
                f"your own identity is not among {self.recipients_path}: you could not read what you write; "
                "add it, or let one of the recipients do this"
            ) from None
        try:
            _replace(self.path, data)
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}; the store is as before") from None
        self._read = None

    def _identities(self) -> list[IdentityKey]:
        return read_identities(identity_files(self._identity))

    def _decrypted(self, data: bytes) -> Document:
        if b"<<<<<<<" in data:
            raise StoreError(
                f"{self.path}: has merge conflicts; take one side (git checkout --theirs or --ours), then set what "
                "the other had changed"
            )
        if not data.startswith((ARMOR, BINARY)):
            raise StoreError(f"{self.path}: {'is empty' if not data else 'is not an age file'}; {_FROM_HISTORY}")
        identities = self._identities()
        try:
            text = pyrage.decrypt(data, identities).decode()
        except pyrage.DecryptError as error:
            if "No matching keys" in str(error):
                files = ", ".join(map(str, identity_files(self._identity)))
                raise StoreError(
                    f"{self.path}: is not encrypted to you ({files}); one of {self.recipients_path} adds your public "
                    "key there and runs gpurack secrets rekey"
                ) from None
            raise StoreError(f"{self.path}: is damaged or cut off ({error}); {_FROM_HISTORY}") from None
        except UnicodeDecodeError:
            raise StoreError(f"{self.path}: its content is not UTF-8 text; {_FROM_HISTORY}") from None
        try:
            return Document(text)
        except SecretError as error:
            raise StoreError(f"{self.path}: {error}") from None


_FROM_HISTORY = "take it from the repository's history or a backup"


def _replace(path: Path, data: bytes) -> None:
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


_current: Store | None = None


def use(folder: Path) -> None:
    """Make the store in an inventory's directory the one that settings mean; a process works on one inventory."""
    global _current
    if _current is None or _current.path.parent != folder:
        _current = Store(folder)


def current() -> Store:
    """Return the store of the inventory this process has loaded.

    Raises:
        StoreError: none is loaded.
    """
    if _current is None:
        raise StoreError("no inventory is loaded, so there is no store to look in")
    return _current
