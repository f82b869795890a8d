"""Deploy of the mig role."""

from __future__ import annotations

from pyinfra import host
from pyinfra.api import OperationError, deploy

from gpurack.facts.gpu import PciDevices
from gpurack.gpu.mig import MigError
from gpurack.gpu.mig_plan import check_cards
from gpurack.operations import mig as operations
from roles.mig.settings import MigSettings


@deploy("MIG")
def mig(settings: MigSettings) -> None:
    """Divide the GPUs now, and at every boot before Docker starts.

    Raises:
        OperationError: the layouts do not suit the host's GPUs, or one to be divided is in use.
    """
    cards = host.get_fact(PciDevices).cards
    if not cards:
        return
    try:
        check_cards(cards, settings.layouts)
    except MigError as error:
        raise OperationError(str(error)) from error
    if settings.layouts:
        operations.partition(name="Divide the GPUs", layouts=settings.layouts)
    operations.boot_unit(name="Divide them again at boot", layouts=settings.layouts)
