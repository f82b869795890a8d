"""A client of container registries: which manifest a tag stands for (Docker's HTTP API v2, OCI distribution)."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from gpurack.catalogue import Image
from gpurack.images import Credential, ImageSource

MANIFESTS = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
"""What a tag may stand for: first the lists of all architectures, whose digest serves every host."""

HOSTS = {"docker.io": "registry-1.docker.io"}
LOOPBACK = frozenset({"localhost", "127.0.0.1"})
TIMEOUT_SECONDS = 30
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


class RegistryError(Exception):
    """A registry cannot answer; the message says which, why, and what to do."""


class _KeepToHost(HTTPRedirectHandler):
    """Follow redirects as urllib does, but take no login along to another host."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            new.remove_header("Authorization")
        return new


@dataclass
class Registry:
    """A registry, and how to log in there.

    HTTPS is used, except for a registry on this machine: the rule of Docker's own client.

    Attributes:
        name: as in image references: ``docker.io``, ``registry.example.org:5000``.
        credential: login; None for none.
    """

    name: str
    credential: Credential | None = None
    _authorization: dict[str, str] = field(default_factory=dict)

    def digest(self, repository: str, tag: str) -> str:
        """Return the digest of the manifest, or list of manifests, a tag stands for.

        Raises:
            RegistryError: unreachable, login refused, no such image, too many requests, or an answer without sense.
        """
        path = f"/v2/{repository}/manifests/{tag}"
        what = f"{repository}:{tag}"
        with self._ask("HEAD", path, what) as answer:
            found = answer.headers.get("Docker-Content-Digest")
        if not found:  # old registries give it with the body only, or not at all
            with self._ask("GET", path, what) as answer:
                body = answer.read(MAX_MANIFEST_BYTES)
            found = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", found):
            raise RegistryError(f"{self.name}: {what}: {found!r} is no digest")
        return str(found)

    def _url(self, path: str) -> str:
        host = HOSTS.get(self.name, self.name)
        scheme = "http" if host.partition(":")[0] in LOOPBACK else "https"
        return f"{scheme}://{host}{path}"

    def _ask(self, method: str, path: str, what: str) -> HTTPResponse:
        try:
            return self._send(method, self._url(path), {"Accept": MANIFESTS, **self._authorization})
        except HTTPError as error:
            if error.code != 401 or self._authorization:
                raise RegistryError(self._explain(error, what)) from None
            challenge = error.headers.get("WWW-Authenticate", "")
        self._authorization = self._login(challenge, what)
        try:
            return self._send(method, self._url(path), {"Accept": MANIFESTS, **self._authorization})
        except HTTPError as error:
            raise RegistryError(self._explain(error, what)) from None

    def _login(self, challenge: str, what: str) -> dict[str, str]:
        """Return the header that answers a challenge: the login itself, or a token got where the registry says."""
        kind, _, rest = challenge.partition(" ")
        basic = self._basic()
        if kind.lower() == "basic" and basic:
            return basic
        values = dict(CHALLENGE.findall(rest))
        if kind.lower() != "bearer" or "realm" not in values:
            raise RegistryError(f"{self.name} asks for a login: set images.credentials for it")
        realm = urlsplit(values["realm"])
        if realm.scheme != "https" and realm.hostname not in LOOPBACK:
            raise RegistryError(f"{self.name} wants the login sent without TLS, to {realm.netloc}; not done")
        query = urlencode({key: values[key] for key in ("service", "scope") if key in values})
        try:
            with self._send("GET", f"{values['realm']}?{query}", basic) as answer:
                document = json.loads(answer.read(MAX_MANIFEST_BYTES))
                token = document.get("token") or document["access_token"]
        except HTTPError as error:
            raise RegistryError(self._explain(error, what)) from None
        except (ValueError, KeyError, AttributeError):
            raise RegistryError(f"{self.name}: {realm.netloc} gives no token") from None
        return {"Authorization": f"Bearer {token}"}

    def _basic(self) -> dict[str, str]:
        if self.credential is None:
            return {}
        pair = f"{self.credential.username}:{self.credential.password.get_secret_value()}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}

    def _send(self, method: str, url: str, headers: Mapping[str, str]) -> HTTPResponse:
        request = Request(url, method=method, headers=dict(headers))  # noqa: S310 - http and https only, see _url
        try:
            answer: HTTPResponse = build_opener(_KeepToHost).open(request, timeout=TIMEOUT_SECONDS)
        except HTTPError:
            raise
        except (URLError, HTTPException, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise RegistryError(f"{self.name} cannot be reached: {reason}") from None
        return answer

    def _explain(self, error: HTTPError, what: str) -> str:
        if error.code in (401, 403):
            login = "refuses the login in images.credentials" if self.credential else "asks for a login"
            return f"{self.name} {login}, or has no {what}: set images.credentials for it, or look at the name"
        if error.code == 404:
            return f"{self.name} has no {what}"
        if error.code == 429:
            wait = error.headers.get("Retry-After")
            return f"{self.name} has had too many requests; log in (images.credentials), or wait {wait or 'some hours'}"
        return f"{self.name}: {what}: HTTP {error.code} {error.reason}"


def digest_of(image: Image, source: ImageSource) -> str:
    """Return the digest a site's registry or mirror gives for an image's tag.

    Raises:
        RegistryError: see :meth:`Registry.digest`.
    """
    host, _, path = source.mirrors.get(image.registry, image.registry).partition("/")
    repository = f"{path}/{image.repository}" if path else image.repository
    return Registry(host, source.credentials.get(host)).digest(repository, image.tag)
