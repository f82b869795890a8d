"""The test hosts of this machine: those of `gpurack lab up`, and those of `vagrant up`."""

import json as _json
import pathlib as _pathlib

from gpurack import lab as _lab

_vagrant = _pathlib.Path(".lab/vagrant.json")

gpu = [(machine.name, machine.data()) for machine in _lab.hosts() if machine.owner is None]

if _vagrant.exists():
    gpu += [
        (
            machine["name"],
            {
                "ssh_hostname": machine["address"],
                "ssh_port": machine["port"],
                "ssh_user": machine["user"],
                "ssh_key": machine["key"],
                "ssh_known_hosts_file": machine["known_hosts"],
                "_sudo": True,
            },
        )
        for machine in _json.loads(_vagrant.read_text())
    ]

if not gpu:
    raise SystemExit("no lab host is running; start one with: gpurack lab up gpu1   (or: vagrant up)")
