"""Settings of the vectordb role."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from gpurack.images import ImageSource
from gpurack.secrets import Secret, SecretError, Shape, within
from gpurack.service import UNFIT, Publish, port_clashes
from gpurack.settings import Duration, Location, RoleSettings, Seconds
from roles.ollama.settings import Directory

MILVUS_KEEP = "Milvus takes it at its first start only: change it there first (update_password), then set it here"


class Database(BaseModel):
    """What every database has."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    publish: Publish | None = Field(
        None, description="Where it is reached from outside of Docker's networks; empty: nowhere"
    )


class Pgvector(Database):
    """PostgreSQL with pgvector."""

    user: str = Field("anythingllm", pattern=r"^[a-z_][a-z0-9_]{0,30}$", description="User that owns the database")
    database: str = Field("anythingllm", pattern=r"^[a-z_][a-z0-9_]{0,30}$", description="Its database")
    password: Annotated[Secret, Shape("password", 24)] = Field(
        Secret.stored("pgvector_password"), description="Password of the user; a new one is set in the running database"
    )
    shm_size_mib: int = Field(
        256, ge=64, description="Shared memory; building an index in parallel needs maintenance_work_mem of it"
    )


class Chroma(Database):
    """Chroma; since 1.0 it asks nobody who they are."""


class Milvus(Database):
    """Milvus standalone, with etcd inside and local storage."""

    password: Annotated[Secret, Shape("password", 24, MILVUS_KEEP)] = Field(
        Secret.stored("milvus_password"), description="Password of root, from the first start on"
    )


class Qdrant(Database):
    """Qdrant."""

    api_key: Annotated[Secret, Shape("password", 32)] = Field(
        Secret.stored("qdrant_api_key"), description="Key that every request must carry"
    )


class VectordbSettings(RoleSettings):
    """Vector databases; one that has a dictionary here runs, `vectordb = {"pgvector": {}}`."""

    images: ImageSource = Field(ImageSource(), description="Where the images come from")
    pgvector: Pgvector | None = Field(None, description="PostgreSQL with pgvector")
    chroma: Chroma | None = Field(None, description="Chroma")
    milvus: Milvus | None = Field(None, description="Milvus")
    qdrant: Qdrant | None = Field(None, description="Qdrant")
    data_dir: Directory = Field("/srv/vectordb", description="Where the databases' data is kept, a directory for each")
    health_interval: Seconds = Field(timedelta(seconds=10), description="Time between two health checks")
    health_start_period: Duration = Field(
        timedelta(seconds=90), description="Time in which a failed health check does not count yet"
    )
    ready_timeout: Seconds = Field(
        timedelta(minutes=4), description="Longest wait for a database to become healthy in a run"
    )

    @property
    def databases(self) -> dict[str, Database]:
        """The databases that run, by name."""
        every = {"pgvector": self.pgvector, "chroma": self.chroma, "milvus": self.milvus, "qdrant": self.qdrant}
        return {name: database for name, database in every.items() if database is not None}

    @property
    def image_names(self) -> tuple[str, ...]:
        """Names in ``images.toml`` of the images that run."""
        return tuple(self.databases)

    def problems_on(self, host: str, data: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
        """Yield ports that two services claim, and secrets that an env file or a connection URL would garble."""
        del host
        yield from port_clashes("vectordb", data)
        for location, secret in within(self):
            try:
                value = secret.reveal()
            except SecretError:  # reported by itself
                continue
            if UNFIT.search(value):
                yield location, "a quotation mark, backslash or line break cannot be in this secret"
            elif location == ("milvus", "password") and not 6 <= len(value) <= 72:
                yield location, "Milvus takes passwords of 6 to 72 characters"


NAMES = ("pgvector", "chroma", "milvus", "qdrant")
