"""A server process: its configuration, its start, and the object that owns one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from llmspell_dist.errors import InvalidArgumentError, StoreUnavailableError, mask_secrets
from llmspell_dist.redis.server_folder import (
    ServerStatus,
    find_binary,
    ready,
    resolve,
    server_pid,
    socket_path,
    status,
    tidy,
    try_lock,
    until,
    unusable,
    using,
)

_LOG_TAIL = 400  # characters


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """The files of a TLS server: certificate, its key, and the authority that signed it."""

    cert: Path
    key: Path
    ca: Path


@dataclass(kw_only=True)
class EmbeddedServer:
    """A Redis or Valkey server of one's own, up between `start` and `stop`.

    Always on a unix socket; with `port` also on loopback TCP, with `tls` on TLS instead of plain
    TCP. `config` adds server directives; a tuple as value stands for several words. Every
    acknowledged write is on disk unless `fsync` says ``everysec`` or ``no``. The password never
    appears in a command line, a file, a log or the `repr`.
    """

    folder: str | os.PathLike[str] | None = None
    binary: str | os.PathLike[str] | None = None
    port: int | None = None
    tls: TLSFiles | None = None
    password: str | None = field(default=None, repr=False)
    fsync: str = "always"
    config: Mapping[str, str | int | tuple[str, ...]] = field(default_factory=dict, repr=False)
    start_timeout_s: float = 60.0
    stop_timeout_s: float = 15.0

    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _starter: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.fsync not in {"always", "everysec", "no"}:
            raise InvalidArgumentError("fsync", self.fsync, "must be always, everysec or no")
        if self.port is not None and not 1 <= self.port <= 65535:
            raise InvalidArgumentError("port", self.port, "must be between 1 and 65535")
        if self.tls is not None and self.port is None:
            raise InvalidArgumentError("port", None, "must be given with tls")
        self.folder = resolve(self.folder)

    @property
    def path(self) -> Path:
        """The data folder, absolute."""
        return Path(self.folder or "")

    @property
    def socket(self) -> Path:
        """Where the server listens for this machine."""
        return socket_path(self.path)

    @property
    def url(self) -> str:
        """The URL for `llmspell_dist.connect`; it holds the password if there is one."""
        secret = f":{_percent(self.password)}@" if self.password else ""
        if self.tls is not None:
            return f"rediss://{secret}localhost:{self.port}/0?ssl_ca_certs={self.tls.ca}"
        if self.port is not None:
            return f"redis://{secret}127.0.0.1:{self.port}/0"
        return f"unix://{secret}{self.socket}?db=0"

    @property
    def pid(self) -> int | None:
        """The server's process id, None if it is not up."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def running(self) -> bool:
        """Whether the server that `start` started is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def version(self) -> str | None:
        """The version of the running server, None if it does not answer."""
        return self.status().version

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self.path / "server.log"

    def status(self) -> ServerStatus:
        """Return what is known about the server of this folder."""
        return status(self.path, password=self.password)

    def start(self) -> Self:
        """Start the server and return when it serves.

        Raises `StoreUnavailableError` if the folder has a server already, or with the last lines
        of its log if it does not come up.
        """
        if self.running:
            return self
        self._process = launch(self, detached=False)
        self._starter = os.getpid()
        return self

    def stop(self) -> None:
        """End the server cleanly: what it acknowledged is in its files. Does nothing if it is down.

        A server that does not end in time is killed. A forked child does not end its parent's.
        """
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server as a crash would."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        process = self._process
        if process is None or self._starter != os.getpid():
            return
        process.send_signal(how)
        try:
            process.wait(self.stop_timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(self.stop_timeout_s)
        self._process = None
        tidy(self.path, self.socket)

    def __enter__(self) -> Self:
        """Start the server."""
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the server."""
        self.stop()


def _percent(text: str) -> str:
    from urllib.parse import quote  # noqa: PLC0415  # rarely needed, and not light

    return quote(text, safe="")


def _quoted(word: str | int) -> str:
    """Return `word` as one argument of a server's configuration file."""
    safe = "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}"
        for byte in str(word).encode()
    )
    return f'"{safe}"'


def _directives(server: EmbeddedServer, *, detached: bool) -> str:
    lines: dict[str, str | int | tuple[str, ...]] = {
        "port": 0 if server.tls else server.port or 0,
        "bind": "127.0.0.1",
        "unixsocket": str(server.socket),
        "unixsocketperm": "700",
        "dir": str(server.path),
        "pidfile": str(server.path / "server.pid"),
        "logfile": str(server.log),
        "daemonize": "yes" if detached else "no",
        "appendonly": "yes",
        "appendfsync": server.fsync,
        "save": "",
        "maxmemory-policy": "noeviction",
    }
    if server.tls is not None:
        lines |= {
            "tls-port": server.port or 0,
            "tls-cert-file": str(server.tls.cert),
            "tls-key-file": str(server.tls.key),
            "tls-ca-cert-file": str(server.tls.ca),
            "tls-auth-clients": "no",
        }
    if server.password is not None:
        lines["requirepass"] = server.password
    lines |= server.config
    text = []
    for name, value in lines.items():
        words = value if isinstance(value, tuple) else (value,)
        text.append(" ".join([name, *map(_quoted, words)]))
    return "\n".join(text) + "\n"


# --- starting and stopping ------------------------------------------------------------------------


def launch(server: EmbeddedServer, *, detached: bool) -> subprocess.Popen[bytes] | None:
    """Start a process for `server` and wait until it serves.

    Returns None if `detached` and another process was faster; the folder's server is up then.
    """
    with using(server.path):
        return _launch(server, detached=detached)


def _launch(server: EmbeddedServer, *, detached: bool) -> subprocess.Popen[bytes] | None:
    folder, path = server.path, server.socket
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def lock_or_server() -> int | None:
        taken = try_lock(folder)
        return -1 if taken is None and ready(path, server.password) else taken

    lock = until(lock_or_server, server.start_timeout_s)
    if lock == -1 and detached:
        return None
    if lock is None or lock == -1:
        raise StoreUnavailableError(str(folder), "another server holds this data folder")
    try:
        if ready(path, server.password):
            raise StoreUnavailableError(str(path), "a foreign server listens on this socket")
        tidy(folder, path)
        return _spawn(server, lock, detached=detached)
    finally:
        os.close(lock)  # the server has its own copy, and with it the lock


def _spawn(server: EmbeddedServer, lock: int, *, detached: bool) -> subprocess.Popen[bytes]:
    binary = _binary_of(server)
    with server.log.open("ab") as log:
        start_of_log = log.tell()
        try:
            process = subprocess.Popen(
                # Its configuration comes through the pipe: no secret in a command line.
                [binary, "-"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=server.path,
                pass_fds=[lock],
                start_new_session=True,  # the terminal's Ctrl-C is for the caller
            )
        except OSError as error:
            raise unusable(str(binary), f"cannot be run: {error.strerror}") from None
    assert process.stdin is not None  # noqa: S101  # it was asked for above
    with contextlib.suppress(BrokenPipeError):  # it died at once; the log says why
        process.stdin.write(_directives(server, detached=detached).encode())
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()

    def serves() -> bool | None:
        # A detached server's first process ends with 0 as soon as the real one is forked off.
        if process.poll() is not None and not (detached and process.returncode == 0):
            return False
        return ready(server.socket, server.password)

    up = False
    try:
        up = until(serves, server.start_timeout_s) or False
    finally:
        if not up:  # after Ctrl-C too: nothing half-started stays behind
            _abandon(server, process, detached=detached)
    if not up:
        raise StoreUnavailableError(f"{binary} in {server.path}", _log_tail(server, start_of_log))
    if detached:
        process.wait()
    (server.path / "server.binary").write_text(os.fspath(binary))
    return process


def _abandon(server: EmbeddedServer, process: subprocess.Popen[bytes], *, detached: bool) -> None:
    pid = server_pid(server.path, server.socket, server.password) if detached else None
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _binary_of(server: EmbeddedServer) -> Path:
    """Return the binary for a folder: as asked, else the one that wrote its data, else any.

    A folder keeps to its server, because an older one may not read what a newer one wrote.
    """
    if server.binary is None:
        try:
            last = Path((server.path / "server.binary").read_text())
        except OSError:
            pass
        else:
            if os.access(last, os.X_OK):
                return last
    return find_binary(server.binary)


def _log_tail(server: EmbeddedServer, offset: int) -> str:
    with server.log.open("rb") as log:
        log.seek(offset)
        lines = log.read().decode("utf-8", "replace").splitlines()
    tail = " | ".join(line.strip() for line in lines if line.strip()) or "it wrote no log"
    # The reason stands at the end, and the beginning is a banner.
    shown = mask_secrets(tail[-_LOG_TAIL:], [server.password or ""])
    return f"did not start: {shown}"
