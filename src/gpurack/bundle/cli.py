"""``gpurack bundle``: everything a site without internet needs, made here, checked there."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from gpurack.bundle import create as making
from gpurack.bundle import manifest, signing
from gpurack.bundle.manifest import BundleError
from gpurack.bundle.packages import RELEASES
from gpurack.preflight import inventory_or_exit


@click.group()
def bundle() -> None:
    """Offline bundles: everything a site needs, in one directory that is carried to it."""


@bundle.command("create")
@click.argument("inventory")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Directory of the bundle.")
@click.option(
    "--release",
    "releases",
    multiple=True,
    type=click.Choice(RELEASES),
    help="Only for hosts of this release; repeatable.",
)
@click.option("--cache", type=click.Path(path_type=Path), help="Keep downloaded packages here for the next bundle.")
@click.option("--no-wheels", is_flag=True, help="Leave out gpurack itself and the Python packages it needs.")
@click.option("--tar", is_flag=True, help="Write OUTPUT.tar too, the manifest first.")
def create(
    inventory: str, output: Path, releases: tuple[str, ...], cache: Path | None, *, no_wheels: bool, tar: bool
) -> None:
    """Gather what the hosts of INVENTORY need, on a machine with internet; run again to go on after a cut.

    Exit code 0; 1 when something cannot be had, 2 for a wrong inventory.
    """
    try:
        fingerprint = making.create(
            inventory_or_exit(inventory),
            inventory,
            output,
            releases=releases or RELEASES,
            cache=cache,
            wheels=not no_wheels,
            say=click.echo,
        )
        if tar:
            making.pack(output, output.with_name(f"{output.name}.tar"))
    except BundleError as error:
        click.secho(str(error), fg="red", err=True)
        sys.exit(1)
    click.echo(f"signed with key {fingerprint}; note it down apart from the bundle, and set")
    click.echo(f'bundle = {{"path": "{output}", "fingerprint": "{fingerprint}"}}')


@bundle.command("verify")
@click.argument("path", type=click.Path(path_type=Path, exists=True))
@click.option("--fingerprint", help="The key it must be signed with.")
def verify(path: Path, fingerprint: str | None) -> None:
    """Check every file of the bundle in PATH, a directory or a tar file, against its signed manifest.

    Exit code 0 when all is as it was made; 1 otherwise, with every file that was tampered with, is missing or extra.
    """
    try:
        with TemporaryDirectory() as folder:
            head = path
            if path.is_file():
                head = Path(folder)
                manifest.unpack_head(path, head)
            key = signing.check(head, fingerprint)
            listed = manifest.read(head)
        found = manifest.compare_tar(path, listed) if path.is_file() else manifest.compare(path, listed)
    except BundleError as error:
        click.secho(str(error), fg="red", err=True)
        sys.exit(1)
    for line in found.lines():
        click.secho(line, fg="red", err=True)
    if not found.ok:
        sys.exit(1)
    made = f"made {listed.created} for {listed.inventory}, releases {', '.join(listed.releases)}"
    click.echo(f"{len(listed.files)} files as they were made; {made}; signed with key {key}")
    if fingerprint is None:
        click.echo("Compare the key with the one that was noted down when the bundle was made.")
