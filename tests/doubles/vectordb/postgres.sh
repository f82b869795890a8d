#!/bin/sh
# What docker-library's entrypoint of PostgreSQL does, as far as gpurack uses it, around Debian's real PostgreSQL.
set -eu
PATH=/usr/lib/postgresql/17/bin:$PATH
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    : "${POSTGRES_PASSWORD:?}"
    mkdir -p "$PGDATA"
    chmod 700 "$PGDATA"
    printf '%s\n' "$POSTGRES_PASSWORD" | initdb --username="$POSTGRES_USER" --pwfile=/dev/stdin --locale=C.UTF-8 >/dev/null
    printf '\nhost all all all scram-sha-256\n' >>"$PGDATA/pg_hba.conf"
    pg_ctl --pgdata "$PGDATA" --options "-c listen_addresses=''" --wait start >/dev/null
    createdb --username "$POSTGRES_USER" "$POSTGRES_DB"
    pg_ctl --pgdata "$PGDATA" --wait stop >/dev/null
fi
exec postgres -c listen_addresses='*'
