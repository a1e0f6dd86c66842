"""How connections get from the launcher to an API server, where that goes wrong."""

from __future__ import annotations

import socket

from frontend.connections import CONNECTION, LauncherLink, ServerLink, make_pair


def test_a_connection_for_which_no_descriptor_was_left_is_closed_not_forgotten() -> None:
    """An API server at its limit of open files gets the packet without the descriptor."""
    ours, theirs = make_pair()
    client, connection = socket.socketpair()
    link = ServerLink(0, ours)
    link.open_connections.add(7)
    link.not_taken[7] = connection
    ours.send(CONNECTION + (7).to_bytes(8, "little"))
    server = LauncherLink(theirs, lambda *_: None, lambda: None, lambda: None)
    server.receive()
    link.receive()
    assert not link.open_connections and not link.not_taken
    client.settimeout(10)
    assert client.recv(1) == b""
    for end in (ours, theirs, client):
        end.close()
