"""The measured case as a pyinfra deploy: 41 operations on a host that is already as it should be."""

from io import StringIO

from pyinfra.operations import apt, files, server, systemd

apt.packages(name="Packages", packages=["curl", "cron", "sudo", "python3", "ca-certificates"])
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
    server.user(name=f"User {number}", user=f"bench{number}", home=f"/home/bench{number}", shell="/bin/bash")
for key, value in (("net.ipv4.ip_forward", 1), ("net.ipv4.tcp_syncookies", 1), ("net.core.somaxconn", 4096)):
    server.sysctl(name=f"Sysctl {key}", key=key, value=value, persist=True, persist_file="/etc/sysctl.d/90-bench.conf")
for service in ("ssh", "cron", "dbus", "systemd-journald"):
    systemd.service(name=f"Service {service}", service=f"{service}.service", running=True, enabled=None)
