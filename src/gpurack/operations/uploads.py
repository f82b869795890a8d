"""Where uploads wait on a host until they are put in place."""

from __future__ import annotations

UPLOADS = "/var/lib/gpurack/upload"
"""Only the login user and root can write there, unlike /tmp, which is often in memory and where names can be taken."""
