"""The transport pyinfra's connections run over."""

from __future__ import annotations

import socket

from gpurack.ssh import LOST_AFTER_SECONDS, transport


def test_small_packets_are_sent_at_once_and_a_dead_peer_is_noticed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        connection = transport(client)
        try:
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == LOST_AFTER_SECONDS * 1000
        finally:
            connection.close()
            client.close()
