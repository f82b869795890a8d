"""Rendering templates the way ``files.template`` does, with blocks that leave no empty lines behind."""

from __future__ import annotations

from typing import Any

from pyinfra.api.util import get_template


def block_options() -> dict[str, Any]:
    """Return ``jinja_env_kwargs``: a line that holds only a ``{% block %}`` does not appear in the result."""
    return {"trim_blocks": True, "lstrip_blocks": True}


def render(template: str, **data: Any) -> str:
    """Return the text of a template.

    Args:
        template: path below the repository's root.
        data: names the template uses; an undefined one is an error.
    """
    return str(get_template(template, block_options()).render(data))
