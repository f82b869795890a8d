"""Operations on AnythingLLM: its data, its release, and what it is told over its API."""

from __future__ import annotations

import json
import shlex
from collections.abc import Generator, Mapping
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any

from pyinfra import host
from pyinfra.api import operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.operations import files

from gpurack.anythingllm import state as notes
from gpurack.anythingllm.state import API_CONF, API_KEYS, KEYS_FILE, MARKER, STATE, UID
from gpurack.diff import log_diff
from gpurack.facts.anythingllm import (
    SEARCH_PROVIDER,
    SEARCH_SKILL,
    AnythingllmData,
    AnythingllmInstance,
    AnythingllmPreferences,
    searches_as,
    skills_of,
)
from gpurack.facts.docker import ComposeProject, ImageId
from gpurack.facts.textfile import TextFile
from gpurack.operations import compose
from gpurack.operations.secretfile import Content, sealed_file
from gpurack.rendering import render

Commands = Generator[str | PyinfraCommand, None, None]

PROJECT = "anythingllm"
UPGRADE = Path(notes.__file__).with_name("upgrade.sh")
REQUEST = f"{STATE}/request"
"""A request's body with a secret in it, on the host for as long as the request takes."""

# Every answer is looked at: AnythingLLM says some errors with status 200. Bodies come from files or pipes, never
# from arguments.
FUNCTIONS = """\
umask 077
trap 'rm -f {request} {request}-2' EXIT
ask() {{ curl --silent --max-time 60 --header 'Content-Type: application/json' "$@"; }}
good() {{ # answer, what was tried
error=$(printf '%s' "$1" | jq --raw-output '
if type != "object" then "no answer" elif .error then .error elif .success == false then (.message // "refused")
elif (has("valid") or has("workspace")) and .message then .message else empty end' 2>&1)
test -n "$1" && test -z "$error" && return 0
echo "AnythingLLM: $2: ${{error:-no answer within 60 s}}" >&2; exit 1; }}
post() {{ answer=$(ask --config {conf} --data-binary @- {url}"$1"); good "$answer" "$1"; }}
login() {{ answer=$(ask --data-binary @{request} {url}/api/request-token); rm -f {request}
good "$answer" "$1"; token=$(printf '%s' "$answer" | jq --raw-output '.token'); }}
session() {{ printf 'header = "Authorization: Bearer %s"\\n' "$token" | ask --config - "$@"; }}
"""


def functions(url: str) -> str:
    """Return the shell functions that the commands of this module begin with."""
    return FUNCTIONS.format(conf=API_CONF, url=shlex.quote(url), request=REQUEST)


def _json(value: Any) -> str:
    return shlex.quote(json.dumps(value))


@operation()
def data_place(data_dir: str) -> Commands:
    """Make the directories and the ``.env`` that AnythingLLM writes, with the owner the image has.

    Nobody else on the host can enter: the image's user 1000 is often a person's account on a host.

    + data_dir: the data directory
    """
    data = host.get_fact(AnythingllmData, data_dir=data_dir)
    before = len(data.owners)
    for path, owner, mode in (
        (data_dir, "0:0", "700"),
        (f"{data_dir}/storage", f"{UID}:{UID}", "700"),
        (f"{data_dir}/server.env", f"{UID}:{UID}", "600"),
    ):
        if data.owners.get(path) == f"{owner} {mode}":
            continue
        quoted = shlex.quote(path)
        make = f"touch {quoted}" if path.endswith(".env") else f"install -d {quoted}"
        yield f"{make} && chown {owner} {quoted} && chmod {mode} {quoted}"
        before = 0
    if data.stray:
        yield f"chown --recursive --no-dereference {UID}:{UID} {shlex.quote(data_dir + '/storage')}"
    elif before:
        host.noop("the data has its place")


@operation()
def note_keys(data_dir: str, fingerprint: str) -> Commands:
    """Note which keys the data is made with, before it is made.

    + data_dir: the data directory
    + fingerprint: of SIG_KEY and SIG_SALT
    """
    if host.get_fact(AnythingllmData, data_dir=data_dir).noted_keys == fingerprint:
        host.noop("the keys are noted")
        return
    yield (
        f"install -d -m 700 {STATE} && echo {fingerprint} >{KEYS_FILE}.new && sync {KEYS_FILE}.new "
        f"&& mv {KEYS_FILE}.new {KEYS_FILE}"
    )


@operation()
def release(
    src: str, timeout: timedelta, data_dir: str, reference: str, embedder: str, keep: int, **data: Any
) -> Commands:
    """Run the Compose project; a release that meets data of another one is tried, and taken back if it loses any.

    + src: Jinja2 template of the Compose file
    + timeout: longest wait for the service to become healthy
    + data_dir: the data directory
    + reference: name of the image
    + embedder: what embeds documents, and where the pieces are kept
    + keep: restore points that are kept
    + data: variables of the template
    """
    found = host.get_fact(AnythingllmData, data_dir=data_dir)
    image_id = host.get_fact(ImageId, reference=reference)
    note = (
        f"printf 'reference %s\\nimage_id %s\\nembedder %s\\n' {shlex.quote(reference)} "
        f"$(docker image inspect --format '{{{{.Id}}}}' {shlex.quote(reference)}) {shlex.quote(embedder)} "
        f">{MARKER}.new && mv {MARKER}.new {MARKER}"
    )
    if not found.pending and not notes.needs_restore_point(found, image_id):
        yield from compose.project._inner(project=PROJECT, src=src, timeout=timeout, **data)
        if (found.reference, found.image_id, found.embedder) != (reference, image_id, embedder):
            yield note
        return
    path = compose.compose_file(PROJECT)
    wanted = render(src, **data)
    current = host.get_fact(TextFile, path=path)
    log_diff(path, current.content if current else "", wanted)
    yield from files.put._inner(src=StringIO(wanted), dest=f"{path}.new", user="root", group="root", mode="600")
    yield f"docker compose --file {path}.new config --quiet || {{ rm -f {path}.new; exit 1; }}"
    values = {
        "data": data_dir,
        "file": path,
        "state": STATE,
        "keep": str(keep),
        "seconds": str(int(timeout.total_seconds())),
        "name": datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"),
        "reference": reference,
        "embedder": embedder,
        "project": PROJECT,
    }
    head = "\n".join(f"{name}={shlex.quote(value)}" for name, value in values.items())
    yield f"{head}\n{UPGRADE.read_text()}"


@operation()
def administrator(url: str, username: str, password: Content, auth_token: Content) -> Commands:
    """Turn on multi-user mode with its first administrator.

    + url: where the host reaches AnythingLLM
    + username: login name of the administrator
    + password: JSON of ``username`` and ``password``
    + auth_token: JSON of ``password``, with AUTH_TOKEN in it
    """
    if host.get_fact(AnythingllmInstance, url=url).multi_user:
        host.noop("multi-user mode is on")
        return
    yield from sealed_file._inner(dest=REQUEST, content=auth_token)
    yield from sealed_file._inner(dest=f"{REQUEST}-2", content=password)
    yield (
        f"{functions(url)}login 'the login with auth_token'\n"
        f"answer=$(session --data-binary @{REQUEST}-2 {shlex.quote(url)}/api/system/enable-multi-user)\n"
        f'good "$answer" {shlex.quote(f"the first administrator {username}")}'
    )


@operation()
def api_keys(url: str, login: Content, names: tuple[str, ...]) -> Commands:
    """Make gpurack's own API key and the declared ones, each kept in a file for root on the host.

    AnythingLLM gives keys to a logged-in administrator only, and shows them to administrators.

    + url: where the host reaches AnythingLLM
    + login: JSON of the administrator's ``username`` and ``password``
    + names: of the keys
    """
    found = host.get_fact(AnythingllmInstance, url=url)
    missing = [name for name in names if not found.keys.get(name)]
    for path in found.loose:
        yield f"chown root:root {shlex.quote(path)} && chmod 600 {shlex.quote(path)}"
    if found.authorised and not missing:
        if not found.loose:
            host.noop("the API keys are there")
        return
    yield from sealed_file._inner(dest=REQUEST, content=login)
    script = (
        f"{functions(url)}install -d -m 700 {API_KEYS}\n"
        "login 'the login as administrator (its password here must be its password there; or make a key in the web "
        f'pages and write header = "Authorization: Bearer KEY" to {API_CONF})\'\n'
        f"make() {{ answer=$(jq --null-input --arg name \"$1\" '{{name: $name}}' >{REQUEST}; "
        f"session --data-binary @{REQUEST} {shlex.quote(url)}/api/admin/generate-api-key); rm -f {REQUEST}\n"
        'good "$answer" "API key $1"; key=$(printf \'%s\' "$answer" | jq --raw-output \'.apiKey.secret\'); '
        'test -n "$key" || exit 1; }\n'
    )
    if not found.authorised:
        script += (
            f'make gpurack; printf \'header = "Authorization: Bearer %s"\\n\' "$key" >{API_CONF}.new '
            f"&& mv {API_CONF}.new {API_CONF} || exit 1\n"
        )
    for name in missing:
        path = shlex.quote(str(PurePosixPath(API_KEYS, name)))
        script += f"make {shlex.quote(name)}; printf '%s\\n' \"$key\" >{path}.new && mv {path}.new {path} || exit 1\n"
    yield script


@operation()
def users(
    url: str,
    wanted: Mapping[str, Mapping[str, Any]],
    first: Mapping[str, Content],
    unlisted: str,
) -> Commands:
    """Make users that are missing, and give the others their role, limit and state.

    + url: where the host reaches AnythingLLM
    + wanted: login name -> fields as the API has them
    + first: login name -> JSON of a new user with its first password
    + unlisted: report, suspend or remove users that are not in ``wanted``
    """
    found = host.get_fact(AnythingllmInstance, url=url)
    changed = False
    for name, fields in wanted.items():
        user = found.users.get(name)
        if user is None and name in first:
            changed = True
            yield from sealed_file._inner(dest=REQUEST, content=first[name])
            yield f"{functions(url)}post /api/v1/admin/users/new <{REQUEST}"
            user = {"role": fields.get("role"), "dailyMessageLimit": fields.get("dailyMessageLimit"), "suspended": 0}
        if different := {key: value for key, value in fields.items() if (user or {}).get(key) != value}:
            changed = True
            yield _update_user(url, name, different)
    for name, user in found.users.items():
        if name in wanted or unlisted == "report" or (unlisted == "suspend" and user.get("suspended")):
            continue
        changed = True
        if unlisted == "suspend":
            yield _update_user(url, name, {"suspended": 1})
        else:
            number = int(user["id"])
            yield (
                f"{functions(url)}answer=$(ask --request DELETE --config {API_CONF} "
                f'{shlex.quote(url)}/api/v1/admin/users/{number}); good "$answer" {shlex.quote(f"removing {name}")}'
            )
    if not changed:
        host.noop("the users are as declared")


def _update_user(url: str, name: str, fields: Mapping[str, Any]) -> str:
    # By name, as the number of a user made in the same run is not known before.
    return (
        f"{functions(url)}id=$(ask --config {API_CONF} {shlex.quote(url)}/api/v1/admin/users | "
        f"jq --arg name {shlex.quote(name)} '.users[] | select(.username == $name).id')\n"
        f"printf '%s' {_json(fields)} | post \"/api/v1/admin/users/$id\""
    )


@operation()
def workspaces(url: str, wanted: Mapping[str, Mapping[str, Any]], members: Mapping[str, tuple[str, ...]]) -> Commands:
    """Make workspaces that are missing, and give the others their settings and members.

    + url: where the host reaches AnythingLLM
    + wanted: slug -> fields as the API has them
    + members: slug -> login names, the only members; a workspace that is not in it is let be
    """
    found = host.get_fact(AnythingllmInstance, url=url)
    changed = False
    for slug, fields in wanted.items():
        current = found.workspaces.get(slug)
        if current is None:
            changed = True
            yield _new_workspace(url, slug, fields)
            different = {"name": fields["name"]} if fields["name"] != slug else {}
        else:
            different = {key: value for key, value in fields.items() if current.get(key) != value}
        if different:
            changed = True
            yield f"{functions(url)}printf '%s' {_json(different)} | post /api/v1/workspace/{slug}/update"
        if slug in members and (current is None or found.members.get(slug, set()) != set(members[slug])):
            if current is None and not members[slug]:
                continue
            changed = True
            yield _set_members(url, slug, members[slug])
    if not changed:
        host.noop("the workspaces are as declared")


def _new_workspace(url: str, slug: str, fields: Mapping[str, Any]) -> str:
    # AnythingLLM makes the slug of the name it is first given.
    return (
        f"{functions(url)}answer=$(printf '%s' {_json({**fields, 'name': slug})} | "
        f"ask --config {API_CONF} --data-binary @- {shlex.quote(url)}/api/v1/workspace/new)\n"
        f"good \"$answer\" 'workspace {slug}'; made=$(printf '%s' \"$answer\" | jq --raw-output '.workspace.slug')\n"
        f'test "$made" = {slug} || {{ echo "AnythingLLM named workspace {slug} $made" >&2; exit 1; }}'
    )


def _set_members(url: str, slug: str, names: tuple[str, ...]) -> str:
    at = shlex.quote(url)
    return (
        f"{functions(url)}ids=$(ask --config {API_CONF} {at}/api/v1/admin/users | jq --compact-output "
        f"--argjson names {_json(list(names))} "
        "'[.users[] | select(.username as $name | $names | index($name)).id]')\n"
        f"id=$(ask --config {API_CONF} {at}/api/v1/workspace/{slug} | jq '.workspace[0].id')\n"
        # The other way to set members takes no empty list.
        'printf \'{"userIds": %s}\' "$ids" | post "/api/v1/admin/workspaces/$id/update-users"'
    )


@operation()
def web_search(url: str, data_dir: str, wanted: bool) -> Commands:
    """Have agents search the web by SearXNG, or not at all.

    + url: where the host reaches AnythingLLM
    + data_dir: the data directory
    + wanted: whether agents may search
    """
    found = host.get_fact(AnythingllmPreferences, data_dir=data_dir)
    if searches_as(found, wanted):
        host.noop(f"agents {'search by SearXNG' if wanted else 'do not search the web'}")
        return
    skills = [skill for skill in skills_of(found) if skill != SEARCH_SKILL]
    told = {"default_agent_skills": ",".join([*skills, SEARCH_SKILL] if wanted else skills)}
    if wanted:
        told["agent_search_provider"] = SEARCH_PROVIDER
    yield f"{functions(url)}printf '%s' {_json(told)} | post /api/v1/admin/preferences"


def is_serving(data_dir: str) -> bool:
    """Tell whether the host has served AnythingLLM before, so that its API can be asked what is in it."""
    return bool(host.get_fact(AnythingllmData, data_dir=data_dir).reference) and bool(
        host.get_fact(ComposeProject, project=PROJECT, file=compose.compose_file(PROJECT)).containers
    )
