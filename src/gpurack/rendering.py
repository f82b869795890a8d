"""Rendering templates the way ``files.template`` does, with blocks that leave no empty lines behind."""

from __future__ import annotations

from typing import Any

from pyinfra.api.util import get_template

from gpurack.secrets import Secret


def block_options() -> dict[str, Any]:
    """Return ``jinja_env_kwargs``: blocks leave no empty lines, and no secret's mask is printed."""
    return {"trim_blocks": True, "lstrip_blocks": True, "finalize": _no_masked_secret}


def _no_masked_secret(value: Any) -> Any:
    """Refuse to write a secret's asterisks where its value was meant: they would be everybody's password."""
    if isinstance(value, Secret):
        raise TypeError("a template prints a secret: write secret.reveal(), and put the file with secretfile.put")
    return value


def render(template: str, **data: Any) -> str:
    """Return the text of a template.

    Args:
        template: path below the repository's root.
        data: names the template uses; an undefined one is an error.
    """
    return str(get_template(template, block_options()).render(data))
