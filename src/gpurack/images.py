"""Where a site gets container images from: the settings block ``images``, shared by all roles that run one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator, model_validator

from gpurack import imagearchive
from gpurack.catalogue import CatalogueError, Digest, Image, RegistryName, Tag, catalogue
from gpurack.names import nearest

Mirror = Annotated[str, Field(pattern=r"^[a-z0-9.-]+(:\d{1,5})?(/[a-z0-9._/-]+)?$")]
Location = tuple[str | int, ...]


class Credential(BaseModel):
    """A login at a registry or mirror."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    username: str = Field(min_length=1, pattern=r"^[^:\s]+$", description="User, or name of a token")
    password: SecretStr = Field(description="Password or token")


class Archive(BaseModel):
    """A `docker save` archive on the control machine; the path alone may be written too."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path = Field(description="Path of the archive, relative to the repository")
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", description="SHA-256 the archive must have")

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str | Path) else value


class Override(BaseModel):
    """Another release of an image than the catalogue's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tag: Tag | None = Field(
        default=None, description="Tag in place of the catalogue's, whose digest then no longer counts"
    )
    digest: Digest | None = Field(
        default=None, description="Digest the registry or mirror must serve; archives carry none"
    )


class ImageSource(BaseModel):
    """Where container images come from: registries, mirrors of them, or archives on the control machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mirrors: dict[RegistryName, Mirror] = Field(
        default={}, description="Asked in place of a registry: docker.io -> registry.example.org:5000"
    )
    credentials: dict[RegistryName, Credential] = Field(
        default={}, description="Logins by registry or mirror, such as registry.example.org:5000"
    )
    archives: dict[str, Archive] = Field(
        default={}, description="Archives by name of the image in images.toml, where no registry is reached"
    )
    overrides: dict[str, Override] = Field(default={}, description="Other releases by name of the image in images.toml")

    @field_validator("mirrors", "archives", "overrides")
    @classmethod
    def _in_the_catalogue(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        try:
            images = catalogue()
        except CatalogueError:  # reported by itself, once
            return value
        known = {image.registry for image in images.values()} if info.field_name == "mirrors" else set(images)
        for name in value:
            if name not in known:
                raise ValueError(f"{name} is not in images.toml{nearest(name, known)}")
        return value

    @model_validator(mode="after")
    def _no_digest_beside_an_archive(self) -> Self:
        for name in self.archives.keys() & self.overrides.keys():
            if self.overrides[name].digest:
                raise ValueError(f"overrides.{name}.digest: an archive carries none; give the archive's sha256")
        return self

    def image(self, name: str) -> Image:
        """Return an image with this site's tag and digest.

        Raises:
            CatalogueError: the catalogue cannot be used, or has no such image.
        """
        known = catalogue()
        if name not in known:
            raise CatalogueError(f"images.toml: no image {name}")
        image, override = known[name], self.overrides.get(name)
        if override is None:
            return image
        digest = override.digest or (None if override.tag else image.digest)
        return image.model_copy(update={"tag": override.tag or image.tag, "digest": digest})

    def registry(self, name: str) -> str:
        """Return the registry or mirror an image is pulled from, without a path: ``registry.example.org:5000``."""
        image = self.image(name)
        return self.mirrors.get(image.registry, image.registry).partition("/")[0]

    def credential(self, name: str) -> Credential | None:
        """Return the login at the registry an image is pulled from; None where none is needed, or for an archive."""
        return None if name in self.archives else self.credentials.get(self.registry(name))

    def reference(self, name: str) -> str:
        """Return what is written after ``image:`` in a Compose file.

        From an archive it is the name the archive was saved under; otherwise the mirror stands in place of the
        registry, and a known digest is part of the name, so that the engine refuses anything else.
        """
        image = self.image(name)
        if name in self.archives:
            return f"{image.name}:{image.tag}"
        mirror = self.mirrors.get(image.registry)
        base = f"{mirror}/{image.repository}" if mirror else image.name
        return f"{base}:{image.tag}" + (f"@{image.digest}" if image.digest else "")

    def archive(self, name: str) -> Path | None:
        """Return the path of the archive an image is loaded from; None when it is pulled."""
        archive = self.archives.get(name)
        return archive.path if archive else None

    def problems(self, names: Iterable[str]) -> Iterator[tuple[Location, str]]:
        """Yield what is wrong with the archives of the named images, as (location in this block, message).

        Raises:
            CatalogueError: as for :meth:`image`.
        """
        for name in names:
            reference = self.reference(name)
            if (archive := self.archives.get(name)) is None:
                continue
            try:
                imagearchive.read(archive.path).ids(reference)
            except imagearchive.ArchiveError as error:
                yield ("archives", name), str(error)
                continue
            if archive.sha256 and imagearchive.sha256(archive.path) != archive.sha256:
                yield ("archives", name, "sha256"), f"{archive.path} does not have this SHA-256"
