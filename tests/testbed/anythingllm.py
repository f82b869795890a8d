"""Settings and questions for tests of AnythingLLM."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

from gpurack.lab import Machine
from gpurack.lab.anythingllm_double import Fault, archive
from gpurack.lab.ollama_double import MODEL
from gpurack.lab.ollama_double import archive as ollama_archive

STATE = "/var/lib/gpurack/anythingllm"
NAMES = ("sig_key", "sig_salt", "jwt_secret", "auth_token")


def secret(folder: Path, name: str) -> dict[str, str]:
    """Return a reference to a random secret in a file, made at the first call."""
    path = folder / f"secret-{name}"
    if not path.exists():
        path.write_text(secrets.token_hex(32) + "\n")
    return {"file": str(path)}


def images(version: str = "1.16.0", fault: Fault = "") -> dict[str, Any]:
    """Return the site's source of images: both doubles' archives, AnythingLLM's of a release if asked for."""
    return {
        "archives": {"anythingllm": str(archive(version, fault=fault)), "ollama": str(ollama_archive())},
        "overrides": {"anythingllm": {"tag": version}},
    }


def base_settings(folder: Path) -> dict[str, Any]:
    """Return settings with two departments, short health checks, and secrets in files."""
    return {
        "enabled": True,
        "model": MODEL,
        **{name: secret(folder, name) for name in NAMES},
        "admin": {"username": "root.admin", "password": secret(folder, "admin")},
        "users": {
            "ada": {"password": secret(folder, "ada"), "role": "manager"},
            "bob": {"password": secret(folder, "bob"), "daily_messages": 50},
            "eve": {"password": secret(folder, "eve"), "suspended": True},
        },
        "workspaces": {
            "legal": {"name": "Legal department", "model": MODEL, "prompt": 'Cite the law\'s "§".', "temperature": 0.2},
            "sales": {"history": 5, "similarity": 0.5, "mode": "chat", "members": ["bob"]},
        },
        "api_keys": ["gateway"],
        "health_interval": "PT1S",
        "health_start_period": "PT3S",
        "ready_timeout": "PT40S",
    }


def ollama_settings() -> dict[str, Any]:
    """Return settings of Ollama's double on the CPU."""
    return {
        "accelerator": "cpu",
        "health_interval": "PT1S",
        "health_start_period": "PT0S",
    }


def site_settings(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the settings of a host with Docker, Ollama and AnythingLLM."""
    return {
        "docker": {},
        "ollama": ollama_settings(),
        "ollama_models": {"enabled": False},
        "anythingllm": base_settings(folder),
        "images": images(),
    }


def ask(machine: Machine, method: str, path: str, body: Any = None) -> Any:
    """Ask the API with the key that the role keeps on the host, and return the answer."""
    data = "" if body is None else f"--header 'Content-Type: application/json' --data-binary '{json.dumps(body)}'"
    call = f"curl -sS --max-time 30 --config {STATE}/api.conf -X {method} {data} http://127.0.0.1:3001{path}"
    return json.loads(machine.ssh(call).stdout)


def rows(machine: Machine, sql: str) -> str:
    """Return what a query of the database on the host prints."""
    database = "/srv/anythingllm/storage/anythingllm.db"
    return machine.ssh(f'sqlite3 -readonly -cmd ".timeout 5000" {database} "{sql}"').stdout.strip()


def session(machine: Machine, folder: Path, method: str, path: str, body: Any = None) -> Any:
    """Ask the API as the administrator who is logged in, as the web pages do."""
    url, json_type = "http://127.0.0.1:3001", "Content-Type: application/json"
    login = json.dumps({"username": "root.admin", "password": (folder / "secret-admin").read_text().strip()})
    answer = machine.ssh(f"curl -sS -H '{json_type}' -d '{login}' {url}/api/request-token").stdout
    bearer = f"Authorization: Bearer {json.loads(answer)['token']}"
    data = json.dumps(body).replace("'", "\\u0027")
    call = f"curl -sS -X {method} -H '{json_type}' -H '{bearer}' -d '{data}' {url}{path}"
    return json.loads(machine.ssh(call).stdout)
