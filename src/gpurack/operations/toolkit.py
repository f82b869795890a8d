"""Operations on NVIDIA's container toolkit."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Mapping

from pyinfra import host, logger
from pyinfra.api import operation

from gpurack.facts.toolkit import CONFIG, CdiSpecs, ToolkitConfiguration

CDI_UNIT = "gpurack-cdi.service"


@operation()
def configuration(values: Mapping[str, str | bool]) -> Generator[str, None, None]:
    """Keep values of the container toolkit's own configuration; what else is in it is the administrator's.

    A file that is missing or not TOML is made anew from the toolkit's defaults; the old one is kept beside it.

    Args:
        values: by dotted name, such as ``nvidia-container-runtime.mode``; each the toolkit's own default.
    """
    found = host.get_fact(ToolkitConfiguration)
    # nvidia-ctk writes a value that is the default as a comment: what is not there is right.
    wrong = {name: value for name, value in values.items() if found.get(name) not in (None, value)}
    if not wrong and not found.error:
        host.noop(f"{CONFIG} has the wanted values")
        return
    if found.error:
        yield f"test ! -e {CONFIG} || mv {CONFIG} {CONFIG}.broken"
    sets = "".join(f" --set {shlex.quote(f'{name}={_toml(value)}')}" for name, value in wrong.items())
    yield f"nvidia-ctk --quiet config --config-file={CONFIG} --in-place{sets}"


def _toml(value: str | bool) -> str:
    """Return a value as ``nvidia-ctk config --set`` reads it."""
    return str(value).lower() if isinstance(value, bool) else value


@operation()
def cdi_spec() -> Generator[str, None, None]:
    """Make the CDI specification anew where it is missing, or made for another driver or other devices.

    A driver that does not answer is no error here: until the reboot it waits for, no specification can be made, and
    the unit makes it at boot, before Docker starts.
    """
    found = host.get_fact(CdiSpecs)
    if found.error:
        logger.warning(f"{host.print_prefix}no CDI specification can be made yet: {found.error[:300]}")
        host.noop("the driver does not answer; the CDI specification is made at the next boot")
        return
    if found.spec and found.current and not found.spec.differences(found.current):
        host.noop("the CDI specification is that of the installed driver and the GPUs")
        return
    yield (
        f"systemctl reset-failed {CDI_UNIT} 2>/dev/null; systemctl restart {CDI_UNIT} && exit 0\n"
        f"echo 'the CDI specification could not be made; the last words of {CDI_UNIT}:' >&2\n"
        f"journalctl --unit {CDI_UNIT} --no-pager --lines 15 --output cat >&2; exit 1"
    )
