"""``gpurack images``: the catalogue of images, what an inventory makes of it, and digests from registries."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click
from pyinfra.api.host import Host

from gpurack import catalogue as catalogues
from gpurack.catalogue import CatalogueError, catalogue
from gpurack.images import ImageSource
from gpurack.preflight import inventory_or_exit, report
from gpurack.registry import RegistryError, digest_of
from gpurack.settings import enabled_roles, layers_of, merge


@click.group()
def images() -> None:
    """The catalogue of container images, and where a site gets them from."""


@images.command("show")
@click.argument("inventory", required=False)
def show_command(inventory: str | None) -> None:
    """List the images of images.toml, or those that the hosts of INVENTORY run.

    Exit code 0, or 2 for a wrong catalogue or inventory.
    """
    if inventory is None:
        source = ImageSource()
        _columns([(name, source.reference(name), f.licence, f.source) for name, f in _catalogue_or_exit().items()])
        return
    for host in inventory_or_exit(inventory):
        click.echo(f"{host.name}:")
        _columns(
            [
                (name, source.reference(name), f"role {role}", f"from {source.archive(name) or source.registry(name)}")
                for name, role, source in images_of(host)
            ]
        )


def _columns(rows: list[tuple[str, ...]]) -> None:
    """Print rows as columns; a reference is never broken, so that it can be copied."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())


def images_of(host: Host) -> Iterator[tuple[str, str, ImageSource]]:
    """Yield what a host's enabled roles run: name of the image, role, where it comes from."""
    for role, settings in enabled_roles(host):
        source = getattr(settings, "images", None)
        if isinstance(source, ImageSource):
            for name in settings.image_names:
                yield name, role, source


def _catalogue_or_exit() -> dict[str, catalogues.Image]:
    try:
        return catalogue()
    except CatalogueError as error:
        report([str(error)])
        sys.exit(2)


@images.command("pin")
@click.argument("names", nargs=-1)
@click.option("--inventory", help="Ask this inventory's mirrors, with its credentials: those of its first host.")
@click.option("--write", is_flag=True, help="Put the digests into images.toml.")
def pin_command(names: tuple[str, ...], inventory: str | None, *, write: bool) -> None:
    """Ask the registries which digest the tag of each image of NAMES (default: all) has now.

    Exit code 0; 1 when a registry gives none or another than images.toml has, unless --write puts it there.
    """
    known = _catalogue_or_exit()
    if unknown := set(names) - set(known):
        raise click.UsageError(f"no image {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    source = ImageSource()
    if inventory:
        host = next(iter(inventory_or_exit(inventory)))
        source = ImageSource.model_validate(merge(layers_of(host), "images").values)
    ok = True
    for name in names or known:
        image = known[name]
        try:
            found = digest_of(image, source)
        except RegistryError as error:
            click.secho(f"{name}: {error}", fg="red", err=True)
            ok = False
            continue
        state = "as in images.toml" if found == image.digest else "new" if image.digest is None else "CHANGED"
        click.echo(f"{name} {image.name}:{image.tag} {found} {state}")
        if write and found != image.digest:
            text = catalogues.FILE.read_text(encoding="utf-8")
            catalogues.FILE.write_text(catalogues.with_digest(text, name, found), encoding="utf-8")
        elif state == "CHANGED":
            ok = False
    sys.exit(0 if ok else 1)
