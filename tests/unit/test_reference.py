"""The committed settings reference is the generated one."""

from __future__ import annotations

from pathlib import Path

from gpurack.reference import reference

ROOT = Path(__file__).parents[2]


def test_reference_is_up_to_date() -> None:
    assert (ROOT / "docs/settings.md").read_text() == reference(), "run `make docs`"
