"""Controls of the sshd role: what the server on the host really does, not what a file says."""

from __future__ import annotations

from typing import Any

from gpurack.controls import control
from roles.sshd.settings import SshdSettings


def effective(host: Any, user: str = "root") -> dict[str, list[str]]:
    """Return the configuration in force for a user: values by lower-case keyword, several where sshd allows them."""
    output = host.check_output("/usr/sbin/sshd -T -C user=%s,host=localhost,addr=127.0.0.1", user)
    found: dict[str, list[str]] = {}
    for line in output.splitlines():
        keyword, _, value = line.partition(" ")
        found.setdefault(keyword.lower(), []).append(value.strip())
    return found


def login_users(host: Any) -> list[str]:
    """Return the accounts that have a shell."""
    rows = [row.split(":") for row in host.check_output("getent passwd").splitlines()]
    return [row[0] for row in rows if not row[6].endswith(("/nologin", "/false", "/sync"))]


@control(
    "SSHD-01",
    "The SSH server runs, starts at boot, and its configuration is valid",
    severity="critical",
    satisfies=["ISO 27001 A.8.9"],
)
def test_server_runs(host: Any, settings: SshdSettings) -> None:
    """A server that does not come back after a reboot is one somebody must drive to."""
    del settings
    assert host.run("/usr/sbin/sshd -t").rc == 0, f"sshd -t: {host.run('/usr/sbin/sshd -t').stderr.strip()}"
    active = host.run("systemctl is-active ssh.service")
    assert active.rc == 0, f"ssh.service is not running: {active.stdout.strip()} {active.stderr.strip()}"
    assert host.run("systemctl --quiet is-enabled ssh.service ssh.socket").rc == 0, "ssh.service is not enabled"


@control(
    "SSHD-02",
    "Keys are the only way in, for every user",
    severity="critical",
    satisfies=["CIS Debian 12 5.1.19", "ISO 27001 A.8.5"],
)
def test_keys_only(host: Any, settings: SshdSettings) -> None:
    """Passwords can be guessed. Asked for each account, because a Match block may differ from the rest."""
    del settings
    for user in login_users(host):
        found = effective(host, user)
        for keyword, value in {
            "passwordauthentication": "no",
            "kbdinteractiveauthentication": "no",
            "permitemptypasswords": "no",
            "hostbasedauthentication": "no",
            "pubkeyauthentication": "yes",
        }.items():
            assert found.get(keyword) == [value], f"{keyword} is {found.get(keyword)} for {user}, expected {value}"


@control(
    "SSHD-03",
    "The running server offers keys and nothing else",
    severity="critical",
    satisfies=["ISO 27001 A.8.5"],
)
def test_running_server_offers_keys_only(host: Any, settings: SshdSettings) -> None:
    """A file changed without a restart means nothing: the server itself is asked, without logging in."""
    answer = host.run(
        "ssh -F /dev/null -o BatchMode=yes -o PreferredAuthentications=none -o StrictHostKeyChecking=no "
        "-o UserKnownHostsFile=/dev/null -o ConnectTimeout=5 -p %s root@127.0.0.1 true",
        str(settings.ports[0]),
    )
    last = (answer.stderr.strip().splitlines() or ["no answer"])[-1]
    assert last.endswith("Permission denied (publickey)."), f"the server on port {settings.ports[0]} says: {last}"


@control(
    "SSHD-04",
    "Root does not log in, or only with a key where that is wanted",
    severity="high",
    satisfies=["CIS Debian 12 5.1.20", "ISO 27001 A.8.2"],
)
def test_root_login(host: Any, settings: SshdSettings) -> None:
    """Logins as root cannot be told apart."""
    allowed = {"no": ["no"], "prohibit-password": ["no", "prohibit-password", "without-password"]}[settings.root_login]
    found = effective(host)["permitrootlogin"]
    assert found[0] in allowed, f"permitrootlogin is {found[0]}, expected {settings.root_login}"


@control(
    "SSHD-05",
    "Only modern algorithms are offered",
    severity="high",
    satisfies=["CIS Debian 12 5.1.6", "CIS Debian 12 5.1.12", "CIS Debian 12 5.1.15", "ISO 27001 A.8.24"],
)
def test_modern_algorithms(host: Any, settings: SshdSettings) -> None:
    """One weak algorithm on offer is enough for a downgrade."""
    found = effective(host)
    for keyword, wanted in {
        "kexalgorithms": settings.kex_algorithms,
        "ciphers": settings.ciphers,
        "macs": settings.macs,
        "hostkeyalgorithms": settings.host_key_algorithms,
    }.items():
        surplus = set(found[keyword][0].split(",")) - set(wanted)
        assert not surplus, f"{keyword} offers {', '.join(sorted(surplus))}"


@control(
    "SSHD-06",
    "Logins are limited in time, tries and users",
    severity="medium",
    satisfies=["CIS Debian 12 5.1.4", "CIS Debian 12 5.1.7", "CIS Debian 12 5.1.13", "CIS Debian 12 5.1.16"],
)
def test_limits(host: Any, settings: SshdSettings) -> None:
    """Half-open logins and dead sessions tie up the server; who may log in is said, not assumed."""
    found = effective(host)
    wanted = {
        "logingracetime": f"{settings.login_grace_time.total_seconds():.0f}",
        "maxauthtries": str(settings.max_auth_tries),
        "maxsessions": str(settings.max_sessions),
        "clientaliveinterval": f"{settings.client_alive_interval.total_seconds():.0f}",
        "clientalivecountmax": "3",
    }
    for keyword, value in wanted.items():
        assert found[keyword] == [value], f"{keyword} is {found[keyword]}, expected {value}"
    for keyword, names in {"allowusers": settings.allow_users, "allowgroups": settings.allow_groups}.items():
        assert set(found.get(keyword, [])) == set(names), f"{keyword} is {found.get(keyword, [])}, expected {names}"


@control(
    "SSHD-07",
    "Forwarding is off unless asked for",
    severity="medium",
    satisfies=["CIS Debian 12 5.1.8", "ISO 27001 A.8.20"],
)
def test_forwarding(host: Any, settings: SshdSettings) -> None:
    """A tunnel goes round the firewall."""
    found = effective(host)
    for keyword, wanted in {
        "x11forwarding": False,
        "allowtcpforwarding": settings.tcp_forwarding,
        "allowagentforwarding": settings.agent_forwarding,
    }.items():
        value = "yes" if wanted else "no"
        assert found[keyword] == [value], f"{keyword} is {found[keyword][0]}, expected {value}"


@control(
    "SSHD-08",
    "The server listens on the wanted ports only",
    severity="medium",
    satisfies=["ISO 27001 A.8.20"],
)
def test_ports(host: Any, settings: SshdSettings) -> None:
    """Ports add up over all configuration files; a forgotten one is an open door."""
    found = {int(port) for port in effective(host)["port"]}
    assert found == set(settings.ports), f"ports are {sorted(found)}, expected {sorted(settings.ports)}"


@control(
    "SSHD-09",
    "No change of the SSH server is left unconfirmed",
    severity="high",
    satisfies=["ISO 27001 A.8.32"],
)
def test_nothing_pending(host: Any, settings: SshdSettings) -> None:
    """A change on trial is taken back by the host within its time limit; one that lasts is a fault."""
    del settings
    assert not host.file("/var/lib/gpurack/guard/sshd/pending").exists, "an unconfirmed change is in place"
