"""The priority of a command that runs in the background of others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["giving_way"]


@contextmanager
def giving_way(nice: int) -> Iterator[None]:
    """Let other programs of this machine go first inside the block, as ``nice -n`` does.

    Nothing happens where the system has no such thing, or forbids it. On Linux it counts for the
    thread that enters and for those that it starts inside.
    """
    if not nice or not hasattr(os, "setpriority"):
        yield
        return
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, before + nice)  # the system takes the highest for more
    try:
        yield
    finally:
        with suppress(OSError):  # going back is for root
            os.setpriority(os.PRIO_PROCESS, 0, before)
