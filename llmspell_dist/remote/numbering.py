"""Numbers the writes of a client, so that a sidecar can tell a repetition from a new one."""

from __future__ import annotations

import os
from collections import OrderedDict
from itertools import count
from time import monotonic
from typing import Final

__all__ = ["Numbering"]

UNKNOWN_KEPT_S: Final = 60.0
"""How long the sidecar is asked to remember a write whose outcome this client does not know."""


class Numbering:
    """The writes of one client that are under way, and those whose outcome it does not know."""

    def __init__(self) -> None:
        self.instance = ""
        """The start of the sidecar that answered last, and what it knew then."""
        self.new_client()

    def new_client(self) -> None:
        """Be another client: at construction, and in a forked child."""
        self.client = os.urandom(8).hex()
        self._numbers = count(1)
        self._next = 1
        self._open: OrderedDict[int, float] = OrderedDict()
        """By number: until when it must be remembered; 0 while it is under way."""

    def begin(self) -> int:
        """Return the number of a new write."""
        number = next(self._numbers)
        self._next = number + 1
        self._open[number] = 0.0
        return number

    def resume(self, number: int) -> None:
        """Note that a write is sent again, so that it is not forgotten before it is answered."""
        self._open[number] = 0.0
        self._open.move_to_end(number, last=False)

    def end(self, number: int, *, known: bool) -> None:
        """Note that a write was answered, or that it was given up."""
        if known:
            self._open.pop(number, None)
        elif number in self._open:
            self._open[number] = monotonic() + UNKNOWN_KEPT_S

    def stamp(self, client: str, number: int) -> str:
        """Return what says which write of which client it is, and which ones are settled."""
        if client != self.client:
            return f"{client}:{number}:0"  # what is settled of the other one is not known here
        while self._open:
            first, until = next(iter(self._open.items()))
            if not until or until > monotonic() or first == number:
                return f"{self.client}:{number}:{first}"
            del self._open[first]
        return f"{self.client}:{number}:{self._next}"
