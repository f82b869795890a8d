"""Settings of the capacity role."""

from __future__ import annotations

from pydantic import Field

from gpurack.capacity.hardware import DeclaredHardware
from gpurack.settings import RoleSettings


class CapacitySettings(RoleSettings):
    """What models' memory is planned with: reserves, and hardware that is not there yet."""

    hardware: DeclaredHardware | None = Field(
        None, description="The host's hardware, for planning before it is there; checked once it is"
    )
    cpu_offload: bool = Field(
        False, description="Layers that do not fit the GPUs may be computed by the CPU, several times slower"
    )
    gpu_reserve_mib: int = Field(
        1024, ge=0, le=1_048_576, description="Left free on each GPU; llama.cpp leaves 1024 (`--fit-target`)"
    )
    ram_reserve_gib: float = Field(4, ge=0, le=65536, description="The host's memory for everything but models")
