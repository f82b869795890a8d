"""Examining hosts: one connection and one command each, over the connections of ``gpurack verify``."""

from __future__ import annotations

import http.client
import json
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import paramiko
from pyinfra.api.facts import FactBase
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory

from gpurack.doctor.diagnosis import Diagnosis, diagnose
from gpurack.doctor.evidence import Api, Evidence, Expected, address_and_port, is_wildcard
from gpurack.doctor.probe import IncompleteError, parts, script, split
from gpurack.doctor.reading import evidence_of
from gpurack.fleet import HostError, connection, on_each, read
from gpurack.settings import role_models, settings_for

REACH_SECONDS = 4


class Probe(FactBase[list[str]]):
    """Returns what the one script printed; everything the doctor knows is read through it."""

    default = list

    def command(self, script: str) -> str:
        """Run the script."""
        return script

    def process(self, output: Iterable[str]) -> list[str]:
        """Return the lines."""
        return list(output)


@dataclass(frozen=True)
class Examination:
    """One host: its evidence and diagnosis, or why there are none."""

    host: str
    evidence: Evidence | None = None
    diagnosis: Diagnosis | None = None
    error: str = ""


def expected_of(host: Host, inventory: str) -> Expected:
    """Return what the inventory says a host shall be; defaults where a role is not applied."""
    models = role_models()
    values: dict[str, object] = {"inventory": inventory, "docker": False, "ollama": False, "accelerator": None}
    if "docker" in models and (docker := settings_for(host, models["docker"])).enabled:
        values |= {"docker": True, "data_root": docker.data_root}  # type: ignore[attr-defined]
    if "ollama" in models and (ollama := settings_for(host, models["ollama"])).enabled:
        values |= {
            "ollama": True,
            "accelerator": ollama.accelerator,  # type: ignore[attr-defined]
            "publish_address": str(ollama.publish_address),  # type: ignore[attr-defined]
            "publish_port": ollama.publish_port,  # type: ignore[attr-defined]
            "models_dir": ollama.models_dir,  # type: ignore[attr-defined]
        }
    return Expected.model_validate(values)


def examine(inventory: Inventory, path: str, limit: Sequence[str] = ()) -> Iterator[Examination]:
    """Examine hosts of an inventory without problems, several at a time.

    Args:
        inventory: the inventory.
        path: as it was named on the command line.
        limit: only these hosts, groups or patterns.
    """
    yield from on_each(inventory, lambda host: examine_host(host, expected_of(host, path)), limit=limit)


def examine_host(host: Host, expected: Expected) -> Examination:
    """Examine one host of an initialised inventory."""
    try:
        with connection(host):
            evidence = collect(host, expected)
    except HostError as error:
        return Examination(host.name, error=str(error))
    return Examination(host.name, evidence, diagnose(evidence))


def collect(host: Host, expected: Expected) -> Evidence:
    """Read a connected host.

    Raises:
        HostError: the connection broke, or one is not root there.
    """
    wanted, mark, started = parts(expected), f"@@{secrets.token_hex(12)}", time.time()
    # All parts together, should each take as long as it may: a dead link is noticed by the transport, and earlier.
    longest = sum(part.seconds + 2 for part in wanted)
    printed = read(host, Probe, timeout_seconds=longest, script=script(wanted, mark))
    try:
        output = split("\n".join(printed), mark)
    except IncompleteError as error:
        raise HostError(str(error)) from error
    if "uid 0" not in output["host"].lines:
        raise HostError("no root rights: set _sudo = True in the inventory's group_data, or connect as root")
    evidence = evidence_of(host.name, expected, output, started)
    return evidence.model_copy(update={"api": _reached(host, evidence)})


def _reached(host: Host, evidence: Evidence) -> Api:
    """Return what is known of the API, with whether it answers this machine too; not asked through a jump host."""
    api, expected = evidence.api, evidence.expected
    client = getattr(host.connector, "client", None)  # only SSH has one
    transport = client.get_transport() if client else None
    if not api.version or expected.local_only or transport is None:
        return api
    if isinstance(transport.sock, paramiko.Channel | paramiko.ProxyCommand):
        return api
    address = expected.publish_address
    if is_wildcard(address):
        address = str(transport.getpeername()[0])
    error = reach(address, expected.publish_port)
    place = address_and_port(address, expected.publish_port)
    return api.model_copy(update={"reachable": not error, "reach_error": error, "reached_at": place})


def reach(address: str, port: int) -> str:
    """Ask an Ollama for its version over the network; return why it did not answer, nothing when it did."""
    connection = http.client.HTTPConnection(address, port, timeout=REACH_SECONDS)
    try:
        connection.request("GET", "/api/version", headers={"Host": "localhost"})
        answer = connection.getresponse()
        body = answer.read(10_000)
        return "" if answer.status == 200 and "version" in json.loads(body) else f"status {answer.status}"
    except TimeoutError:
        return f"no answer within {REACH_SECONDS} seconds"
    except (OSError, http.client.HTTPException, ValueError, TypeError) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()
