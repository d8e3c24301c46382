"""Loopback ports that stay a test's own, whoever else asks the system for one meanwhile."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest


class HeldPort:
    """A loopback port that nobody else is given until `release`.

    A socket is bound to it and does not listen. So a server can bind beside it (with
    ``SO_REUSEADDR`` or ``SO_REUSEPORT``), once or again after a stop; the system gives the port to
    nobody, neither a listener nor as the near end of a connection; and while no server is there
    connections are refused.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]

    def release(self) -> None:
        """Give the port back."""
        self._socket.close()


@pytest.fixture
def free_port() -> Iterator[Callable[[], int]]:
    """A function that returns a loopback port which stays this test's own until its end."""
    held: list[HeldPort] = []

    def find() -> int:
        held.append(HeldPort())
        return held[-1].number

    yield find
    for port in held:
        port.release()
