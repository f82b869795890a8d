"""What each database's image wants: users, paths, ports and health checks as their makers document them.

Sources: docker-library/postgres (17) and pgvector's README; chroma's rust/Dockerfile and docker_single_node.yaml;
Milvus' scripts/standalone_embed.sh; Qdrant's config/config.yaml and tools/entrypoint.sh.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpurack.service import Service
from roles.vectordb.settings import Milvus, Pgvector, Qdrant, VectordbSettings

EMBED_ETCD = "embedEtcd.yaml"
EMBED_ETCD_TEXT = """\
# Managed by gpurack, role vectordb: etcd inside Milvus asks nobody who they are, and listens to Milvus alone.
listen-client-urls: http://127.0.0.1:2379
advertise-client-urls: http://127.0.0.1:2379
quota-backend-bytes: 4294967296
auto-compaction-mode: revision
auto-compaction-retention: '1000'
"""

# Qdrant's image has bash, and neither curl nor wget. /readyz needs no API key.
QDRANT_READY = (
    "exec 3<>/dev/tcp/127.0.0.1/6333 && printf 'GET /readyz HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' >&3 "
    "&& head -n 1 <&3 | grep -q ' 200 '"
)


def services(settings: VectordbSettings) -> Iterator[Service]:
    """Yield the services of the databases that run, with their secrets' values.

    Raises:
        gpurack.secrets.SecretError: a secret cannot be had.
    """
    if settings.pgvector:
        yield pgvector(settings.pgvector)
    if settings.chroma:
        yield chroma()
    if settings.milvus:
        yield milvus(settings.milvus)
    if settings.qdrant:
        yield qdrant(settings.qdrant)


def pgvector(database: Pgvector) -> Service:
    """Return PostgreSQL as the user postgres of its image; it is given its password when it makes its cluster."""
    return Service(
        name="pgvector",
        image="pgvector",
        port=5432,
        health=("CMD-SHELL", 'pg_isready --quiet --username "$$POSTGRES_USER" --dbname "$$POSTGRES_DB"'),
        user="999:999",
        environment={
            "POSTGRES_USER": database.user,
            "POSTGRES_DB": database.database,
            "PGDATA": "/var/lib/postgresql/data/pgdata",
        },
        secrets={"POSTGRES_PASSWORD": database.password.reveal()},
        folders={"data": "/var/lib/postgresql/data"},
        shm_size=f"{database.shm_size_mib}m",
        stop_seconds=60,
    )


def chroma() -> Service:
    """Return Chroma; its image runs as root unless told otherwise, and needs it for nothing."""
    return Service(
        name="chroma",
        image="chroma",
        port=8000,
        health=("CMD", "curl", "--silent", "--fail", "--output", "/dev/null", "http://127.0.0.1:8000/api/v2/heartbeat"),
        user="1000:1000",
        folders={"data": "/data"},
    )


def milvus(database: Milvus) -> Service:
    """Return Milvus standalone with etcd inside and local storage: no MinIO and no etcd of its own to look after."""
    return Service(
        name="milvus",
        image="milvus",
        port=19530,
        health=("CMD", "curl", "--silent", "--fail", "--output", "/dev/null", "http://127.0.0.1:9091/healthz"),
        command=("milvus", "run", "standalone"),
        environment={
            "DEPLOY_MODE": "STANDALONE",
            "ETCD_USE_EMBED": "true",
            "ETCD_DATA_DIR": "/var/lib/milvus/etcd",
            "ETCD_CONFIG_PATH": "/milvus/configs/embedEtcd.yaml",
            "COMMON_STORAGETYPE": "local",
            "COMMON_SECURITY_AUTHORIZATIONENABLED": "true",
        },
        secrets={"COMMON_SECURITY_DEFAULTROOTPASSWORD": database.password.reveal()},
        folders={"data": "/var/lib/milvus"},
        files={EMBED_ETCD: "/milvus/configs/embedEtcd.yaml"},
        stop_seconds=60,
    )


def qdrant(database: Qdrant) -> Service:
    """Return Qdrant; what it would write beside its program goes to its storage, so that it needs no root."""
    return Service(
        name="qdrant",
        image="qdrant",
        port=6333,
        health=("CMD", "bash", "-c", QDRANT_READY),
        user="1000:1000",
        environment={
            "QDRANT__TELEMETRY_DISABLED": "true",
            "QDRANT__STORAGE__STORAGE_PATH": "/qdrant/storage",
            "QDRANT__STORAGE__SNAPSHOTS_PATH": "/qdrant/snapshots",
            "QDRANT_INIT_FILE_PATH": "/qdrant/snapshots/.qdrant-initialized",
        },
        secrets={"QDRANT__SERVICE__API_KEY": database.api_key.reveal()},
        folders={"storage": "/qdrant/storage", "snapshots": "/qdrant/snapshots"},
    )
