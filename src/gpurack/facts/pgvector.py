"""Whether a running PostgreSQL takes the password its container was given."""

from __future__ import annotations

from pyinfra.api import FactBase

CONTAINER = "pgvector-pgvector-1"
# Over the network, by the service's name: from its own loopback and socket the image's pg_hba.conf trusts everyone.
LOGIN = (
    "PGPASSWORD=$POSTGRES_PASSWORD psql --no-psqlrc --quiet --tuples-only --host pgvector "
    '--username "$POSTGRES_USER" --dbname "$POSTGRES_DB" --command "SELECT 1"'
)


class PgvectorPassword(FactBase[bool]):
    """Return whether the password in the container's environment opens the database over the network."""

    @staticmethod
    def default() -> bool:
        """Return the value where nothing answers."""
        return False

    def command(self) -> str:
        """Return the command; the password is read from the environment inside the container."""
        return f"docker exec {CONTAINER} sh -c '{LOGIN}' >/dev/null 2>&1 && echo yes || true"

    def process(self, output: list[str]) -> bool:
        """Return whether it said yes."""
        return "".join(output).strip() == "yes"
