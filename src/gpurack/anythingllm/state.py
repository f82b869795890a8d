"""What gpurack remembers of an AnythingLLM on its host, and what may not be done to its data.

The notes are on the system disk and not beside the data: a data disk that is not mounted is found by them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

STATE = "/var/lib/gpurack/anythingllm"
"""Directory of the notes: root's alone."""

KEYS_FILE = f"{STATE}/sig.sha256"
MARKER = f"{STATE}/data"
PENDING = f"{STATE}/pending"
REFUSED = f"{STATE}/refused"
API_CONF = f"{STATE}/api.conf"
API_KEYS = f"{STATE}/keys"
UID = 1000
"""User and group in the image (``ARG_UID`` of AnythingLLM's Dockerfile)."""


def fingerprint(sig_key: str, sig_salt: str) -> str:
    """Return what is noted of SIG_KEY and SIG_SALT: the SHA-256 of both, 64 or more random characters."""
    return hashlib.sha256(f"{sig_key}\n{sig_salt}\n".encode()).hexdigest()


@dataclass
class Data:
    """The data of an AnythingLLM, and gpurack's notes on it.

    Attributes:
        database_bytes: size of the SQLite file; 0 where there is none.
        env_kind: what ``server.env`` is: ``file``, ``directory``, ``none``.
        owners: path -> ``uid:gid mode`` of the data directory, the storage directory and ``server.env``.
        stray: a path below the storage directory that does not belong to the image's user; empty if all do.
        noted_keys: fingerprint of the keys the data was made with, as noted; None before the first start.
        env_keys: fingerprint of the keys in ``server.env``; None if they are not in it.
        reference: name of the image the data was last used with, as noted; None before the first start.
        image_id: ID of that image.
        embedder: what embedded the documents, and where the pieces are, as noted.
        vectors: number of pieces of documents.
        pending: restore point of an upgrade that was cut off, and its phase; None if there is none.
        refused: image ID of a release that was taken back, and why; None if there is none.
        points: names of the restore points, oldest first.
    """

    database_bytes: int = 0
    env_kind: str = "none"
    owners: dict[str, str] = field(default_factory=dict)
    stray: str = ""
    noted_keys: str | None = None
    env_keys: str | None = None
    reference: str | None = None
    image_id: str | None = None
    embedder: str | None = None
    vectors: int = 0
    pending: str | None = None
    refused: str | None = None
    points: list[str] = field(default_factory=list)

    @property
    def exists(self) -> bool:
        """Whether there is a database with something in it."""
        return self.database_bytes > 0


@dataclass(frozen=True)
class Wanted:
    """What a run is about to start.

    Attributes:
        keys: fingerprint of SIG_KEY and SIG_SALT.
        embedder: what embeds documents, and where the pieces are kept, such as ``ollama:bge-m3 lancedb``.
        image_ids: IDs the image may have on the host: those in its archive, or the one the host has already.
        data_dir: the data directory.
    """

    keys: str
    embedder: str
    image_ids: frozenset[str]
    data_dir: str


def obstacles(data: Data, wanted: Wanted) -> Iterator[str]:
    """Yield why the server must not be started as wanted, each with its cure; nothing is changed by then."""
    storage, env = f"{wanted.data_dir}/storage", f"{wanted.data_dir}/server.env"
    if data.reference and not data.exists and not data.pending:
        yield (
            f"{storage} has no database, and this host served one: mount the disk that holds {wanted.data_dir}, or "
            f"copy back a restore point{_points(data, wanted)}; to begin anew with nothing, remove {STATE}"
        )
        return
    if data.env_kind == "directory":
        yield (
            f"{env} is a directory, so that AnythingLLM can keep no settings (an earlier `docker run` made it): "
            f"stop AnythingLLM and run rmdir {env}"
        )
    elif data.env_kind == "none" and data.reference:
        yield (
            f"{env} is gone, and with it the settings made in the web pages: copy it back from a restore point"
            f"{_points(data, wanted)} or a backup; to go on without them, run touch {env}"
        )
    yield from _key_obstacles(data, wanted, env)
    if data.vectors and data.embedder and data.embedder != wanted.embedder:
        yield (
            f"{data.vectors} pieces of documents were made by {data.embedder}, and {wanted.embedder} cannot search "
            "them: set embedding_model and vector_database as they were, or remove the documents from all workspaces "
            "first and embed them again afterwards"
        )
    if data.refused and data.refused.split(" ", 1)[0] in wanted.image_ids:
        yield (
            f"this release was tried and taken back ({data.refused.partition(' ')[2]}): choose another, or remove "
            f"{REFUSED} to try it again"
        )


def _key_obstacles(data: Data, wanted: Wanted, env: str) -> Iterator[str]:
    cure = "set sig_key and sig_salt as they were; with others, stored credentials are unreadable"
    if data.noted_keys:
        if data.noted_keys != wanted.keys:
            yield f"sig_key and sig_salt are not the ones this host's data was made with: {cure}"
    elif data.exists and data.env_keys != wanted.keys:
        why = "are not the ones in it" if data.env_keys else "cannot be compared, as they are not in it"
        yield (
            f"there is data from before gpurack, and sig_key and sig_salt {why} ({env}): {cure}. They are SIG_KEY and "
            "SIG_SALT of the old container (docker exec ... printenv); write them into that file too, as SIG_KEY='...'"
        )


def _points(data: Data, wanted: Wanted) -> str:
    return f" ({wanted.data_dir}/restore-points/{data.points[-1]})" if data.points else ""


def needs_restore_point(data: Data, image_id: str | None) -> bool:
    """Tell whether another image than the last one is about to use the data, or one that nobody knows."""
    if not data.exists:
        return False
    return data.image_id != image_id if image_id else True
