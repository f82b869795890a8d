"""Operations on PostgreSQL in a container."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra import host
from pyinfra.api import operation

from gpurack.facts.pgvector import CONTAINER, PgvectorPassword

# psql reads the password from its environment: in an argument or a here document it could be seen.
ALTER = (
    f"docker exec --interactive {CONTAINER} sh -c 'exec psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 "
    '--username "$POSTGRES_USER" --dbname "$POSTGRES_DB"\' <<\'END\'\n'
    "\\getenv password POSTGRES_PASSWORD\n"
    "ALTER ROLE :\"USER\" PASSWORD :'password';\n"
    "END"
)


@operation()
def password() -> Generator[str, None, None]:
    """Give the database's user the password in the container's environment, heeded by the image at first start only."""
    if host.get_fact(PgvectorPassword):
        host.noop("the database takes the password")
        return
    yield ALTER
