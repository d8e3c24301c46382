"""Real Redis or Valkey servers that the library starts itself, for a laptop and for tests.

`EmbeddedServer` is a server that belongs to the caller and ends with it. `ensure_running` starts
or finds the one server that all processes of a user share, and leaves it running. A data folder
has one server at a time; `server_folder` says how that is kept.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from llmspell_dist.errors import StoreUnavailableError
from llmspell_dist.redis.server_folder import (
    ServerStatus,
    binary_version,
    default_folder,
    find_binary,
    is_free,
    is_held,
    ready,
    resolve,
    server_pid,
    socket_path,
    status,
    tidy,
    until,
    using,
)
from llmspell_dist.redis.server_process import EmbeddedServer, TLSFiles, launch

__all__ = [
    "EmbeddedServer",
    "ServerStatus",
    "TLSFiles",
    "binary_version",
    "default_folder",
    "ensure_running",
    "find_binary",
    "socket_path",
    "status",
    "stop",
]


def ensure_running(
    folder: str | os.PathLike[str] | None = None,
    *,
    binary: str | os.PathLike[str] | None = None,
    timeout_s: float = 60.0,
) -> ServerStatus:
    """Return the shared server of `folder`, started if it was not up.

    It outlives the caller; any number of processes may ask at once and get the same one.
    Raises `StoreUnavailableError` if the folder cannot be used, or with the end of the server's log
    if it does not come up.
    """
    path = resolve(folder)
    with using(path):
        up = path.is_dir() and ready(socket_path(path), None)
    if not up:
        launch(EmbeddedServer(folder=path, binary=binary, start_timeout_s=timeout_s), detached=True)
    return status(path)


def stop(folder: str | os.PathLike[str] | None = None, *, timeout_s: float = 15.0) -> bool:
    """End the server of `folder` cleanly; return whether one was running.

    Only a process that holds the folder's lock and is known as its server is ever signalled;
    otherwise `StoreUnavailableError`. A server that does not end in time is killed.
    """
    path = resolve(folder)
    with using(path):
        return _stop(path, timeout_s)


def _stop(path: Path, timeout_s: float) -> bool:
    if not is_held(path):
        return False
    where = socket_path(path)
    pid = server_pid(path, where)
    if pid is None:
        if is_free(path):
            return True  # it ended meanwhile
        raise StoreUnavailableError(str(path), "cannot tell which process is its server")
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, how)
        if until(lambda: is_free(path), timeout_s):
            tidy(path, where)
            return True
    raise StoreUnavailableError(str(path), f"process {pid} does not end")
