"""The anythingllm role on a real host, with the double in place of the real image, and Ollama's double behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.testbed.anythingllm import STATE, ask, site_settings

pytestmark = pytest.mark.host

ROLES = ("docker", "ollama", "anythingllm")
COMPOSE = "/etc/gpurack/compose/anythingllm/compose.yaml"
CONTAINER = "anythingllm-anythingllm-1"
DATA = "/srv/anythingllm"


@pytest.fixture(scope="module")
def release() -> str:
    """Nothing the role does differs between releases, other than Docker, which test_ollama tries on both."""
    return "trixie"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the secrets are."""
    return Path(tmp_path_factory.mktemp("secrets"))


@pytest.fixture(scope="module")
def site(machine: Any, site_for: Any, folder: Path) -> Any:
    """Return a site of one host whose first run brought up the service."""
    site = site_for(machine, site_settings(folder))
    first = site.run(*ROLES)
    assert first.ok, first.output
    for file in folder.iterdir():
        assert file.read_text().strip() not in first.output, f"the run printed {file.name}"
    return site


def changed(run: Any, machine: Any) -> int:
    """Return how many operations changed something in a run that must succeed."""
    assert run.ok, run.output
    return int(run.changed[machine.name])


def test_first_run_satisfies_every_control_and_second_changes_nothing(site: Any, machine: Any) -> None:
    second = site.run(*ROLES)
    assert changed(second, machine) == 0, second.output
    site.assert_controls("anythingllm", machine)
    site.assert_controls("ollama", machine)


def test_workspaces_answer_from_their_model(site: Any, machine: Any) -> None:
    for slug in ("legal", "sales"):
        answer = ask(machine, "POST", f"/api/v1/workspace/{slug}/chat", {"message": "Who answers?"})
        assert answer["textResponse"].startswith("This is the gpurack test double of Ollama"), answer


def test_the_first_password_opens_and_a_suspended_user_stays_out(site: Any, machine: Any, folder: Path) -> None:
    answers = {}
    for name in ("ada", "eve"):
        body = json.dumps({"username": name, "password": (folder / f"secret-{name}").read_text().strip()})
        command = f"curl -sS -H 'Content-Type: application/json' -d '{body}' http://127.0.0.1:3001/api/request-token"
        answers[name] = json.loads(machine.ssh(command).stdout)
    assert answers["ada"]["valid"] and answers["ada"]["user"]["role"] == "manager"
    assert not answers["eve"]["valid"] and "suspended" in answers["eve"]["message"]


UP = f"docker compose --file {COMPOSE} up --detach --wait"
API = f"curl -sS --config {STATE}/api.conf -H 'Content-Type: application/json' http://127.0.0.1:3001/api"
SQL = f"sqlite3 -cmd '.timeout 5000' {DATA}/storage/anythingllm.db"
ENTER = "INSERT INTO workspace_users (user_id, workspace_id) SELECT 2, id FROM workspaces WHERE slug = 'sales'"
BREAKAGES = {
    "paused": (f"docker pause {CONTAINER}", {"ALLM-01", "ALLM-09", "ALLM-10", "ALLM-11", "ALLM-12"}),
    "published-wide": (f"sed -i 's/127.0.0.1:3001:3001/0.0.0.0:3001:3001/' {COMPOSE} && {UP}", {"ALLM-02"}),
    "rights-and-telemetry": (
        f"sed -i -e 's/^    security_opt:/    cap_add: [SYS_ADMIN]\\n    security_opt:/' "
        f"-e 's/DISABLE_TELEMETRY: .*/DISABLE_TELEMETRY: \"false\"/' {COMPOSE} && {UP}",
        {"ALLM-04", "ALLM-07"},
    ),
    "another-salt": (
        f"sed -i \"s/^SIG_SALT=.*/SIG_SALT='0123456789abcdef0123456789abcdef'/\" /etc/gpurack/compose/anythingllm/.env "
        f"&& {UP}",
        {"ALLM-05"},
    ),
    "unmounted-env": (
        f"sed -i '/target: .app.server..env/d' {COMPOSE}; sed -i '/source: .*server.env/{{N;N;d}}' {COMPOSE}; "
        f"sed -i '/      - type: bind$/{{N;/\\n    healthcheck/{{s/.*\\n//}}}}' {COMPOSE}; {UP}",
        {"ALLM-06"},
    ),
    "wrong-owner": (f"chown -R root: {DATA}/storage", {"ALLM-06"}),
    "modes": (f"chmod 644 {STATE}/api.conf {COMPOSE}", {"ALLM-08"}),
    "key-of-nobody": (
        f"{SQL} \"UPDATE api_keys SET secret = 'x' WHERE name = 'gateway'\"",
        {"ALLM-12"},
    ),
    "own-key-revoked": (
        f"{SQL} \"DELETE FROM api_keys WHERE name = 'gpurack'\"",
        {"ALLM-09", "ALLM-10", "ALLM-11"},
    ),
    "role-and-limit": (
        f"{SQL} \"UPDATE users SET role = 'admin', dailyMessageLimit = NULL WHERE username = 'bob'\"",
        {"ALLM-10"},
    ),
    "workspace": (
        f"{SQL} \"UPDATE workspaces SET chatModel = 'other', openAiTemp = 1 WHERE slug = 'legal'\"; {SQL} \"{ENTER}\"",
        {"ALLM-11"},
    ),
    "off-the-network": (f"docker network disconnect gpurack {CONTAINER}", {"ALLM-14"}),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_breakage_is_seen_and_repaired(site: Any, machine: Any, name: str) -> None:
    breakage, controls = BREAKAGES[name]
    machine.ssh(breakage)
    assert site.failing("anythingllm", machine) == controls
    assert changed(site.run("anythingllm"), machine) > 0
    site.assert_controls("anythingllm", machine)
