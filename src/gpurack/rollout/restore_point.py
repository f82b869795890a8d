"""Restore point of what a host serves: Compose projects, images and models, as they were before a roll-out.

Everything is kept on the host. Images are held by a tag of their own, models by hard links, so that a restore point
takes next to no room and nothing that the new state removes is gone before it has proved itself.

Of AnythingLLM's data, what its workspaces are told (model, prompt, ...) is part of it: chats and documents are not, as
people go on working. A new release of AnythingLLM is tried, and taken back, by its own upgrade; one that passed has
migrated the data, and stays.

Not part of it: packages, the engine's configuration, users. A roll-out that fails leaves those as the new state has
them; they are in the inventory's history.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from gpurack.operations.compose import ROOT as COMPOSE

ROOT = "/var/lib/gpurack/rollout"
POINT = f"{ROOT}/before"
MODELS = ".gpurack-rollout"
"""Folder beside the models, on their file system, as hard links need it."""

TOLD = (
    *("chatProvider", "chatModel", "agentProvider", "agentModel", "openAiPrompt", "openAiTemp", "openAiHistory"),
    *("similarityThreshold", "topN", "chatMode", "queryRefusalResponse"),
)
"""Columns of AnythingLLM's table of workspaces (server/prisma/schema.prisma) that say how a workspace answers."""

KEPT = "gpurack-rollout/kept"
"""Repository of the tags that hold images."""

_TAKE = r"""
set -eu
point={point} compose={compose} kept={models}/{folder}
if [ -d "$point" ]; then echo "kept $(date --utc --reference="$point" '+%Y-%m-%d %H:%M UTC')"; exit 0; fi
rm -rf "$point.new" "$kept"; install -d -m 700 {root} "$point.new" "$point.new/compose"
[ ! -d "$compose" ] || cp -a "$compose/." "$point.new/compose/"
: > "$point.new/images"
if command -v docker >/dev/null && docker info >/dev/null 2>&1; then
    for id in $(docker ps --all --quiet --filter label=com.docker.compose.project); do
        docker container inspect --format '{{{{.Image}}}} {{{{.Config.Image}}}}' "$id"
    done | sort -u > "$point.new/images"
    while read -r id reference; do
        short=${{id#sha256:}}
        docker tag "$id" "{repository}:$(printf %.16s "$short")"
    done < "$point.new/images"
fi
if [ -f {chat}/storage/anythingllm.db ]; then
    sqlite3 {chat}/storage/anythingllm.db ".timeout 10000" ".backup $point.new/anythingllm.db"
fi
if [ -d {models}/models ]; then
    install -d -m 700 "$kept"
    cp -al {models}/models "$kept/models"
fi
sync -f {root}
mv "$point.new" "$point"
echo taken
"""

_PUT_BACK = r"""
set -eu
point={point} compose={compose} kept={models}/{folder}
[ -d "$point" ] || {{ echo "there is no restore point in $point" >&2; exit 1; }}
images() {{ docker compose --file "$1/anythingllm/compose.yaml" config --images 2>/dev/null; }}
stays=""
if [ -f "$compose/anythingllm/compose.yaml" ] && [ "$(images "$compose")" != "$(images "$point/compose")" ]; then
    stays=anythingllm
fi
for folder in "$compose"/*/; do
    name=$(basename "$folder")
    [ -f "$folder/compose.yaml" ] && [ "$name" != "$stays" ] || continue
    if [ -f "$point/compose/$name/compose.yaml" ]; then verb="stop"; else verb="down --remove-orphans"; fi
    docker compose --project-name "$name" --file "$folder/compose.yaml" --progress quiet $verb >&2 || true
done
if [ -f "$point/anythingllm.db" ]; then
    sqlite3 {chat}/storage/anythingllm.db ".timeout 10000" "ATTACH '$point/anythingllm.db' AS before" \
        "UPDATE workspaces SET {told} FROM before.workspaces AS b WHERE b.slug = workspaces.slug" >&2
fi
while read -r id reference; do
    # What is pulled by its digest has one meaning for ever.
    case $reference in *@*) ;; *) docker tag "$id" "$reference" ;; esac
done < "$point/images"
if [ -d "$kept/models" ]; then
    mkdir -p {models}/models/blobs
    for blob in "$kept"/models/blobs/*; do
        [ ! -e "$blob" ] || [ -e {models}/models/blobs/"$(basename "$blob")" ] || cp -al "$blob" {models}/models/blobs/
    done
    rm -rf {models}/models/manifests.new
    [ ! -d "$kept/models/manifests" ] || cp -a "$kept/models/manifests" {models}/models/manifests.new
    rm -rf {models}/models/manifests
    [ ! -d {models}/models/manifests.new ] || mv {models}/models/manifests.new {models}/models/manifests
fi
rm -rf "$compose.old" "$compose.new"
cp -a "$point/compose" "$compose.new"
if [ -n "$stays" ]; then rm -rf "$compose.new/$stays"; cp -a "$compose/$stays" "$compose.new/"; fi
[ ! -d "$compose" ] || mv "$compose" "$compose.old"
mv "$compose.new" "$compose"
rm -rf "$compose.old"
wrong=""
for folder in "$compose"/*/; do
    name=$(basename "$folder")
    [ -f "$folder/compose.yaml" ] || continue
    docker compose --project-name "$name" --file "$folder/compose.yaml" --progress quiet \
        up --detach --remove-orphans --wait --wait-timeout {seconds} >&2 || wrong="$wrong $name"
done
[ -z "$wrong" ] || {{ echo "not healthy after being put back:$wrong" >&2; exit 1; }}
echo back
"""

_DROP = r"""
set -eu
rm -rf {point} {point}.new {models}/{folder}
command -v docker >/dev/null || exit 0
docker image ls --format '{{{{.Repository}}}}:{{{{.Tag}}}}' {repository} 2>/dev/null | while read -r tag; do
    docker image rm "$tag" >/dev/null
done
"""


@dataclass(frozen=True)
class Places:
    """Where a host keeps what is served.

    Attributes:
        models: Ollama's directory.
        chat: AnythingLLM's directory; there need be nothing in it.
    """

    models: str
    chat: str


def _filled(script: str, places: Places, **more: object) -> str:
    return script.format(
        root=ROOT,
        point=POINT,
        compose=COMPOSE,
        models=shlex.quote(places.models),
        chat=shlex.quote(places.chat),
        told=", ".join(f"{column} = b.{column}" for column in TOLD),
        folder=MODELS,
        repository=KEPT,
        **more,
    ).strip()


def take(places: Places) -> str:
    """Return the command that takes a restore point, and prints ``taken``.

    Where one of an unfinished roll-out is there, that one stays, as it is of the last state that had proved itself;
    ``kept`` and its time are printed.
    """
    return _filled(_TAKE, places)


def put_back(places: Places, seconds: int) -> str:
    """Return the command that makes a host serve again what it served before; may be run any number of times.

    Args:
        places: where the host keeps what is served.
        seconds: longest wait for a project to become healthy.
    """
    return _filled(_PUT_BACK, places, seconds=seconds)


def drop(places: Places) -> str:
    """Return the command that gives up a restore point."""
    return _filled(_DROP, places)
