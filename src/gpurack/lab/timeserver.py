"""``python -m gpurack.lab.timeserver``: a double of an NTP server, which passes this machine's own clock on.

Virtual machines synchronise their clock, and many networks that tests run in let no NTP out. What it cannot show is
that a real pool is reached. Only for the network namespace of a test: it answers everybody, on every address.
"""

from __future__ import annotations

import math
import socket
import struct
import time

PORT = 123
EPOCH_OFFSET_SECONDS = 2_208_988_800
"""NTP counts from 1900, Unix from 1970."""

_PACKET = struct.Struct("!BBbb11I")
_SERVER = 4
_CLIENT = 3


def timestamp(seconds: float) -> tuple[int, int]:
    """Return a Unix time as NTP's seconds and fractions of 2**-32 seconds."""
    whole = math.floor(seconds)
    return (whole + EPOCH_OFFSET_SECONDS) % 2**32, int((seconds - whole) * 2**32)


def answer(request: bytes, received: float, now: float) -> bytes | None:
    """Return the answer to a client's packet, None if it is none.

    Args:
        request: the packet.
        received: Unix time at which it came.
        now: Unix time at which the answer is sent.
    """
    if len(request) < _PACKET.size:
        return None
    first, _, poll, _, *words = _PACKET.unpack_from(request)
    version, mode = first >> 3 & 7, first & 7
    if mode != _CLIENT:
        return None
    dispersion = int(0.001 * 2**16)
    identifier = int.from_bytes(b"LOCL")
    return _PACKET.pack(
        *(version << 3 | _SERVER, 1, poll, -20, 0, dispersion, identifier),
        *timestamp(received - 1),
        *words[-2:],  # when the client sent it, by the client's clock
        *timestamp(received),
        *timestamp(now),
    )


def main() -> None:
    """Answer until the process is ended; a line is printed once it listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("", PORT))
        print("ready", flush=True)
        while True:
            request, client = server.recvfrom(512)
            if reply := answer(request, time.time(), time.time()):
                server.sendto(reply, client)


if __name__ == "__main__":
    main()
