"""Controls of the anythingllm role."""

from __future__ import annotations

from typing import Any

from gpurack import containers
from gpurack.anythingllm.state import API_CONF, API_KEYS, KEYS_FILE, PENDING, STATE, UID, fingerprint
from gpurack.controls import NotApplicable, control
from gpurack.facts.anythingllm import (
    SEARCH_PROVIDER,
    AnythingllmInstance,
    AnythingllmPreferences,
    Instance,
    searches_as,
)
from gpurack.operations.docker import NETWORK
from roles.anythingllm.settings import AnythingllmSettings

COMPOSE = "/etc/gpurack/compose/anythingllm"


def _container(host: Any) -> dict[str, Any]:
    return containers.container(host, "anythingllm", "anythingllm")


def _environment(host: Any) -> dict[str, str]:
    return containers.environment(_container(host))


def _instance(host: Any, settings: AnythingllmSettings) -> Instance:
    fact = AnythingllmInstance()
    found = fact.process(host.check_output("sh -c %s", fact.command(settings.local_url)).splitlines())
    assert found.answers, f"AnythingLLM does not answer on {settings.local_url}"
    return found


@control(
    "ALLM-01",
    "The service runs, is healthy and comes back after a reboot",
    severity="critical",
    satisfies=["CIS Docker 1.6 5.27"],
)
def test_service_is_healthy(host: Any, settings: AnythingllmSettings) -> None:
    """A process that runs without answering serves nobody."""
    problem = containers.health_problem(_container(host))
    assert not problem, f"the container {problem}"


@control(
    "ALLM-02",
    "The web pages are published on the chosen address only",
    severity="critical",
    satisfies=["CIS Docker 1.6 5.14", "ISO 27001 A.8.20"],
)
def test_published_address(host: Any, settings: AnythingllmSettings) -> None:
    """They speak plain HTTP: a wider address than meant sends passwords over the network in clear."""
    found = containers.published(_container(host))
    wanted = {f"3001/tcp on {settings.publish_address}:{settings.publish_port}"}
    assert found == wanted, f"published is {', '.join(sorted(found)) or 'nothing'}, not {', '.join(wanted)}"


@control("ALLM-03", "The container runs the pinned image", severity="high")
def test_image_is_pinned(host: Any, settings: AnythingllmSettings) -> None:
    """A moved tag is another program than the one that was approved, and has migrated the data without asking."""
    images = settings.images
    problem = containers.image_problem(
        host, _container(host), images.reference("anythingllm"), images.archive("anythingllm")
    )
    assert not problem, f"the container {problem}"


@control(
    "ALLM-04",
    "The container is not root and has no more rights than it needs",
    severity="high",
    satisfies=["CIS Docker 1.6 4.1", "CIS Docker 1.6 5.4", "CIS Docker 1.6 5.5", "CIS Docker 1.6 5.26"],
)
def test_no_extra_rights(host: Any, settings: AnythingllmSettings) -> None:
    """The collector opens whatever people upload, and may run a browser on pages of strangers."""
    container = _container(host)
    config = container["HostConfig"]
    assert container["Config"]["User"] == f"{UID}:{UID}", f"it runs as {container['Config']['User'] or 'root'}"
    assert not config["Privileged"], "the container is privileged"
    assert "no-new-privileges:true" in (config["SecurityOpt"] or []), "no-new-privileges is not set"
    wanted = {"SYS_ADMIN"} if settings.web_collector else set()
    found = {name.removeprefix("CAP_") for name in config["CapAdd"] or []}
    assert found == wanted, f"added capabilities are {', '.join(found) or 'none'}, not {', '.join(wanted) or 'none'}"


@control(
    "ALLM-05",
    "The server has the keys its data was made with",
    severity="critical",
    satisfies=["ISO 27001 A.8.24"],
)
def test_keys(host: Any, settings: AnythingllmSettings) -> None:
    """With others it starts as if nothing were wrong, and cannot read the credentials it stored."""
    wanted = fingerprint(settings.sig_key.reveal(), settings.sig_salt.reveal())
    noted = host.file(KEYS_FILE)
    assert noted.exists, f"{KEYS_FILE} is missing: nothing tells which keys the data was made with"
    assert noted.content_string.strip() == wanted, "the data was made with other keys than those of the settings"
    found = _environment(host)
    assert fingerprint(found.get("SIG_KEY", ""), found.get("SIG_SALT", "")) == wanted, (
        "the container has other keys than the settings"
    )


@control("ALLM-06", "Data and settings outlive the container, for it alone", severity="critical")
def test_data(host: Any, settings: AnythingllmSettings) -> None:
    """What is not mounted is gone with the next release; what others own stops AnythingLLM from writing."""
    mounts = {item["Destination"]: item["Source"] for item in _container(host)["Mounts"]}
    for target, path in (("/app/server/storage", settings.storage), ("/app/server/.env", settings.env_file)):
        assert mounts.get(target) == path, f"{target} is {mounts.get(target) or 'not mounted'}, not {path}"
    for path, wanted in (
        (settings.data_dir, (0, 0o700)),
        (settings.storage, (UID, 0o700)),
        (settings.env_file, (UID, 0o600)),
    ):
        file = host.file(path)
        assert file.exists, f"{path} is missing"
        assert (file.uid, file.mode) == wanted, f"{path} belongs to {file.uid} with mode {file.mode:o}"
    stray = host.run(f"find %s '(' ! -uid {UID} -o ! -gid {UID} ')' -print -quit", settings.storage).stdout.strip()
    assert not stray, f"{stray} does not belong to user {UID}"
    assert host.file(f"{settings.storage}/anythingllm.db").size > 0, "the database is empty"


@control(
    "ALLM-07", "No telemetry, and the environment of the settings", severity="high", satisfies=["ISO 27001 A.8.12"]
)
def test_environment(host: Any, settings: AnythingllmSettings) -> None:
    """Where models and embeddings are asked decides whether questions and documents leave the building."""
    found = _environment(host)
    wrong = [
        f"{name} is {found.get(name)!r}, not {value!r}"
        for name, value in settings.environment.items()
        if found.get(name) != value
    ]
    assert not wrong, "; ".join(wrong)


@control("ALLM-08", "Secrets and keys are in files for root alone", severity="critical", satisfies=["ISO 27001 A.8.3"])
def test_secret_files(host: Any, settings: AnythingllmSettings) -> None:
    """An API key opens every chat and document of every department."""
    directory = host.file(STATE)
    assert (directory.user, directory.mode) == ("root", 0o700), f"{STATE} has mode {directory.mode:o}"
    for path in (
        f"{COMPOSE}/compose.yaml",
        f"{COMPOSE}/.env",
        API_CONF,
        *(f"{API_KEYS}/{name}" for name in settings.api_keys),
    ):
        file = host.file(path)
        assert file.exists, f"{path} is missing"
        assert (file.user, file.mode) == ("root", 0o600), f"{path} belongs to {file.user} with mode {file.mode:o}"
    left = host.run(f"ls -A {STATE} | grep ^request").stdout.split()
    assert not left, f"a request with a secret in it was left in {STATE}: {', '.join(left)}"


@control("ALLM-09", "Nobody enters without an account", severity="critical", satisfies=["ISO 27001 A.5.15"])
def test_accounts(host: Any, settings: AnythingllmSettings) -> None:
    """Out of multi-user mode everybody is an administrator."""
    found = _instance(host, settings)
    assert found.multi_user, "multi-user mode is off"
    assert found.authorised, f"the API key in {API_CONF} is not accepted"


@control(
    "ALLM-10", "Users are those of the settings, with their roles", severity="high", satisfies=["ISO 27001 A.5.18"]
)
def test_users(host: Any, settings: AnythingllmSettings) -> None:
    """A leaver, or a role given in the web pages, is otherwise seen by nobody."""
    found = _instance(host, settings).users
    wrong = [f"{name} is missing" for name in settings.user_fields if name not in found]
    wrong += [
        f"{key} of {name} is {found[name].get(key)!r}, not {value!r}"
        for name, fields in settings.user_fields.items()
        for key, value in fields.items()
        if name in found and found[name].get(key) != value
    ]
    wrong += [
        f"{name} is not declared"
        for name, user in found.items()
        if name not in settings.user_fields and not user["suspended"]
    ]
    assert not wrong, "; ".join(wrong)


@control("ALLM-11", "Workspaces have their models, settings and members", severity="high")
def test_workspaces(host: Any, settings: AnythingllmSettings) -> None:
    """A workspace of another department, or an answer of another model, is not what people were promised."""
    found = _instance(host, settings)
    wrong = []
    for slug, workspace in settings.workspaces.items():
        current = found.workspaces.get(slug)
        if current is None:
            wrong.append(f"{slug} is missing")
            continue
        wrong += [
            f"{key} of {slug} is {current.get(key)!r}, not {value!r}"
            for key, value in workspace.fields(slug).items()
            if current.get(key) != value
        ]
        members = found.members.get(slug, set())
        if workspace.members is not None and members != set(workspace.members):
            wrong.append(f"members of {slug} are {', '.join(sorted(members)) or 'nobody'}")
    assert not wrong, "; ".join(wrong)


@control("ALLM-12", "Every API key is declared, and every declared one works", severity="high")
def test_api_keys(host: Any, settings: AnythingllmSettings) -> None:
    """A key has no role and no end: one that nobody knows of is a way past every account."""
    listed = host.run(
        "sqlite3 -readonly -cmd '.timeout 5000' %s \"SELECT coalesce(name, 'nameless') FROM api_keys\"",
        f"{settings.storage}/anythingllm.db",
    )
    assert listed.rc == 0, f"the database cannot be read: {listed.stderr.strip()}"
    unknown = sorted(set(listed.stdout.splitlines()) - {"gpurack", *settings.api_keys})
    assert not unknown, f"API keys that are not declared: {', '.join(unknown)}"
    keys = _instance(host, settings).keys
    bad = [name for name in settings.api_keys if not keys.get(name)]
    assert not bad, f"API keys that are not accepted: {', '.join(bad)}"


@control("ALLM-13", "No upgrade is half done", severity="critical")
def test_no_pending_upgrade(host: Any, settings: AnythingllmSettings) -> None:
    """Until it is verified or taken back, what people write may have to be thrown away."""
    pending = host.file(PENDING)
    assert not pending.exists, f"an upgrade was cut off: {pending.content_string.strip()}; run the deploy again"


@control("ALLM-14", "AnythingLLM is on the network of the model server", severity="high")
def test_network(host: Any, settings: AnythingllmSettings) -> None:
    """Off it, every question is answered with an error."""
    if settings.ollama_url != AnythingllmSettings.model_fields["ollama_url"].default:
        raise NotApplicable(f"Ollama is at {settings.ollama_url}")
    networks = _container(host)["NetworkSettings"]["Networks"]
    assert NETWORK in networks, f"the container is on {', '.join(networks) or 'no network'}, not on {NETWORK}"


@control(
    "ALLM-15",
    "Agents search the web through the site's SearXNG, or not at all",
    severity="high",
    satisfies=["ISO 27001 A.8.12"],
)
def test_web_search(host: Any, settings: AnythingllmSettings) -> None:
    """Without a word from anybody AnythingLLM asks DuckDuckGo, and questions leave the building."""
    fact = AnythingllmPreferences()
    found = fact.process(host.check_output("sh -c %s", fact.command(settings.data_dir)).splitlines())
    wanted = settings.web_search is not None
    provider = found.get("agent_search_provider", "its default, DuckDuckGo")
    assert searches_as(found, wanted), (
        f"agents do not search by {SEARCH_PROVIDER}, but by {provider}" if wanted else f"agents search by {provider}"
    )
    url = _environment(host).get("AGENT_SEARXNG_API_URL")
    assert not wanted or url == settings.web_search, f"SearXNG is asked at {url}, not at {settings.web_search}"
