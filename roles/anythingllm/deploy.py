"""Deploy of the anythingllm role."""

from __future__ import annotations

import json
from typing import Any

from pyinfra import host
from pyinfra.api import OperationError, deploy
from pyinfra.operations import files

from gpurack import imagearchive, notices
from gpurack.anythingllm.state import API_KEYS, STATE, Wanted, fingerprint, obstacles
from gpurack.facts.anythingllm import AnythingllmData, AnythingllmInstance
from gpurack.facts.docker import ImageId
from gpurack.operations import anythingllm as operations
from gpurack.operations import compose, docker, packages, secretfile
from gpurack.operations.secretfile import Content
from gpurack.service import env_file
from roles.anythingllm.settings import PACKAGES, AnythingllmSettings

SECRETS = f"{compose.ROOT}/anythingllm/.env"
"""Compose fills it in by itself, so that its hash of the service has the secrets in it: a changed one is seen."""


@deploy("AnythingLLM")
def anythingllm(settings: AnythingllmSettings) -> None:
    """Give the data its place, run the Compose project, and tell it its users, workspaces and keys.

    Raises:
        OperationError: the server would start with other keys than its data has, without its data, or with a
            release that was taken back.
    """
    secrets = settings.secret_environment
    wanted = Wanted(
        keys=fingerprint(secrets["SIG_KEY"], secrets["SIG_SALT"]),
        embedder=settings.embedder,
        image_ids=_image_ids(settings),
        data_dir=settings.data_dir,
    )
    if reasons := list(obstacles(host.get_fact(AnythingllmData, data_dir=settings.data_dir), wanted)):
        raise OperationError("; ".join(reasons))
    packages.installed(name="Install what the API and the database are asked with", packages=PACKAGES)
    operations.data_place(name="Give the data its place", data_dir=settings.data_dir)
    for path, mode in ((STATE, "700"), (f"{compose.ROOT}/anythingllm", "755")):
        files.directory(name=f"Keep {path}", path=path, user="root", group="root", mode=mode)
    operations.note_keys(name="Note the keys of the data", data_dir=settings.data_dir, fingerprint=wanted.keys)
    docker.image(settings.images, "anythingllm")
    docker.network(name="Make the network on which services find each other")
    secretfile.put(
        name="Put the server's secrets",
        dest=SECRETS,
        content=env_file(secrets),
    )
    operations.release(
        name="Run the project",
        src="templates/anythingllm/compose.yaml.j2",
        timeout=settings.ready_timeout,
        data_dir=settings.data_dir,
        reference=settings.reference,
        embedder=settings.embedder,
        keep=settings.restore_points,
        settings=settings,
        secrets=tuple(secrets),
    )
    _tell(settings)


def _image_ids(settings: AnythingllmSettings) -> frozenset[str]:
    """Return the IDs the image may have: a tag on the host may still be that of an archive of before."""
    if archive := settings.images.archive("anythingllm"):
        return imagearchive.read(archive).ids(settings.reference)
    found = host.get_fact(ImageId, reference=settings.reference)
    return frozenset({found} if found else ())


def _tell(settings: AnythingllmSettings) -> None:
    """Declare what AnythingLLM is told over its API, and report what nobody declared."""
    url, admin = settings.local_url, settings.admin
    login = _body(username=admin.username, password=admin.password.reveal())
    operations.administrator(
        name="Give users accounts, the administrator first",
        url=url,
        username=admin.username,
        password=login,
        auth_token=_body(password=settings.auth_token.reveal()),
    )
    operations.api_keys(name=f"Keep API keys in {API_KEYS}", url=url, login=login, names=settings.api_keys)
    operations.users(
        name="Users",
        url=url,
        wanted=settings.user_fields,
        first={
            name: _body(username=name, password=user.password.reveal(), **user.fields)
            for name, user in settings.users.items()
        },
        unlisted=settings.unlisted_users,
    )
    operations.workspaces(
        name="Workspaces",
        url=url,
        wanted={slug: workspace.fields(slug) for slug, workspace in settings.workspaces.items()},
        members={slug: item.members for slug, item in settings.workspaces.items() if item.members is not None},
    )
    operations.web_search(
        name="Web search of agents", url=url, data_dir=settings.data_dir, wanted=settings.web_search is not None
    )
    if not operations.is_serving(settings.data_dir):
        return
    found = host.get_fact(AnythingllmInstance, url=url)
    if settings.unlisted_users == "report" and (users := sorted(set(found.users) - set(settings.user_fields))):
        notices.leave(host, f"AnythingLLM has users that are not declared: {', '.join(users)} (see unlisted_users)")
    if workspaces := sorted(set(found.workspaces) - set(settings.workspaces)):
        notices.leave(host, f"AnythingLLM has workspaces that are not declared: {', '.join(workspaces)}; they stay")


def _body(**values: Any) -> Content:
    return Content(json.dumps(values))
