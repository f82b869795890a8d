"""Operations on the models of Ollama, through its API on the host."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Generator, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from gevent.pool import Pool
from pyinfra import host, logger
from pyinfra.api import FunctionCommand, operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.host import Host
from pyinfra.api.state import State

from gpurack.facts.ollama import RECORDS, Models, RegistryManifests, Served
from gpurack.ollama import api as ollama
from gpurack.ollama import plan
from gpurack.ollama.api import Api, OllamaError, meaning
from gpurack.ollama.names import ModelName
from gpurack.ollama.plan import Found, Pull, Wanted
from gpurack.ollama.progress import Transfer, size
from gpurack.ollama.shell import HostShell
from gpurack.ollama.transfer import upload

Commands = Generator[str | PyinfraCommand, None, None]
GIB = 1024**3


def obstacles(
    wanted: Sequence[Wanted],
    found: Found,
    served: dict[str, Served],
    directory: str,
    reserve_gib: int,
) -> list[str]:
    """Return why models cannot be brought to a host, known before the first byte of them moves.

    A registry that cannot be asked, or asks for a login that only Ollama has, is no obstacle here: the pull will tell.

    Args:
        wanted: the declared models.
        found: what Ollama has, and the room there is.
        served: what the registries say.
        directory: where the models are, for the message.
        reserve_gib: room that must be left, in GiB.
    """
    problems: list[str] = []
    disk = found.disk
    needs: dict[str, int] = {}
    counted: set[str] = set()
    for pull in plan.pulls(wanted, found):
        answer = served.get(pull.name.key)
        if pull.adopt or answer is None:
            continue
        if answer.status == 404:
            problems.append(f"{pull.name}: {meaning('404')}")
        elif answer.status == 200 and pull.digest and answer.digest != pull.digest:
            problems.append(
                f"{pull.name}: its registry serves sha256:{answer.digest}, and digest pins sha256:{pull.digest}: "
                "its publisher has changed it; look at the change, then set digest to what is served"
            )
        missing = {digest: count for digest, count in answer.blobs.items() if digest not in counted}
        counted |= missing.keys()
        needs[str(pull.name)] = sum(
            max(count - disk.partly(digest), 0) for digest, count in missing.items() if not disk.has(digest, count)
        )
    for model in wanted:
        if model.files and not plan.is_current(model, found):
            # Ollama reads the file and writes it anew: for a while both are there.
            needs[str(model.name)] = 2 * sum(file.size for file in model.files)
    if (needed := sum(needs.values())) and disk.free - needed < reserve_gib * GIB:
        parts = ", ".join(f"{name} {size(count)}" for name, count in needs.items() if count)
        lacking = reserve_gib * GIB - (disk.free - needed)
        problems.append(
            f"too little room at {directory}: {size(disk.free)} are free, {size(needed)} are needed ({parts}), and "
            f"disk_reserve_gib keeps {reserve_gib} GiB: {size(lacking)} are missing; make room, take a smaller "
            "quantisation, or set ollama.models_dir to a larger disk"
        )
    return problems


@operation()
def pulled(
    models: Sequence[Wanted], address: str, directory: str, reserve_gib: int, parallel: int, insecure: Sequence[str]
) -> Commands:
    """Pull the models that are not there, or have another digest than the pinned one.

    While another version is pulled, the one that is there keeps a second name: if the registry serves another digest
    than the pinned one, it gets its name back, and goes on serving.

    + models: the declared models
    + address: where the API is on the host
    + directory: models_dir on the host
    + reserve_gib: room to be left
    + parallel: models pulled at the same time
    + insecure: registries that speak plain HTTP
    """
    found = host.get_fact(Models, address=address, directory=directory)
    needed = plan.pulls(models, found)
    if found.up and not needed:
        host.noop("the models are there")
        return
    if not found.up and not models:
        return
    served = host.get_fact(RegistryManifests, names=[pull.name for pull in needed], insecure=list(insecure))
    problems = obstacles(models, found, served, directory, reserve_gib)
    # Ollama takes a file with the right name for the blob, whatever is in it.
    if damaged := found.damaged([name for model in models for name in (model.name, model.source) if name]):
        yield f"cd {shlex.quote(directory)}/models/blobs && rm -f {shlex.join(sorted(damaged))}"
    yield FunctionCommand(_pull_all, (needed, problems, address, parallel, tuple(insecure)), {})


def _pull_all(
    state: State,
    host: Host,
    needed: Sequence[Pull],
    problems: Sequence[str],
    address: str,
    parallel: int,
    insecure: Sequence[str],
) -> bool:
    if problems:
        for problem in problems:
            logger.error(f"{host.print_prefix}{problem}")
        return False

    def one(pull: Pull) -> bool:
        api = Api(HostShell(state, host), address)
        with Transfer(host.name, str(pull.name)) as shown:
            done = _told(host, str(pull.name), lambda: pull_one(api, pull, insecure=insecure, report=shown.update))
        if done:
            logger.info(f"{host.print_prefix}{pull.name} is {'kept' if pull.adopt else 'pulled'}")
        return done

    return all(list(Pool(parallel).imap_unordered(one, needed)))


def pull_one(api: Api, pull: Pull, *, insecure: Sequence[str], report: ollama.Report) -> None:
    """Pull a model, or leave things as they were.

    Raises:
        OllamaError: it could not be pulled, or has another digest than it must have.
    """
    name, kept = pull.name, pull.name.kept
    if not pull.adopt:
        before = api.digests()
        # One that an earlier run left is the one that served: what has the name now may be what nobody wanted.
        if pull.digest and name.key in before and kept.key not in before:
            api.copy(name, kept)
        ollama.pull(api, name, insecure=name.registry in insecure, report=report)
        after = api.digests()
        if pull.digest and after.get(name.key) != pull.digest:
            if kept.key in after:
                api.copy(kept, name)
                api.delete(kept)
            else:
                api.delete(name)
            raise OllamaError(
                f"its registry serves sha256:{after.get(name.key)}, and digest pins sha256:{pull.digest}: what served "
                "before goes on serving; look at the change, then set digest to what is served"
            )
        if kept.key in after:
            api.delete(kept)
    if pull.keep_as:
        api.copy(name, pull.keep_as)


def _told(host: Host, what: str, work: Callable[[], None]) -> bool:
    """Do some work; say why it failed."""
    try:
        work()
    except OllamaError as error:
        logger.error(f"{host.print_prefix}{what}: {meaning(str(error))}")
        return False
    return True


@operation()
def made(model: Wanted, address: str, directory: str) -> Commands:
    """Make a model from another one, or from files, with what is declared on top, unless it is there just so.

    What it was made of is written down on the host with the digest of the result: Ollama writes a file anew when it
    makes a model of it, so that its own digest says nothing of where it comes from.

    + model: the declared model
    + address: where the API is on the host
    + directory: models_dir on the host
    """
    found = host.get_fact(Models, address=address, directory=directory)
    if found.up and plan.is_current(model, found):
        host.noop(f"{model.name} is as declared")
        return
    source = found.digest(model.source) if model.source else ""
    yield FunctionCommand(_make, (model, source, address, directory), {})


def _make(state: State, host: Host, model: Wanted, source: str | None, address: str, directory: str) -> bool:
    shell = HostShell(state, host)
    api = Api(shell, address)

    def work() -> None:
        if source is None:
            raise OllamaError(f"{model.source}, which it is made from, is not there")
        for file in model.files:
            with Transfer(host.name, f"{model.name}: {file.name}") as shown:
                upload(shell, file, f"{directory}/models", shown.update)
        for _ in api.request("POST", "/api/create", create_request(model)):
            pass
        digest = api.digests().get(model.name.key)
        record = json.dumps({"name": model.name.full, "recipe": model.recipe(source), "digest": digest})
        # The files' own blobs: what Ollama made of them is another one, unless it took them as they are.
        ollama.run(shell, f"{_record_script(model.name, record)}\n{_leftovers(model, directory)}")

    return _told(host, str(model.name), work)


def create_request(model: Wanted) -> dict[str, Any]:
    """Return the body of the request that makes a model."""
    origin: dict[str, Any] = {"files": {file.name: f"sha256:{file.sha256}" for file in model.files}}
    if model.source:
        origin = {"from": str(model.source)}
    return {"model": str(model.name), "stream": True, **origin, **model.layers}


def record_file(name: ModelName) -> str:
    """Return where it is written down on the host what a model was made of."""
    return f"{RECORDS}/{name.key.replace('/', '+')}.json"


def _record_script(name: ModelName, record: str) -> str:
    path = shlex.quote(record_file(name))
    written = f"printf '%s\\n' {shlex.quote(record)} >{path}.new && mv {path}.new {path}"
    return f"install -d -m 755 {RECORDS} && {written} || exit 1"


def _leftovers(model: Wanted, directory: str) -> str:
    lines = [
        f"grep -rqs sha256:{file.sha256} {shlex.quote(directory)}/models/manifests "
        f"|| rm -f {shlex.quote(directory)}/models/blobs/sha256-{file.sha256}"
        for file in model.files
    ]
    return "\n".join([*lines, "true"])


@operation()
def removed(
    models: Sequence[Wanted], absent: Sequence[ModelName], address: str, directory: str, remove_unlisted: bool
) -> Commands:
    """Remove models that are declared absent, and undeclared ones where that is allowed; never anything else.

    + models: the declared models
    + absent: names of models that must not be there
    + address: where the API is on the host
    + directory: models_dir on the host
    + remove_unlisted: whether undeclared models go
    """
    found = host.get_fact(Models, address=address, directory=directory)
    gone = plan.removals(models, absent, found, remove_unlisted=remove_unlisted)
    if found.up and not gone:
        host.noop("no model is to be removed")
        return
    if gone:
        yield FunctionCommand(_remove, ([model.name for model in gone], address), {})


def _remove(state: State, host: Host, names: Sequence[ModelName], address: str) -> bool:
    shell = HostShell(state, host)
    api = Api(shell, address)

    def one(name: ModelName) -> None:
        api.delete(name)
        ollama.run(shell, f"rm -f {shlex.quote(record_file(name))}")
        if not (name.is_base or name.is_kept):
            logger.info(f"{host.print_prefix}{name} is removed")

    results = [_told(host, str(name), partial(one, name)) for name in names]
    return all(results)


@operation()
def loaded(models: Sequence[Wanted], address: str, directory: str) -> Commands:
    """Load models into memory, for as long as they are to stay.

    + models: the declared models; those without keep_alive are left alone
    + address: where the API is on the host
    + directory: models_dir on the host
    """
    found = host.get_fact(Models, address=address, directory=directory)
    missing = [model for model in models if model.keep_alive is not None and not plan.is_loaded(model, found)]
    if not missing:
        host.noop("the models are in memory")
        return
    yield FunctionCommand(_load, (missing, address), {})


def _load(state: State, host: Host, models: Sequence[Wanted], address: str) -> bool:
    api = Api(HostShell(state, host), address)

    def one(model: Wanted) -> None:
        stay = model.keep_alive
        keep = f"{int(stay.total_seconds())}s" if isinstance(stay, timedelta) else -1
        known = api.call("POST", "/api/show", {"model": str(model.name)}).get("capabilities") or ["completion"]
        # A model that only embeds refuses to generate.
        body = {"model": str(model.name), "keep_alive": keep, "stream": False}
        if "completion" in known:
            api.call("POST", "/api/generate", body)
        else:
            api.call("POST", "/api/embed", {**body, "input": []})

    results = [_told(host, str(model.name), partial(one, model)) for model in models]
    return all(results)
