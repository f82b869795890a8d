"""Files with secrets: their content appears nowhere but in the file.

Not in ``--diff``, whatever the verbosity, not in facts (compared is a checksum), not in the arguments of an operation
or of a process on either side, and in no file others can read: the upload goes by SFTP into a directory that only the
login user and root can enter, and takes the place of the old file in one step, with owner and mode set before.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Generator
from pathlib import PurePosixPath
from shlex import quote
from typing import Any

from pyinfra import host, logger, state
from pyinfra.api import FileUploadCommand, OperationError, operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.operation import OperationMeta

from gpurack.facts.secretfile import SealedFile
from gpurack.operations.docker import UPLOADS

Commands = Generator[str | PyinfraCommand, None, None]

# The new file is beside the old one for the rename to be one step, with a fixed name for a cut run to leave but one.
REPLACE = """\
umask 077; cat {upload} >{new} && rm -f {upload} && chown {owner} {new} && chmod {mode} {new} && sync {new} \
&& mv -T {new} {dest} || {{ rm -f {new} {upload}; echo 'cannot write '{dest}', it is as before' >&2; exit 1; }}"""


class Content:
    """A text that does not print: pyinfra shows and logs the arguments of operations."""

    def __init__(self, text: str) -> None:
        self.data = text.encode()

    def __repr__(self) -> str:
        return "Content(********)"


class _Upload(io.BytesIO):
    """Bytes to upload; pyinfra's debug output shows the name where it would show the content of a file in memory."""

    name = "********"


def put(
    dest: str,
    content: str | Content,
    *,
    user: str = "root",
    group: str = "root",
    mode: str = "600",
    **arguments: Any,
) -> OperationMeta:
    """Put a file with secrets in place, unless the host has just that file.

    Args:
        dest: absolute path on the host, in a directory that is there.
        content: text of the file.
        user: owner.
        group: group.
        mode: permissions in octal; none for others.
        arguments: pyinfra's global arguments, ``name`` among them.
    """
    sealed = content if isinstance(content, Content) else Content(content)
    done: OperationMeta = sealed_file(
        dest=dest, content=sealed, user=user, group=group, mode=mode, **{"name": f"Put {dest}", **arguments}
    )
    return done


@operation()
def sealed_file(dest: str, content: Content, user: str = "root", group: str = "root", mode: str = "600") -> Commands:
    """Put a file with secrets in place; :func:`put` is how roles call it, ``sealed_file._inner`` how operations do.

    + dest: absolute path on the host
    + content: what is to be in the file
    + user: owner
    + group: group
    + mode: permissions in octal; none for others
    """
    path = PurePosixPath(dest)
    if not path.is_absolute() or ".." in path.parts:
        raise OperationError(f"{dest}: expected an absolute path without ..")
    if int(mode, 8) & 0o007:
        raise OperationError(f"{dest}: mode {mode} lets others at a file with secrets")
    found = host.get_fact(SealedFile, path=dest)
    owner, mode = f"{user}:{group}", mode.removeprefix("0")
    if found and found.sha256 == hashlib.sha256(content.data).hexdigest():
        if (found.owner, found.mode) == (owner, mode):
            host.noop(f"{dest} is in place")
            return
        yield f"chown {quote(owner)} {quote(dest)} && chmod {mode} {quote(dest)}"
        return
    if state.config.DIFF:
        host.log(f"Will {'modify' if found else 'create'} {dest} (it holds secrets: not shown)", logger.info)
    upload = f"{UPLOADS}/secret-{hashlib.sha256(dest.encode()).hexdigest()[:16]}"
    yield f'install -d -m 755 {PurePosixPath(UPLOADS).parent} && install -d -m 700 -o "${{SUDO_USER:-root}}" {UPLOADS}'
    yield FileUploadCommand(_Upload(content.data), upload, _sudo=False)
    new = path.with_name(f".{path.name}.new")
    yield REPLACE.format(
        upload=upload,
        new=quote(str(new)),
        dest=quote(dest),
        owner=quote(owner),
        mode=mode,
    )
