"""How many connections a sidecar keeps open: fewer than the system gives it files.

Without room for one more file a process cannot accept a probe, reach Redis again or read a token
file, and is restarted. So connections have a limit of their own, and what comes above it waits in
the system's queue.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import Final, NamedTuple

__all__ = ["PROBES", "Room", "raise_file_limit", "room_for"]

logger = logging.getLogger("llmspell_dist.sidecar")

PROBES: Final = 64
"""Connections to the port for probes."""
_KEPT_BACK: Final = 192
"""Files for Redis, backups, logs and probes."""
_WANTED: Final = 32_768
_LEAST: Final = 16
_PLENTY: Final = 1 << 20
"""What is assumed where nobody can tell."""


class Room(NamedTuple):
    """How many connections may be open."""

    api: int
    unix: int


def raise_file_limit() -> None:
    """Let this process have as many files as its system allows, at most some 32,000.

    Systems often give 1,024 unless they are asked.
    """
    with suppress(ImportError, OSError, ValueError):
        import resource  # noqa: PLC0415 - Windows has none

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _WANTED if hard == resource.RLIM_INFINITY else min(hard, _WANTED)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def room_for(connections: int, *, streams: int = 0) -> Room:
    """Return how many of `connections` fit into this process's files; the log says if few do."""
    files = _files()
    room = max(files - _KEPT_BACK, 0)
    api = max(min(connections, room * 3 // 4), _LEAST)
    unix = max(min(connections, room // 4), _LEAST)
    if api < min(connections, streams):
        logger.warning(
            "only %d connections can be open: this process may have %d files (ulimit -n)",
            *(api, files),
        )
    return Room(api, unix)


def _files() -> int:
    try:
        found = os.sysconf("SC_OPEN_MAX")
    except (AttributeError, OSError, ValueError):
        return _PLENTY
    return found if found > 0 else _PLENTY
