"""Settings of the anythingllm role."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from gpurack.images import ImageSource
from gpurack.names import nearest
from gpurack.ollama.names import ModelName
from gpurack.secrets import Secret, SecretError, Shape
from gpurack.service import Publish
from gpurack.settings import Duration, Location, RoleSettings, Seconds
from roles.anythingllm.accounts import Account, Administrator, Slug, Username, Workspace
from roles.ollama.settings import Directory

OLLAMA_URL = "http://ollama:11434"
"""Ollama of the same host, by its name on the Docker network."""

ENDPOINTS = {"chroma": "http://chroma:8000", "milvus": "http://milvus:19530", "qdrant": "http://qdrant:6333"}
UNFIT = re.compile(r"[\s\"'`#\\$]")
"""Characters that AnythingLLM's dumpENV cuts a value at, or that an env file reads as something else."""

KEEP = "AnythingLLM encrypts stored credentials with it: with another one they are unreadable"
HttpUrl = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/\"'$#?]+(:\d+)?(/[^\s\"'$#?]*[^\s\"'$#?/])?$")]
KeyName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class VectorDatabase(BaseModel):
    """Where the pieces of documents are kept; LanceDB is built in and keeps them in the storage directory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["lancedb", "pgvector", "chroma", "milvus", "qdrant"] = Field("lancedb", description="Which one")
    endpoint: HttpUrl | None = Field(
        None, description="URL of Chroma, Milvus or Qdrant; empty: the service of that name on this host"
    )
    host: str = Field("pgvector", pattern=r"^[A-Za-z0-9.-]+$", description="Host of PostgreSQL, for pgvector")
    port: int = Field(5432, ge=1, le=65535, description="Port of PostgreSQL")
    database: str = Field("anythingllm", pattern=r"^[A-Za-z0-9_]+$", description="Database of PostgreSQL")
    user: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_]+$", description="User of PostgreSQL or Milvus; empty: anythingllm, or none"
    )
    secret: Secret | None = Field(None, description="Password of PostgreSQL or Milvus, API key of Chroma or Qdrant")

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.kind == "pgvector" and self.secret is None:
            raise ValueError("pgvector needs secret, the password of its user")
        if self.kind in ("lancedb", "pgvector") and self.endpoint:
            raise ValueError(f"{self.kind} has no endpoint")
        if self.kind == "lancedb" and self.secret:
            raise ValueError("lancedb is built in and has no secret")
        return self

    @property
    def environment(self) -> dict[str, str]:
        """What is no secret."""
        values: dict[str, str] = {"VECTOR_DB": self.kind}
        url = self.endpoint or ENDPOINTS.get(self.kind, "")
        if self.kind == "milvus":
            values["MILVUS_ADDRESS"] = url
            if self.user:
                values["MILVUS_USERNAME"] = self.user
        elif url:
            values[f"{self.kind.upper()}_ENDPOINT"] = url
        if self.kind == "chroma" and self.secret:
            values["CHROMA_API_HEADER"] = "X-Api-Key"
        return values

    @property
    def secret_environment(self) -> dict[str, str]:
        """What is one."""
        if self.secret is None:
            return {}
        value = self.secret.reveal()
        if self.kind == "pgvector":
            at = f"{self.user or 'anythingllm'}:{value}@{self.host}:{self.port}/{self.database}"
            return {"PGVECTOR_CONNECTION_STRING": f"postgresql://{at}"}
        return {{"milvus": "MILVUS_PASSWORD"}.get(self.kind, f"{self.kind.upper()}_API_KEY"): value}


PACKAGES = ("curl", "jq", "sqlite3")


class AnythingllmSettings(RoleSettings):
    """AnythingLLM: models, secrets, users, workspaces and keys, and where its data is."""

    enabled: bool = Field(False, description="Apply the role to the host; turning it off removes nothing.")
    images: ImageSource = Field(ImageSource(), description="Where the image comes from")
    model: str = Field("", description="Model that answers where a workspace names none, `deepseek-r1:7b`; required")
    context_tokens: int = Field(4096, ge=256, le=16_777_216, description="Context length AnythingLLM reckons with")
    embedding_model: str | None = Field(
        None, description="Ollama's model that embeds documents; empty: AnythingLLM's own, downloaded at first use"
    )
    embedding_chunk_length: int = Field(
        8192, ge=64, le=1_048_576, description="Longest text the embedding model is given, in characters"
    )
    ollama_url: HttpUrl = Field(OLLAMA_URL, description="Where Ollama is; by default on this host")
    ollama_timeout: Seconds = Field(timedelta(minutes=5), description="Longest wait for an answer of Ollama")
    vector_database: VectorDatabase = Field(
        default_factory=lambda: VectorDatabase.model_validate({}), description="Where pieces of documents are kept"
    )
    web_search: HttpUrl | None = Field(
        None,
        description="SearXNG that agents search the web with, `http://searxng:8080/search` with role searxng on this "
        "host; empty: agents do not search the web",
    )
    sig_key: Annotated[Secret, Shape("password", 32, KEEP)] = Field(
        Secret.stored("anythingllm_sig_key"), description="SIG_KEY; never changes again"
    )
    sig_salt: Annotated[Secret, Shape("password", 32, KEEP)] = Field(
        Secret.stored("anythingllm_sig_salt"), description="SIG_SALT; never changes again"
    )
    jwt_secret: Annotated[Secret, Shape("password", 32)] = Field(
        Secret.stored("anythingllm_jwt_secret"), description="JWT_SECRET; a new one logs everybody out"
    )
    auth_token: Annotated[Secret, Shape("password", 24)] = Field(
        Secret.stored("anythingllm_auth_token"),
        description="AUTH_TOKEN: nobody enters before the administrator is made",
    )
    admin: Administrator = Field(
        default_factory=lambda: Administrator.model_validate({}), description="The administrator that is made first"
    )
    users: dict[Username, Account] = Field({}, description="Further users by login name")
    unlisted_users: Literal["report", "suspend", "remove"] = Field(
        "report", description="What becomes of users that are not declared; removing one removes its chats"
    )
    workspaces: dict[Slug, Workspace] = Field({}, description="Workspaces by slug, such as one a department")
    api_keys: tuple[KeyName, ...] = Field(
        (), description="Names of API keys to make; each is in /var/lib/gpurack/anythingllm/keys on the host"
    )
    password_length: int = Field(12, ge=8, le=128, description="Least number of characters of a password")
    web_collector: bool = Field(
        False, description="Capability SYS_ADMIN, for the sandbox of the browser that reads web pages into workspaces"
    )
    data_dir: Directory = Field("/srv/anythingllm", description="Where data and restore points are kept on the host")
    restore_points: int = Field(3, ge=1, le=100, description="Restore points that are kept, one an upgrade")
    publish_address: IPv4Address | IPv6Address = Field(
        IPv4Address("127.0.0.1"), description="Host address the web pages are served on"
    )
    publish_port: int = Field(3001, ge=1, le=65535, description="Host port of the web pages")
    health_interval: Seconds = Field(timedelta(seconds=30), description="Time between two health checks")
    health_start_period: Duration = Field(
        timedelta(minutes=2), description="Time in which a failed health check does not count yet"
    )
    ready_timeout: Seconds = Field(
        timedelta(minutes=5), description="Longest wait for the service to become healthy in a run"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.enabled and not self.model:
            raise ValueError("model is required: the model that answers where a workspace names none")
        if self.admin.username in self.users:
            raise ValueError(f"users.{self.admin.username} is the administrator already; name him once")
        known = {self.admin.username, *self.users}
        names: dict[str, str] = {}
        for slug, workspace in self.workspaces.items():
            for member in workspace.members or ():
                if member not in known:
                    hint = nearest(member, known)
                    raise ValueError(f"workspaces.{slug}.members: {member} is not in users{hint}")
            name = (workspace.name or slug).casefold()
            if name in names:
                raise ValueError(f"workspaces.{names[name]} and workspaces.{slug} have the same name")
            names[name] = slug
        if len(set(self.api_keys)) != len(self.api_keys):
            raise ValueError("api_keys: a name is there twice")
        if "gpurack" in self.api_keys:
            raise ValueError("api_keys: gpurack is the name of gpurack's own key; choose another")
        return self

    def problems_on(self, host: str, data: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
        """Yield models nobody declares, a port claimed twice, and secrets AnythingLLM would cut or refuse."""
        del host
        ollama = _mapping(data.get("ollama"))
        if self.ollama_url == OLLAMA_URL and ollama.get("enabled", True) is False:
            yield ("ollama_url",), "role ollama is disabled on this host: say where Ollama is, or enable it"
        if ollama.get("enabled", True) and ollama.get("publish_port", 11434) == self.publish_port:
            yield ("publish_port",), f"ollama.publish_port is {self.publish_port} too; one of them must change"
        searxng = _mapping(data.get("searxng"))
        if self.web_search and urlsplit(self.web_search).hostname == "searxng" and searxng.get("enabled") is not True:
            yield ("web_search",), "role searxng is not enabled on this host, and the name is that of its service"
        declared = _mapping(data.get("ollama_models"))
        if self.ollama_url == OLLAMA_URL and declared.get("enabled", True) and declared.get("models"):
            yield from self._undeclared(declared["models"])
        yield from self._unfit_secrets()

    def _undeclared(self, models: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
        keys = {_key(name) for name, item in models.items() if _mapping(item).get("state", "present") == "present"}
        wanted: list[tuple[Location, str | None]] = [
            (("model",), self.model),
            (("embedding_model",), self.embedding_model),
            *((("workspaces", slug, "model"), workspace.model) for slug, workspace in self.workspaces.items()),
        ]
        for location, name in wanted:
            if name and _key(name) not in keys:
                yield location, f"ollama_models.models does not declare it for this host{nearest(name, models)}"

    def _unfit_secrets(self) -> Iterator[tuple[Location, str]]:
        secrets: list[tuple[Location, Secret | None]] = [
            *(((name,), getattr(self, name)) for name in ("sig_key", "sig_salt", "jwt_secret", "auth_token")),
            (("vector_database", "secret"), self.vector_database.secret),
        ]
        for location, secret in secrets:
            try:
                value = secret.reveal() if secret else ""
            except SecretError:
                continue  # gpurack.problems says so itself
            if UNFIT.search(value):
                yield location, "has a blank, a quote, #, $ or a backslash in it, at which AnythingLLM would cut it"
            elif location == ("auth_token",) and not re.fullmatch(r"[a-zA-Z0-9_\-!@$%^&*();]+", value):
                yield location, "AnythingLLM allows letters, digits and _-!@%^&*(); in it"
            elif (
                location[0] == "vector_database"
                and self.vector_database.kind == "pgvector"
                and (not re.fullmatch(r"[A-Za-z0-9._~-]+", value))
            ):
                yield location, "in a connection string only letters, digits and ._~- are safe"

    def packages_for(self, distribution: str, codename: str) -> tuple[str, ...]:
        """What the API and the database are asked with."""
        del distribution, codename
        return PACKAGES

    @property
    def image_names(self) -> tuple[str, ...]:
        """Names in ``images.toml`` of the images the role runs."""
        return ("anythingllm",)

    @property
    def reference(self) -> str:
        """Name of the image as Compose and the engine use it."""
        return self.images.reference("anythingllm")

    @property
    def publish(self) -> str:
        """Address and port on the host, IPv6 in brackets."""
        return str(Publish(address=self.publish_address, port=self.publish_port))

    @property
    def local_url(self) -> str:
        """Where the host itself reaches the API."""
        return f"http://{Publish(address=self.publish_address, port=self.publish_port).local}"

    @property
    def storage(self) -> str:
        """AnythingLLM's storage directory on the host."""
        return str(PurePosixPath(self.data_dir, "storage"))

    @property
    def env_file(self) -> str:
        """The .env that AnythingLLM writes itself, on the host."""
        return str(PurePosixPath(self.data_dir, "server.env"))

    @property
    def embedder(self) -> str:
        """What embeds documents, and where the pieces are kept: neither can change beneath documents."""
        return f"{self.embedding_model or 'native'} {self.vector_database.kind}"

    @property
    def user_fields(self) -> dict[str, dict[str, Any]]:
        """What the API is told of each user, the administrator first."""
        return {
            self.admin.username: {"role": "admin", "suspended": 0},
            **{name: user.fields for name, user in self.users.items()},
        }

    @property
    def environment(self) -> dict[str, str]:
        """What is no secret of the server's environment: names as in AnythingLLM's docker/.env.example."""
        values: dict[str, str] = {
            "STORAGE_DIR": "/app/server/storage",
            "SERVER_PORT": "3001",
            "DISABLE_TELEMETRY": "true",
            "LLM_PROVIDER": "ollama",
            "OLLAMA_BASE_PATH": self.ollama_url,
            "OLLAMA_MODEL_PREF": self.model,
            "OLLAMA_MODEL_TOKEN_LIMIT": str(self.context_tokens),
            "OLLAMA_RESPONSE_TIMEOUT": str(int(self.ollama_timeout.total_seconds() * 1000)),
            "EMBEDDING_ENGINE": "ollama" if self.embedding_model else "native",
            **self.vector_database.environment,
            "PASSWORDMINCHAR": str(self.password_length),
            "DISABLE_SWAGGER_DOCS": "true",
        }
        if self.web_search:
            values["AGENT_SEARXNG_API_URL"] = self.web_search
        if self.embedding_model:
            values["EMBEDDING_BASE_PATH"] = self.ollama_url
            values["EMBEDDING_MODEL_PREF"] = self.embedding_model
            values["EMBEDDING_MODEL_MAX_CHUNK_LENGTH"] = str(self.embedding_chunk_length)
        return values

    @property
    def secret_environment(self) -> dict[str, str]:
        """What is secret of it.

        Raises:
            SecretError: a secret cannot be had.
        """
        return {
            "SIG_KEY": self.sig_key.reveal(),
            "SIG_SALT": self.sig_salt.reveal(),
            "JWT_SECRET": self.jwt_secret.reveal(),
            "AUTH_TOKEN": self.auth_token.reveal(),
            **self.vector_database.secret_environment,
        }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _key(name: str) -> str:
    try:
        return ModelName.parse(name).key
    except ValueError:
        return name
