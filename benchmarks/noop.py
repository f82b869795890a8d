"""The measured case as a pyinfra deploy: 41 operations on a host that is already as it should be.

With ``--data own=true`` packages and users are declared with gpurack's operations, as its roles declare them, and with
pyinfra's own otherwise.
"""

from io import StringIO

from pyinfra import host
from pyinfra.operations import apt, files, server, systemd

PACKAGES = ["curl", "cron", "sudo", "python3", "ca-certificates"]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEJFTkNIQkVOQ0hCRU5DSEJFTkNIQkVOQ0hCRU5DSA bench"

if host.data.get("own"):
    from gpurack.operations import accounts, packages

    packages.installed(name="Packages", packages=PACKAGES)
else:
    apt.packages(name="Packages", packages=PACKAGES)
for number in range(15):
    files.directory(name=f"Directory {number}", path=f"/srv/bench/d{number}", mode="755", user="root", group="root")
for number in range(15):
    files.put(
        name=f"File {number}",
        src=StringIO(f"content of file {number}\n"),
        dest=f"/srv/bench/d{number}/file.conf",
        mode="644",
        user="root",
        group="root",
    )
for number in range(3):
    user = f"bench{number}"
    if host.data.get("own"):
        accounts.open_account(
            name=f"User {number}", user=user, full_name="", shell="/bin/bash", groups=(), ssh_keys=[KEY]
        )
    else:
        server.user(name=f"User {number}", user=user, home=f"/home/{user}", shell="/bin/bash")
for key, value in (("net.ipv4.ip_forward", 1), ("net.ipv4.tcp_syncookies", 1), ("net.core.somaxconn", 4096)):
    server.sysctl(name=f"Sysctl {key}", key=key, value=value, persist=True, persist_file="/etc/sysctl.d/90-bench.conf")
for service in ("ssh", "cron", "dbus", "systemd-journald"):
    systemd.service(name=f"Service {service}", service=f"{service}.service", running=True, enabled=None)
