"""Connections whose commands share a shell, on a real host: what is left of sudo's log, and what still goes through."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator

import paramiko
import pytest

from gpurack.lab import Machine
from gpurack.ssh import plain_transport, transport

pytestmark = pytest.mark.host


@pytest.fixture(params=[transport, plain_transport], ids=["shared", "plain"])
def client(request: pytest.FixtureRequest, machine: Machine) -> Iterator[paramiko.SSHClient]:
    made = paramiko.SSHClient()
    made.load_host_keys(str(machine.known_hosts))
    made.connect(
        machine.address,
        username=machine.user,
        key_filename=str(machine.key),
        allow_agent=False,
        look_for_keys=False,
        transport_factory=request.param,
    )
    yield made
    made.close()


def run(client: paramiko.SSHClient, command: str, given: str = "") -> tuple[int, str, str]:
    stdin, stdout, stderr = client.exec_command(command)
    if given:
        stdin.write(given)
    stdin.close()
    said = stdout.read().decode(), stderr.read().decode()
    return stdout.channel.recv_exit_status(), *said


def test_commands_answer_the_same_either_way(client: paramiko.SSHClient) -> None:
    for _ in range(3):
        assert run(client, "sudo -H -n sh -c 'id -un; pwd; echo err >&2; exit 3'") == (
            3,
            "root\n/home/admin\n",
            "err\n",
        )
        assert run(client, "sh -c 'id -un'") == (0, "admin\n", "")
        assert run(client, "sudo -H -n sh -c cat", "over standard input\n") == (0, "over standard input\n", "")
        assert run(client, "echo plain") == (0, "plain\n", "")


def test_files_are_uploaded_beside(client: paramiko.SSHClient) -> None:
    run(client, "sh -c true")
    with client.open_sftp() as files:
        files.putfo(io.BytesIO(b"x" * 300_000), "uploaded")
    assert run(client, "sh -c 'wc -c <uploaded'")[1].strip() == "300000"


def test_commands_as_root_are_in_the_log(client: paramiko.SSHClient, machine: Machine) -> None:
    token = f"token-{id(client)}"
    run(client, f"sudo -H -n sh -c 'echo {token}\necho two'")
    machine.ssh(
        f"for i in $(seq 50); do journalctl SYSLOG_FACILITY=10 | grep 'COMMAND=.*{token}' | grep -q admin "
        "&& exit 0; sleep 0.1; done; exit 1"
    )


def test_taking_sudo_away_is_noticed(client: paramiko.SSHClient, machine: Machine) -> None:
    """Like everybody who is logged in, a connection keeps what it has; a new one does not get it."""
    ask = "sed -i.kept s/NOPASSWD:// /etc/sudoers.d/90-lab && mv /etc/sudoers.d/90-lab.kept /root/"
    soon = "systemd-run --timer-property=AccuracySec=100ms --on-active=4"
    machine.ssh(f"{soon} mv /root/90-lab.kept /etc/sudoers.d/90-lab; {ask}")
    code, _, err = run(client, "sudo -H -n sh -c 'echo hello'")
    assert (code, err.splitlines()[-1]) == (1, "sudo: a password is required")
    machine.ssh("true", check=False)
    wait_for_sudo(lambda: machine.ssh("true", check=False).returncode == 0)
    assert run(client, "sudo -H -n sh -c 'echo hello'") == (0, "hello\n", "")


def wait_for_sudo(there: Callable[[], bool]) -> None:
    for _ in range(100):
        if there():
            return
        time.sleep(0.1)
    raise AssertionError("the host did not give sudo back")
