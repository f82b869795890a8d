"""Whether a host has to be rebooted for its driver, and whether it may be now."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import time


@dataclass(frozen=True)
class ModuleState:
    """The driver in the running kernel.

    Attributes:
        loaded: version of the loaded module; None when none is.
        nouveau: nouveau is loaded.
        secure_boot: the firmware lets in only signed modules.
        mok: path of the public key that modules built on this host are signed with; None when there is none yet.
        enrolled: the firmware knows that key.
        boot_id: identity of this boot.
        clock: local time.
        rebooted_for: reasons of the last reboot that this role made, if they have not gone away.
    """

    loaded: str | None = None
    nouveau: bool = False
    secure_boot: bool = False
    mok: str | None = None
    enrolled: bool = False
    boot_id: str = ""
    clock: time = time(0)
    rebooted_for: str = ""

    @property
    def locked_out(self) -> bool:
        """Whether the kernel would refuse a module built on this host."""
        return self.secure_boot and not self.enrolled


def reasons(state: ModuleState, version: str, running: str, newest: str | None) -> list[str]:
    """Return why a reboot is needed, one reason each; empty when it is not.

    Args:
        state: of the running kernel.
        version: version of the installed driver.
        running: release of the running kernel.
        newest: release of the newest installed kernel.
    """
    found = []
    if state.nouveau:
        found.append("nouveau is loaded and holds the cards")
    if state.loaded and state.loaded != version:
        found.append(f"the kernel holds module {state.loaded}, and {version} is installed")
    if newest and newest != running:
        found.append(f"kernel {running} runs, and {newest} is installed")
    return found


def within(clock: time, start: time, end: time) -> bool:
    """Tell whether a time of day is in a window; a window may go over midnight."""
    return start <= clock < end if start <= end else clock >= start or clock < end
