"""The anythingllm role on a real host, with the double in place of the real image, and Ollama's double behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.testbed.anythingllm import STATE, ask, images, rows, secret, session, site_settings

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
EDIT = "sed -i -e 's/127.0.0.1:3001:3001/0.0.0.0:3001:3001/' -e 's/DISABLE_TELEMETRY: .*/DISABLE_TELEMETRY: \"no\"/' "
SEARCH = (
    "INSERT INTO system_settings (label, value) "
    "VALUES ('default_agent_skills', json_array('sql-agent', 'web-browsing')) "
    "ON CONFLICT (label) DO UPDATE SET value = excluded.value"
)
BREAKAGES = {
    "stopped": (f"docker stop {CONTAINER}", {"ALLM-01", "ALLM-09", "ALLM-10", "ALLM-11", "ALLM-12"}),
    # Published wide, a capability, telemetry, another salt.
    "container": (
        f"{EDIT} -e 's/^    security_opt:/    cap_add: [SYS_ADMIN]\\n    security_opt:/' {COMPOSE}; "
        f"sed -i \"s/^SIG_SALT=.*/SIG_SALT='{'5' * 32}'/\" /etc/gpurack/compose/anythingllm/.env; "
        f"{UP}",
        {"ALLM-02", "ALLM-04", "ALLM-05", "ALLM-07"},
    ),
    # With its only network a container loses its published port.
    "off-the-network": (
        f"docker network disconnect gpurack {CONTAINER}",
        {"ALLM-09", "ALLM-10", "ALLM-11", "ALLM-12", "ALLM-14"},
    ),
    "data": (
        f"sed -i '/source: .*server.env/,/create_host_path/d' {COMPOSE}; "
        f"sed -i '/web pages here/{{N;d}}' {COMPOSE}; {UP}; install -m 600 /dev/null {DATA}/storage/of-root",
        {"ALLM-06"},
    ),
    # Its image's name, a key others can read, a key of nobody, a role, a workspace's model and a member.
    "accounts": (
        "docker tag mintplexlabs/anythingllm:1.16.0 kept:1 && "
        "docker image rm --no-prune mintplexlabs/anythingllm:1.16.0 && "
        f"chmod 644 {STATE}/api.conf; "
        f"{SQL} \"UPDATE api_keys SET secret = 'x', name = NULL WHERE name = 'gateway'\"; "
        f"{SQL} \"UPDATE users SET role = 'admin', dailyMessageLimit = NULL WHERE username = 'bob'\"; "
        f"{SQL} \"UPDATE workspaces SET chatModel = 'other', openAiTemp = 1 WHERE slug = 'legal'\"; "
        f'{SQL} "{ENTER}"; {SQL} "{SEARCH}"',
        {"ALLM-03", "ALLM-08", "ALLM-10", "ALLM-11", "ALLM-12", "ALLM-15"},
    ),
    "own-key-revoked": (f"{SQL} \"DELETE FROM api_keys WHERE name = 'gpurack'\"", {"ALLM-09", "ALLM-10", "ALLM-11"}),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_breakage_is_seen_and_repaired(site: Any, machine: Any, name: str) -> None:
    breakage, controls = BREAKAGES[name]
    machine.ssh(breakage)
    assert site.failing("anythingllm", machine) == controls
    # A key of nobody is removed by people: gpurack cannot tell what would stop working.
    machine.ssh(f'{SQL} "DELETE FROM api_keys WHERE name IS NULL"')
    assert changed(site.run("anythingllm"), machine) > 0
    site.assert_controls("anythingllm", machine)


def test_agents_search_by_searxng_where_it_is_declared(site: Any, machine: Any) -> None:
    """It is not enabled here, so that it is said to be elsewhere."""
    settings = site.settings["anythingllm"]
    site.settings["anythingllm"] = {**settings, "web_search": "http://search.example.org:8080/search"}
    assert changed(site.run("anythingllm"), machine) > 0
    site.assert_controls("anythingllm", machine)
    skills = json.loads(rows(machine, "SELECT value FROM system_settings WHERE label = 'default_agent_skills'"))
    assert "web-browsing" in skills
    assert changed(site.run("anythingllm"), machine) == 0
    machine.ssh(f"{SQL} \"UPDATE system_settings SET value = NULL WHERE label = 'agent_search_provider'\"")
    assert site.failing("anythingllm", machine) == {"ALLM-15"}
    site.settings["anythingllm"] = {**settings, "web_search": "http://searxng:8080/search"}
    nowhere = site.run("anythingllm")
    assert nowhere.returncode == 2 and "role searxng is not enabled on this host" in nowhere.output
    restored(site, machine, settings)
    assert "web-browsing" not in rows(machine, "SELECT value FROM system_settings WHERE label = 'default_agent_skills'")


def container(machine: Any, what: str = ".Id") -> str:
    """Return a property of the service's container."""
    return str(machine.ssh(f"docker container inspect --format '{{{{{what}}}}}' {CONTAINER}").stdout.strip())


def refused(site: Any, machine: Any, *expected: str) -> None:
    """Assert that a run says this, and changes nothing."""
    before = container(machine), machine.ssh(f"find {STATE} {DATA} -printf '%p %T@ %U %m\\n' | sort").stdout
    run = site.run("anythingllm")
    assert not run.ok and run.operations[machine.name] == 0, run.output
    for text in expected:
        assert text in run.output, run.output
    after = container(machine), machine.ssh(f"find {STATE} {DATA} -printf '%p %T@ %U %m\\n' | sort").stdout
    assert after == before


def restored(site: Any, machine: Any, settings: dict[str, Any]) -> None:
    """Set the role's settings as they were and assert that the host is as they say."""
    site.settings["anythingllm"] = settings
    assert site.run("anythingllm").ok
    site.assert_controls("anythingllm", machine)


def test_other_keys_are_refused_and_stored_credentials_stay_readable(site: Any, machine: Any, folder: Path) -> None:
    session(machine, folder, "POST", "/api/double/keep", {"text": "a stored credential"})
    settings = site.settings["anythingllm"]
    for name in ("sig_key", "sig_salt"):
        site.settings["anythingllm"] = {**settings, name: secret(folder, f"another-{name}")}
        refused(
            site, machine, "are not the ones this host's data was made with", "set sig_key and sig_salt as they were"
        )
    restored(site, machine, settings)
    # What a start with other keys would have done, so that this test cannot pass by a double that ignores them.
    kept = "http://127.0.0.1:{}/api/double/keep"
    assert json.loads(machine.ssh(f"curl -sS {kept.format(3001)}").stdout) == {"text": "a stored credential"}
    other = f"-e SIG_KEY={'0' * 32} -e SIG_SALT={'1' * 32} -v {DATA}/storage:/app/server/storage"
    machine.ssh(f"docker run --detach --name other -p 127.0.0.1:3002:3001 {other} mintplexlabs/anythingllm:1.16.0")
    lost = machine.ssh(f"curl -sS --retry 20 --retry-all-errors --retry-delay 1 {kept.format(3002)}").stdout
    machine.ssh("docker rm --force other")
    assert json.loads(lost) == {"text": None}


def test_data_from_before_gpurack_needs_its_keys(site: Any, machine: Any) -> None:
    """The keys are compared with those AnythingLLM wrote down itself; without them nothing is started."""
    machine.ssh(f"mv {STATE} {STATE}.away && cp -p {DATA}/server.env /root/kept && sed -i /SIG_/d {DATA}/server.env")
    refused_run = site.run("anythingllm")
    assert not refused_run.ok and refused_run.operations[machine.name] == 0, refused_run.output
    assert "there is data from before gpurack" in refused_run.output, refused_run.output
    machine.ssh(f"cp -p /root/kept {DATA}/server.env")
    before = rows(machine, "SELECT count(*) FROM workspace_chats")
    assert changed(site.run("anythingllm"), machine) > 0
    assert machine.ssh(f"ls {DATA}/restore-points").stdout.split(), "data nobody knows was used without a restore point"
    assert rows(machine, "SELECT count(*) FROM workspace_chats") == before
    machine.ssh(f'{SQL} "DELETE FROM api_keys WHERE createdAt < (SELECT max(createdAt) FROM api_keys)"')
    site.assert_controls("anythingllm", machine)


def test_settings_of_the_web_pages_outlive_restart_and_recreation(site: Any, machine: Any, folder: Path) -> None:
    chosen = {"TextToSpeechProvider": "kokoro", "OllamaLLMModelPref": "somebody's choice"}
    session(machine, folder, "POST", "/api/system/update-env", chosen)
    machine.ssh(f"docker restart {CONTAINER}")
    machine.ssh(f"docker rm --force {CONTAINER}")
    assert changed(site.run("anythingllm"), machine) == 1
    results = ask(machine, "GET", "/api/setup-complete")["results"]
    assert results["TextToSpeechProvider"] == "kokoro"
    assert results["OllamaLLMModelPref"] == "gpurack-double", "what is declared comes back"


def test_an_update_never_starts_empty(site: Any, machine: Any) -> None:
    machine.ssh(f"docker stop {CONTAINER} && mv {DATA} {DATA}.away && mkdir -p {DATA}/storage")
    refused(site, machine, "has no database, and this host served one: mount the disk")
    machine.ssh(f"rm -r {DATA} && mv {DATA}.away {DATA} && mv {DATA}/server.env /root/server.env")
    refused(site, machine, "server.env is gone")
    machine.ssh(f"mkdir {DATA}/server.env")
    refused(site, machine, "server.env is a directory")
    machine.ssh(f"rmdir {DATA}/server.env && mv /root/server.env {DATA} && chown -R root: {DATA}/storage")
    assert changed(site.run("anythingllm"), machine) > 0
    site.assert_controls("anythingllm", machine)


def test_another_embedder_is_refused_while_there_are_documents(site: Any, machine: Any) -> None:
    machine.ssh(f"{SQL} \"INSERT INTO document_vectors (docId, vectorId) VALUES ('d', 'v')\"")
    settings = site.settings["anythingllm"]
    site.settings["anythingllm"] = {**settings, "embedding_model": "gpurack-double"}
    refused(site, machine, "1 pieces of documents were made by native lancedb")
    machine.ssh(f'{SQL} "DELETE FROM document_vectors"')
    restored(site, machine, settings)


def test_users_nobody_declared_are_reported_and_removed_only_if_allowed(site: Any, machine: Any) -> None:
    ask(machine, "POST", "/api/v1/admin/users/new", {"username": "stray", "password": "a long password"})
    run = site.run("anythingllm")
    assert changed(run, machine) == 0 and "users that are not declared: stray" in run.output, run.output
    assert site.failing("anythingllm", machine) == {"ALLM-10"}
    settings = site.settings["anythingllm"]
    site.settings["anythingllm"] = {**settings, "unlisted_users": "suspend"}
    assert changed(site.run("anythingllm"), machine) == 1
    assert rows(machine, "SELECT suspended FROM users WHERE username = 'stray'") == "1"
    site.settings["anythingllm"] = {**settings, "unlisted_users": "remove"}
    assert changed(site.run("anythingllm"), machine) == 1
    assert rows(machine, "SELECT count(*) FROM users WHERE username = 'stray'") == "0"
    restored(site, machine, settings)


COUNT = "(SELECT count(*) FROM {})"
KEPT = f"SELECT {', '.join(map(COUNT.format, ('workspace_chats', 'users', 'workspace_users', 'workspaces')))}"


def test_an_upgrade_takes_a_restore_point_and_keeps_every_row(site: Any, machine: Any) -> None:
    before = rows(machine, KEPT)
    site.settings["images"] = images("1.16.1")
    assert changed(site.run("anythingllm"), machine) == 2
    assert rows(machine, KEPT) == before
    point = machine.ssh(f"ls -d {DATA}/restore-points/* | tail -n 1").stdout.strip()
    assert "workspace_chats " in machine.ssh(f"cat {point}/counts").stdout
    site.assert_controls("anythingllm", machine)
    assert changed(site.run("anythingllm"), machine) == 0


@pytest.mark.parametrize("fault", ["migration", "lose-rows", "silent"])
def test_a_bad_release_is_taken_back_and_not_tried_again(site: Any, machine: Any, fault: Any) -> None:
    ask(machine, "POST", "/api/v1/workspace/legal/chat", {"message": "Worth keeping."})
    before, settings = rows(machine, KEPT), site.settings["anythingllm"]
    site.settings["images"] = images("1.16.2", fault)
    site.settings["anythingllm"] = {**settings, "ready_timeout": "PT6S"}
    run = site.run("anythingllm")
    assert not run.ok and "UPGRADE TAKEN BACK: mintplexlabs/anythingllm:1.16.2" in run.output, run.output
    assert ("rows are missing in workspace_chats" if fault == "lose-rows" else "not healthy after 6 s") in run.output
    assert rows(machine, KEPT) == before
    assert container(machine, ".Config.Image") == "mintplexlabs/anythingllm:1.16.1"
    refused(site, machine, "this release was tried and taken back")
    site.settings["images"] = images("1.16.1")
    site.settings["anythingllm"] = settings
    site.assert_controls("anythingllm", machine)


@pytest.mark.parametrize("phase", ["switch", "rollback"])
def test_an_upgrade_that_was_cut_off_is_brought_to_an_end(site: Any, machine: Any, phase: str) -> None:
    before = rows(machine, KEPT)
    machine.ssh(
        f"p=$(ls {DATA}/restore-points | tail -n 1); echo $p {phase} cut >{STATE}/pending; docker rm -f {CONTAINER}"
    )
    assert "ALLM-13" in site.failing("anythingllm", machine)
    run = site.run("anythingllm")
    assert run.ok is (phase == "switch"), run.output
    if phase == "rollback":
        assert "UPGRADE TAKEN BACK" in run.output, run.output
        machine.ssh(f"rm {STATE}/refused")
    assert rows(machine, KEPT) == before
    restored(site, machine, site.settings["anythingllm"])
