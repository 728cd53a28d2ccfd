"""Ports for the servers of the tests."""

from __future__ import annotations

import itertools
import os
import socket

#: Below those that systems hand out by themselves (32768 on Linux), so that no connection of another process takes one between its
#: choice and the server's start. Processes begin far apart, and none gives a port twice.
_FIRST, _COUNT = 12_000, 20_000
_TURN = itertools.count(os.getpid() * 997)


def free_port() -> int:
    """A port of this machine on which nothing listens."""
    for number in itertools.islice(_TURN, _COUNT):
        port = _FIRST + number % _COUNT
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("every port is taken")
