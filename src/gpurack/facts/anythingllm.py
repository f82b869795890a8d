"""Facts about an AnythingLLM: its data on the disk, and what it says over its API."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyinfra.api import FactBase

from gpurack.anythingllm.state import API_CONF, API_KEYS, KEYS_FILE, MARKER, PENDING, REFUSED, UID, Data

DATA_COMMAND = """\
cd / ; d={data}
test -s "$d/storage/anythingllm.db" && stat -c 'database %s' "$d/storage/anythingllm.db"
if test -f "$d/server.env"; then echo 'env file'; elif test -e "$d/server.env"; then echo 'env directory'; fi
for path in "$d" "$d/storage" "$d/server.env"; do test -e "$path" && stat -c 'owner %u:%g %a %n' "$path"; done
test -d "$d/storage" && find "$d/storage" '(' ! -uid {uid} -o ! -gid {uid} ')' -printf 'stray %p\\n' -quit
key=$(sed -n "s/^SIG_KEY='\\(.*\\)'$/\\1/p" "$d/server.env" 2>/dev/null)
salt=$(sed -n "s/^SIG_SALT='\\(.*\\)'$/\\1/p" "$d/server.env" 2>/dev/null)
test -n "$key" && test -n "$salt" && printf 'env_keys %s\\n' "$(printf '%s\\n%s\\n' "$key" "$salt" | sha256sum)"
test -f {keys} && printf 'noted_keys %s\\n' "$(cat {keys})"
test -f {marker} && cat {marker}
test -f {pending} && printf 'pending %s\\n' "$(cat {pending})"
test -f {refused} && printf 'refused %s\\n' "$(cat {refused})"
for path in "$d"/restore-points/*; do
case $path in *.part|*'*') ;; *) printf 'point %s\\n' "${{path##*/}}";; esac; done
if test -s "$d/storage/anythingllm.db" && command -v sqlite3 >/dev/null 2>&1; then
sqlite3 -readonly -cmd '.timeout 5000' "$d/storage/anythingllm.db" \
"SELECT 'vectors ' || count(*) FROM document_vectors" 2>/dev/null; fi
true"""


class AnythingllmData(FactBase[Data]):
    """Return the data directory's state and gpurack's notes on it; of keys only a fingerprint leaves the host."""

    default = Data

    def command(self, data_dir: str) -> str:
        """Return the command; each line it prints starts with what it tells."""
        return DATA_COMMAND.format(
            data=shlex.quote(data_dir), uid=UID, keys=KEYS_FILE, marker=MARKER, pending=PENDING, refused=REFUSED
        )

    def process(self, output: list[str]) -> Data:
        """Parse the lines."""
        data = Data()
        for line in output:
            kind, _, rest = line.partition(" ")
            rest = rest.strip()
            if kind == "database":
                data.database_bytes = int(rest)
            elif kind == "env":
                data.env_kind = rest
            elif kind == "owner":
                owner, mode, path = rest.split(" ", 2)
                data.owners[path] = f"{owner} {mode}"
            elif kind == "env_keys":
                data.env_keys = rest.split(" ")[0]
            elif kind == "vectors":
                data.vectors = int(rest)
            elif kind == "point":
                data.points.append(rest)
            elif kind in ("stray", "noted_keys", "reference", "image_id", "embedder", "pending", "refused"):
                setattr(data, kind, rest)
        return data


PREFERENCES = ("agent_search_provider", "default_agent_skills")


class AnythingllmPreferences(FactBase[dict[str, str]]):
    """Return AnythingLLM's system settings that gpurack declares, by label; no API tells them."""

    default = dict

    def command(self, data_dir: str) -> str:
        """Return the command that reads the database; without one it prints nothing."""
        database = shlex.quote(f"{data_dir}/storage/anythingllm.db")
        query = (
            "SELECT label || ' ' || value FROM system_settings "
            "WHERE label IN ('agent_search_provider', 'default_agent_skills') AND value IS NOT NULL"
        )
        return (
            f"test -s {database} && command -v sqlite3 >/dev/null 2>&1 && "
            f"sqlite3 -readonly -cmd '.timeout 5000' {database} {shlex.quote(query)}; true"
        )

    def process(self, output: list[str]) -> dict[str, str]:
        """Parse the lines."""
        return {label: value for label, _, value in (line.partition(" ") for line in output) if label in PREFERENCES}


SEARCH_SKILL = "web-browsing"
SEARCH_PROVIDER = "searxng-engine"


def skills_of(preferences: Mapping[str, str]) -> list[str]:
    """Return the agents' skills that are switched on (``default_agent_skills``, a list in JSON)."""
    try:
        found = json.loads(preferences.get("default_agent_skills", "[]"))
    except ValueError:
        return []
    return [str(skill) for skill in found] if isinstance(found, list) else []


def searches_as(preferences: Mapping[str, str], wanted: bool) -> bool:
    """Tell whether agents search the web by SearXNG, or, where that is not wanted, not at all.

    A provider that is not set is DuckDuckGo to AnythingLLM (web-browsing.js), so that without the skill is the one way
    of not searching.
    """
    if not wanted:
        return SEARCH_SKILL not in skills_of(preferences)
    return SEARCH_SKILL in skills_of(preferences) and preferences.get("agent_search_provider") == SEARCH_PROVIDER


@dataclass
class Instance:
    """What a running AnythingLLM says of itself.

    Attributes:
        answers: whether it answers at all.
        multi_user: whether users have accounts.
        authorised: whether gpurack's API key on the host is good.
        users: login name -> user as the API gives it.
        workspaces: slug -> workspace as the API gives it.
        members: slug -> login names of its members, administrators among them.
        keys: name of an API key on the host -> whether it is good.
        loose: files with keys that others than root can read, or own.
    """

    answers: bool = False
    multi_user: bool = False
    authorised: bool = False
    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    workspaces: dict[str, dict[str, Any]] = field(default_factory=dict)
    members: dict[str, set[str]] = field(default_factory=dict)
    keys: dict[str, bool] = field(default_factory=dict)
    loose: list[str] = field(default_factory=list)


# No key on a command line: curl reads it from a file, or from a pipe of the shell's own printf.
INSTANCE_COMMAND = """\
command -v curl >/dev/null 2>&1 && command -v jq >/dev/null 2>&1 &&
mode=$(curl --silent --fail --max-time 5 {url}/api/system/multi-user-mode) || exit 0
ask() {{ curl --silent --fail --max-time 20 --config {conf} {url}"$1"; }}
printf 'mode %s\\n' "$mode"
find {conf} {keys} -type f '(' -perm /077 -o ! -user root ')' -printf 'loose %p\\n' 2>/dev/null
test -f {conf} && auth=$(ask /api/v1/auth) && {{
printf 'auth %s\\nusers %s\\n' "$auth" "$(ask /api/v1/admin/users)"
found=$(ask /api/v1/workspaces); printf 'workspaces %s\\n' "$found"
for id in $(printf '%s' "$found" | jq --raw-output '.workspaces[].id'); do
printf 'members %s %s\\n' "$id" "$(ask /api/v1/admin/workspaces/$id/users)"; done; }}
for file in {keys}/*; do test -f "$file" && printf 'key %s %s\\n' "${{file##*/}}" "$(
printf 'header = "Authorization: Bearer %s"\\n' "$(cat "$file")" |
curl --silent --fail --max-time 20 --config - {url}/api/v1/auth)"; done
true"""


class AnythingllmInstance(FactBase[Instance]):
    """Return what AnythingLLM says over its API, asked from the host itself."""

    default = Instance

    def command(self, url: str) -> str:
        """Return the command; each line it prints starts with what it tells, and ends with an answer in JSON."""
        return INSTANCE_COMMAND.format(url=shlex.quote(url), conf=API_CONF, keys=API_KEYS)

    def process(self, output: list[str]) -> Instance:
        """Parse the lines; an answer that is no JSON is none."""
        found = Instance()
        slugs: dict[int, str] = {}
        for line in output:
            kind, _, rest = line.partition(" ")
            if kind == "loose":
                found.loose.append(rest)
                continue
            name = ""
            if kind in ("members", "key"):
                name, _, rest = rest.partition(" ")
            answer = _object(rest)
            if kind == "mode":
                found.answers, found.multi_user = "multiUserMode" in answer, answer.get("multiUserMode") is True
            elif kind == "auth":
                found.authorised = answer.get("authenticated") is True
            elif kind == "users":
                found.users = {user["username"]: user for user in answer.get("users", [])}
            elif kind == "workspaces":
                found.workspaces = {item["slug"]: item for item in answer.get("workspaces", [])}
                slugs = {item["id"]: slug for slug, item in found.workspaces.items()}
            elif kind == "members" and int(name) in slugs:
                found.members[slugs[int(name)]] = {user["username"] for user in answer.get("users", [])}
            elif kind == "key":
                found.keys[name] = answer.get("authenticated") is True
        return found


def _object(text: str) -> dict[str, Any]:
    """Return the JSON object in a text; an empty one where there is none."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
