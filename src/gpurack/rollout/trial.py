"""Trying a host: its models answer within the limits, and no control that held before is broken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pyinfra.api.host import Host

from gpurack.controls import Status
from gpurack.facts.answer import Capabilities, Completion, Embedding, Loaded
from gpurack.fleet import HostError, connection, read
from gpurack.rollout.acceptance import Acceptance, Answer, Trial
from gpurack.settings import settings_of
from gpurack.verify import verify_host

ASKED = 3
"""Answers of each model; their median counts, so that one hiccup decides nothing."""


@dataclass(frozen=True)
class Verdict:
    """What became of a host in a roll-out.

    Attributes:
        host: its name.
        trials: what was measured.
        failures: why the host does not hold; empty when it does.
    """

    host: str
    trials: tuple[Trial, ...] = ()
    failures: tuple[str, ...] = field(default=())

    @property
    def holds(self) -> bool:
        """Whether the roll-out may go on."""
        return not self.failures


def failing_controls(host: Host) -> Mapping[str, str]:
    """Return the controls that do not hold on a host, with what they say; those that cannot be carried out too.

    Raises:
        HostError: it cannot be reached.
    """
    report = verify_host(host)
    if report.unreachable:
        raise HostError(report.unreachable)
    return {
        result.control.id: f"{result.control.title}: {result.message}"
        for result in report.results
        if result.status in (Status.FAIL, Status.ERROR)
    }


def try_host(host: Host, before: Mapping[str, str]) -> Verdict:
    """Ask every declared model of a host, and look at its controls.

    Args:
        host: of an initialised inventory, not connected.
        before: the controls that did not hold before the roll-out, with what they said; what they still say is no
            fault of it.
    """
    limits = _limits(host)
    try:
        found = [
            f"{control}: {text} (not so before)"
            for control, text in failing_controls(host).items()
            if before.get(control) != text
        ]
        with connection(host):
            trials = tuple(_trials(host, limits))
    except HostError as error:
        return Verdict(host.name, failures=(str(error),))
    failures = [failure for trial in trials for failure in trial.failures(limits[trial.model])]
    return Verdict(host.name, trials, (*failures, *found))


def _limits(host: Host) -> dict[str, Acceptance]:
    settings = settings_of(host, "ollama_models")
    return {name: model.acceptance or settings.acceptance for name, model in settings.models.items()}


def _trials(host: Host, limits: Mapping[str, Acceptance]) -> Iterator[Trial]:
    server, models = settings_of(host, "ollama"), settings_of(host, "ollama_models")
    if not (server.enabled and models.enabled):
        return
    for name, model in models.models.items():
        if model.present:
            yield Trial(host.name, name, tuple(_answers(host, server.url, name, limits[name])))


def _answers(host: Host, url: str, model: str, limits: Acceptance) -> Iterator[Answer]:
    abilities = read(host, Capabilities, url=url, model=model)
    if "embedding" in abilities and "completion" not in abilities:
        # The first one loads the model: it is not measured.
        first = read(host, Embedding, url=url, model=model, text=limits.question, seconds=600, timeout_seconds=660)
        if first.error:
            yield first
            return
        for _ in range(ASKED):
            yield read(host, Embedding, url=url, model=model, text=limits.question, timeout_seconds=180)
        return
    loaded = read(host, Loaded, url=url, model=model, timeout_seconds=660)
    if loaded.error:
        yield loaded
        return
    for _ in range(ASKED):
        yield read(host, Completion, url=url, model=model, prompt=limits.question, timeout_seconds=180)
