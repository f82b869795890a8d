"""Comparison of package versions as Debian writes them."""

from __future__ import annotations

import re


def upstream_major(version: str) -> int:
    """Return the first number of a Debian version's upstream part: 2 for ``5:2.26.1-4``; 0 where there is none."""
    upstream = version.partition(":")[2] or version
    number = re.match(r"\d+", upstream)
    return int(number.group()) if number else 0
