"""OpenPGP signatures of bundles: a key made for each bundle, whose secret half is gone once the bundle is made."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from gpurack.bundle.manifest import KEY, MANIFEST, SIGNATURE, BundleError

USER = "gpurack bundle"


class Signer:
    """Signs with a fresh key; see :func:`signer`."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._gpg("--passphrase", "", "--quick-generate-key", USER, "ed25519", "sign", "never")
        listing = self._gpg("--with-colons", "--list-keys").decode()
        found = re.search(r"^fpr:+([0-9A-F]{40}):", listing, re.MULTILINE)
        assert found is not None  # noqa: S101 - gpg has just made the key
        self.fingerprint = found[1]

    def export(self, path: Path) -> None:
        """Write the public key where apt and gpgv read it."""
        path.write_bytes(self._gpg("--export"))

    def detached(self, path: Path, signature: Path) -> None:
        """Write a signature of a file beside it."""
        signature.unlink(missing_ok=True)
        self._gpg("--detach-sign", "--output", str(signature), str(path))

    def inline(self, path: Path, signed: Path) -> None:
        """Write a file's text with its signature around it, as apt's InRelease."""
        signed.unlink(missing_ok=True)
        self._gpg("--clearsign", "--output", str(signed), str(path))

    def _gpg(self, *arguments: str) -> bytes:
        command = ["gpg", "--homedir", str(self._home), "--batch", "--yes", "--quiet", "--pinentry-mode", "loopback"]
        return run([*command, *arguments], "gnupg")


@contextmanager
def signer() -> Iterator[Signer]:
    """Hold a key that is made now, and deleted in the end.

    Raises:
        BundleError: gpg is not installed, or failed.
    """
    with TemporaryDirectory(prefix="gpurack-key-") as home:  # mode 700, as gpg wants it
        try:
            yield Signer(Path(home))
        finally:
            subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], capture_output=True, check=False)


def check(bundle: Path, fingerprint: str | None) -> str:
    """Check the signature of a bundle's manifest; return the fingerprint of the key that made it.

    Args:
        bundle: the directory.
        fingerprint: the key must be this one; None: any key will do, and nothing is said of who made the bundle.

    Raises:
        BundleError: no signature, a wrong one, or by another key.
    """
    for name in (KEY, SIGNATURE, MANIFEST):
        if not (bundle / name).is_file():
            raise BundleError(f"{bundle / name} is missing")
    try:
        done = subprocess.run(
            [
                *("gpgv", "--status-fd", "1", "--keyring", str((bundle / KEY).absolute())),
                *(str(bundle / SIGNATURE), str(bundle / MANIFEST)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise BundleError("gpgv is not installed: apt-get install gpgv") from None
    found = re.search(r"^\[GNUPG:\] VALIDSIG ([0-9A-F]{40}) ", done.stdout, re.MULTILINE)
    if done.returncode or found is None:
        raise BundleError(f"{bundle / MANIFEST} is not what was signed: the bundle was tampered with, or damaged")
    if fingerprint and found[1] != fingerprint.replace(" ", "").upper():
        raise BundleError(f"{bundle} is signed by key {found[1]}, not by {fingerprint}: it is another bundle")
    return found[1]


def run(command: list[str], package: str, **options: str | Path) -> bytes:
    """Run a program and return what it prints.

    Raises:
        BundleError: it is not installed, or failed; the message holds its last lines.
    """
    try:
        done = subprocess.run(command, capture_output=True, check=False, cwd=options.get("cwd"))
    except FileNotFoundError:
        raise BundleError(f"{command[0]} is not installed: apt-get install {package}") from None
    if done.returncode:
        last = "\n".join(done.stderr.decode(errors="replace").splitlines()[-5:])
        raise BundleError(f"{command[0]} failed ({done.returncode}):\n{last}")
    return done.stdout
