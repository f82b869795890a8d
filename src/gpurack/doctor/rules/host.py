"""Tests of the host itself: room, time, and whether it could be read at all."""

from __future__ import annotations

from gpurack.doctor.diagnosis import Sign, test
from gpurack.doctor.evidence import Evidence, Filesystem

FULL_BYTES = 32 * 1024**2
FULL_PERCENT = 0.5
LOW_PERCENT = 10.0
LOW_BYTES = 20 * 1024**3
MAX_SKEW_SECONDS = 60


def is_full(disk: Filesystem) -> bool:
    """Tell whether next to nothing can be written any more, to a file or to a directory."""
    return (
        disk.available_bytes < min(FULL_BYTES, disk.size_bytes / 10)
        or disk.free_percent < FULL_PERCENT
        or (disk.inodes > 0 and disk.inodes_available == 0)
    )


def is_low(disk: Filesystem) -> bool:
    """Tell whether it fills soon: little is left in share, and too little for another model."""
    return disk.free_percent < LOW_PERCENT and disk.available_bytes < LOW_BYTES


def gib(size: float) -> str:
    """Return a size in GiB, in MiB where it is small."""
    return f"{size / 1024**3:.1f} GiB" if size >= 1024**3 else f"{size / 1024**2:.0f} MiB"


def room(disk: Filesystem) -> str:
    """Return a file system's room as a line."""
    kept = ", ".join(path for path in disk.paths if path != disk.mount)
    inodes = ", no inodes" if disk.inodes and not disk.inodes_available else ""
    return (
        f"{disk.mount}: {gib(disk.available_bytes)} of {gib(disk.size_bytes)} left{inodes}"
        f"{f' (holds {kept})' if kept else ''}"
    )


@test(
    "disk-full",
    "A disk is full",
    severity="critical",
    explains=("@driver", "@devices", "@containers", "@service"),
)
def disk_full(evidence: Evidence) -> Sign | None:
    """A full disk stops module builds, Docker, models in download and logs, each with an error of its own."""
    full = [disk for disk in evidence.filesystems if is_full(disk)]
    if not full:
        return None
    held = {path for disk in full for path in disk.paths}
    if evidence.expected.ollama and evidence.expected.models_dir in held and "/" not in {disk.mount for disk in full}:
        cure = (
            f"Remove models no longer used (`docker exec ollama-ollama-1 ollama rm NAME`), or set ollama.models_dir to "
            f"a larger disk and run: {evidence.deploy('ollama')}"
        )
    else:
        cure = (
            "Free space: `journalctl --vacuum-size=500M`, `apt-get clean`, `docker image prune`, and models no longer "
            "used; `du -xh --max-depth=2 / | sort -h | tail` shows where it went."
        )
    return Sign([room(disk) for disk in full], cure)


@test("disk-almost-full", "A disk is almost full", severity="medium")
def disk_almost_full(evidence: Evidence) -> Sign | None:
    """The next model, image or day of logs fills it, and a full disk stops the service."""
    low = [disk for disk in evidence.filesystems if is_low(disk) and not is_full(disk)]
    if not low:
        return None
    return Sign(
        [room(disk) for disk in low],
        "Free space (`docker image prune`, models no longer used, `journalctl --vacuum-size=500M`), or set "
        "ollama.models_dir or docker.data_root to a larger disk.",
    )


@test("clock-wrong", "The clock is wrong", severity="medium")
def clock_wrong(evidence: Evidence) -> Sign | None:
    """Certificates, tokens and package signatures are refused, and logs of several hosts cannot be compared."""
    skew = evidence.clock_skew
    if abs(skew) <= MAX_SKEW_SECONDS:
        return None
    return Sign(
        [f"the host's clock is {abs(skew):.0f} seconds {'ahead of' if skew > 0 else 'behind'} this machine's"],
        f"Set base.ntp_servers to servers the host reaches and run: {evidence.deploy('base')}; then "
        "`chronyc makestep` on the host. If the host is right, correct this machine's clock.",
    )


@test("unanswered", "Parts of the host did not answer", severity="medium")
def unanswered(evidence: Evidence) -> Sign | None:
    """What hangs was not examined: it is not known to be well."""
    known = {"nvml", "docker", "api"}  # these have tests of their own
    parts = [part for part in evidence.unanswered if part not in known]
    if not parts:
        return None
    return Sign(
        [f"no answer: {part}" for part in parts],
        "Look for what hangs: `ps -eo pid,stat,wchan:20,args | grep ' D'` lists processes stuck in the kernel.",
    )
