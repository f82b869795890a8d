"""Restore point of what a host serves: Compose projects, images and models, as they were before a roll-out.

Everything is kept on the host. Images are held by a tag of their own, models by hard links, so that a restore point
takes next to no room and nothing that the new state removes is gone before it has proved itself.

Not part of it: packages, the engine's configuration, users. A roll-out that fails leaves those as the new state has
them; they are in the inventory's history.
"""

from __future__ import annotations

import shlex

from gpurack.operations.compose import ROOT as COMPOSE

ROOT = "/var/lib/gpurack/rollout"
POINT = f"{ROOT}/before"
MODELS = ".gpurack-rollout"
"""Folder beside the models, on their file system, as hard links need it."""

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
for folder in "$compose"/*/; do
    name=$(basename "$folder")
    [ -f "$folder/compose.yaml" ] || continue
    if [ -f "$point/compose/$name/compose.yaml" ]; then verb="stop"; else verb="down --remove-orphans"; fi
    docker compose --project-name "$name" --file "$folder/compose.yaml" --progress quiet $verb >&2 || true
done
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


def _filled(script: str, models_dir: str, **more: object) -> str:
    return script.format(
        root=ROOT,
        point=POINT,
        compose=COMPOSE,
        models=shlex.quote(models_dir),
        folder=MODELS,
        repository=KEPT,
        **more,
    ).strip()


def take(models_dir: str) -> str:
    """Return the command that takes a restore point, and prints ``taken``.

    Where one of an unfinished roll-out is there, that one stays, as it is of the last state that had proved itself;
    ``kept`` and its time are printed.
    """
    return _filled(_TAKE, models_dir)


def put_back(models_dir: str, seconds: int) -> str:
    """Return the command that makes a host serve again what it served before; may be run any number of times.

    Args:
        models_dir: where Ollama's models are on the host.
        seconds: longest wait for a project to become healthy.
    """
    return _filled(_PUT_BACK, models_dir, seconds=seconds)


def drop(models_dir: str) -> str:
    """Return the command that gives up a restore point."""
    return _filled(_DROP, models_dir)
