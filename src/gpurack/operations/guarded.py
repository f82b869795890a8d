"""Changes that could cut a host off: taken back by the host itself unless a fresh connection confirms them.

What happens, and what if it is cut off there:

1. The new files are uploaded beside the old ones and validated. Cut off: nothing has changed.
2. One command on the host keeps the old files, starts a systemd timer that takes the change back, marks the change
   as pending, puts the new files in place and reloads the service. It runs to its end without the client. Power cut:
   ``gpurack-guard.service`` takes a pending change back at the next boot, before any service is started.
3. The control machine opens a new connection, never the one it has: new TCP connection, same credentials, same host
   key policy, then ``sudo``. Cut off: the timer takes the change back.
4. Only if that works the change is confirmed: timer and marker go. If it does not, the host takes the change back.
"""

from __future__ import annotations

import hashlib
import secrets
import shlex
import time
from collections.abc import Generator, Mapping
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import gevent
from pyinfra import host, logger
from pyinfra.api import FileUploadCommand, FunctionCommand, QuoteString, StringCommand, operation
from pyinfra.api.arguments import CONNECTOR_ARGUMENT_KEYS
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.host import Host
from pyinfra.api.state import State
from pyinfra.operations import files as pyinfra_files

from gpurack.facts.guarded import STATE_DIRECTORY, GuardedFiles, GuardState

SCRIPT = "/usr/local/sbin/gpurack-guard"
UNIT = "gpurack-guard.service"
SOURCES = Path(__file__).parent / "guard"
REFUSED = "Authentication error"
"""How pyinfra's SSH connector begins the message of a refused login."""

PROBE_SECONDS = 6.0
"""How long a fresh connection is tried for; a restarted service may need a moment, a wrong setting stays wrong."""


@operation()
def change(
    identity: str,
    contents: Mapping[str, str],
    *,
    validate: str,
    reload: str,
    confirm_timeout: timedelta,
    mode: str = "644",
) -> Generator[PyinfraCommand, None, None]:
    """Put files in place, reload, and keep them only if the host still lets gpurack in.

    Args:
        identity: short name of what is changed, such as ``sshd``; one change of a name at a time.
        contents: the wanted text of each file, by absolute path.
        validate: shell command that refuses wrong files; ``{0}``, ``{1}``, ... are the paths of the new files.
        reload: shell command that makes the service use the files; also run when they are taken back.
        confirm_timeout: after this time the host takes an unconfirmed change back.
        mode: permissions of the files, in octal.
    """
    found = host.get_fact(GuardedFiles, identity=identity, paths=list(contents))
    if is_in_place(found, contents, mode):
        host.noop(f"{', '.join(contents)} are in place and confirmed")
        return
    yield from pyinfra_files.put._inner(str(SOURCES / "gpurack-guard"), SCRIPT, mode="755", add_deploy_dir=False)
    unit = f"/etc/systemd/system/{UNIT}"
    yield from pyinfra_files.put._inner(str(SOURCES / UNIT), unit, mode="644", add_deploy_dir=False)
    yield StringCommand("systemctl", "--quiet", "enable", UNIT)
    candidates = [f"{STATE_DIRECTORY}/{identity}/candidate/{number}" for number in range(len(contents))]
    yield StringCommand("mkdir", "-p", "-m", "700", STATE_DIRECTORY, str(Path(candidates[0]).parent))
    for candidate, text in zip(candidates, contents.values(), strict=True):
        yield FileUploadCommand(
            StringIO(text), candidate, remote_temp_filename=host.get_temp_filename(f"{candidate}{secrets.token_hex(4)}")
        )
    token = secrets.token_hex(4)
    yield StringCommand(
        SCRIPT,
        "apply",
        QuoteString(identity),
        token,
        f"{confirm_timeout.total_seconds():.0f}s",
        mode,
        QuoteString(validate.format(*map(shlex.quote, candidates))),
        QuoteString(reload),
        *(QuoteString(path) for path in contents),
    )
    yield FunctionCommand(_confirm, (identity, token, confirm_timeout), {})


def is_in_place(found: GuardState, contents: Mapping[str, str], mode: str) -> bool:
    """Tell whether the files are as wanted, and not merely on trial."""
    return not found.pending and all(
        found.sha256.get(path) == hashlib.sha256(text.encode()).hexdigest()
        and found.mode.get(path) == mode.removeprefix("0")
        for path, text in contents.items()
    )


def _confirm(state: State, host: Host, identity: str, token: str, timeout: timedelta) -> bool:
    """Confirm a change over a fresh connection, or have it taken back; False fails the operation."""
    arguments: Any = {
        key: value
        for key, value in (host.current_op_global_arguments or {}).items()
        if key in CONNECTOR_ARGUMENT_KEYS and not key.startswith("_success")
    }
    seconds = timeout.total_seconds()
    if problem := _fresh_login(state, host, arguments, min(PROBE_SECONDS, seconds / 2)):
        logger.error(
            f"{host.print_prefix}with the new {identity} settings a fresh connection failed ({problem}): "
            f"they are taken back, by the host itself within {seconds:.0f} s if need be; correct them and run again"
        )
        _guard(host, "revert", identity, token, arguments)
        return False
    return _guard(host, "confirm", identity, token, arguments)


def _guard(host: Host, command: str, identity: str, token: str, arguments: Any) -> bool:
    """Run the guard over the connection there is; a connection that is gone is no reason to fail in another way."""
    try:
        done, output = host.run_shell_command(StringCommand(SCRIPT, command, identity, token), **arguments)
    except Exception as error:
        logger.error(f"{host.print_prefix}{command} of the {identity} change: {error}")
        return False
    if not done:
        logger.error(f"{host.print_prefix}{output.stderr}")
    return bool(done)


def _fresh_login(state: State, host: Host, arguments: Any, seconds: float) -> str:
    """Return why nobody gets into the host over a new connection, or an empty string.

    A server that has just been restarted may not answer yet. One that refuses a login will refuse the next one too,
    and OpenSSH 9.8 and later shut out an address that fails several times.
    """
    deadline = time.monotonic() + seconds
    while True:
        problem = _one_login(state, host, arguments, seconds)
        if not problem or REFUSED in problem or time.monotonic() + 1 > deadline:
            return problem
        time.sleep(1)


def _one_login(state: State, host: Host, arguments: Any, seconds: float) -> str:
    connector = type(host.connector)(state, host)
    try:
        with gevent.Timeout(seconds, TimeoutError(f"no answer in {seconds:.0f} s")):
            connector.connect()
            done, output = connector.run_shell_command(StringCommand("true"), **arguments)
    except Exception as error:  # whatever it is, nobody has got in
        return str(error) or type(error).__name__
    finally:
        if client := getattr(connector, "client", None):
            client.close()
    return "" if done else f"no root rights: {output.stderr.strip()}"
