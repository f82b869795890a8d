"""Settings of the mig role."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from gpurack.gpu.mig import PROFILE_NAME
from gpurack.settings import RoleSettings

ProfileName = Annotated[str, Field(pattern=PROFILE_NAME)]


class MigLayout(BaseModel):
    """How one GPU, or every GPU, is divided."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpu: str = Field(
        pattern=r"^(all|\d+|GPU-[0-9a-f-]+)$", description="Index, UUID, or `all`; its own counts more than `all`"
    )
    profiles: dict[ProfileName, Annotated[int, Field(ge=1, le=7)]] = Field(
        default_factory=dict,
        description='Instances of each profile, such as {"3g.20gb": 2}; empty: all are removed, MIG is switched off',
    )

    @field_validator("gpu", mode="before")
    @classmethod
    def _index(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class MigSettings(RoleSettings):
    """Division of GPUs into MIG devices."""

    layouts: tuple[MigLayout, ...] = Field((), description="How GPUs are divided; those not named are left alone")

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        twice = [gpu for gpu, number in Counter(layout.gpu for layout in self.layouts).items() if number > 1]
        if twice:
            raise ValueError(f"layouts: GPU {', '.join(twice)} is there more than once")
        return self
