"""The settings block ``bundle``: the offline bundle a site is deployed from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gpurack.bundle import manifest, signing
from gpurack.bundle.manifest import BundleError, Manifest


class BundleSettings(BaseModel):
    """The offline bundle a site is deployed from; with it, hosts are told of no package source but the bundle."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path | None = Field(
        default=None,
        description="Directory of the bundle on the control machine, relative to the repository; none: online",
    )
    fingerprint: Annotated[str, Field(pattern=r"^[0-9A-Fa-f ]{40,60}$")] | None = Field(
        default=None, description="Key the bundle must be signed with, as `gpurack bundle create` has printed it"
    )
    packages: tuple[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")], ...] = Field(
        default=(), description="Further packages to gather, such as a GPU driver's: which one follows from the cards"
    )

    @model_validator(mode="after")
    def _trusted(self) -> Self:
        if self.path is None:
            return self
        try:
            listed = manifest.read(self.path)
            signing.check(self.path, self.fingerprint)
            wrong = manifest.compare(self.path, listed, content=False)
        except BundleError as error:
            raise ValueError(str(error)) from None
        if lines := list(wrong.lines()):
            more = f", and {len(lines) - 3} more" if len(lines) > 3 else ""
            raise ValueError(f"{'; '.join(lines[:3])}{more}: see `gpurack bundle verify {self.path}`")
        return self

    @property
    def manifest(self) -> Manifest | None:
        """What is in the bundle; None without one."""
        return manifest.read(self.path) if self.path else None


def images_in(bundle: Path) -> dict[str, dict[str, str]]:
    """Return the archives in a bundle as ``images.archives`` has them, checksums from the signed manifest included.

    Raises:
        BundleError: it has no manifest, or a wrong one.
    """
    found = manifest.read(bundle)
    return {
        name: {"path": str(bundle / image.path), "sha256": found.files[image.path].sha256}
        for name, image in found.images.items()
    }
