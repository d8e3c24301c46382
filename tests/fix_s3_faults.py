"""A fault proxy in front of an S3 server: it knows the calls of S3 and disturbs the chosen ones.

::

    faults.fail("put", status=503, times=3)  # then all is well again
    faults.deny("list")  # until faults.clear()
    faults.full()
    faults.lose("put")  # the server does it, the answer is cut off
    target = faults.place.open()
    assert faults.count("put") == 4

Kinds of calls are ``put`` (parts of uploads and all else of them too), ``get``, ``head``, ``list``,
``delete`` and ``any``. Faults strike at a call or a byte that is counted, never after a time. The
first armed that fits strikes; with `match` only calls whose path and query contain that text fit,
and `after` lets so many pass before.
"""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import pytest
from fix_s3 import Place

KINDS: Final = ("put", "get", "head", "list", "delete")
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST
_BLOCK: Final = 1 << 16
_CODES: Final = {
    403: "AccessDenied",
    500: "InternalError",
    503: "SlowDown",
    507: "InsufficientStorage",
}
_HOP: Final = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


def kind_of(method: str, path: str) -> str:
    """Return which kind of call of S3 a request is."""
    parts = urlsplit(path)
    query = parse_qs(parts.query, keep_blank_values=True)
    if method == "HEAD":
        return "head"
    if method == "POST":
        return "delete" if "delete" in query else "put"
    if method == "GET":
        in_bucket = parts.path.strip("/").count("/") > 0
        return "get" if in_bucket and "uploadId" not in query else "list"
    return "delete" if method == "DELETE" else "put"


@dataclass
class _Rule:
    kind: str
    match: str
    after: int
    times: int | None
    """How often it strikes; None: until `clear`."""
    status: int = 0
    """What to answer instead of passing the call on; 0: it is passed on."""
    code: str = ""
    lose: bool = False
    """Whether the answer is cut off."""
    upload: int | None = None
    """After how many bytes of the request's body to cut."""
    download: int | None = None
    """After how many bytes of the answer's body to cut."""
    flip: bool = False
    """Whether a bit of the request's body is turned over."""
    gate: threading.Event | None = None
    """What the call waits for."""
    inside: tuple[tuple[str, str], ...] = ()
    """The keys that a batch of deletes fails for, each with its code."""
    before: Callable[[], object] | None = None
    """What is done before the call is passed on."""


class S3Faults:
    """Listens on loopback and passes every call on to an S3 server until a fault is armed."""

    def __init__(self, place: Place) -> None:
        assert place.service is not None
        upstream = urlsplit(place.service.endpoint)
        assert upstream.hostname is not None
        self.upstream = (upstream.hostname, upstream.port or 80)
        self.calls: list[tuple[str, str]] = []
        """Kind and path of each call, also of those that a fault struck."""
        self.struck: Counter[str] = Counter()
        """How many calls of each kind a fault has struck."""
        self.waiting = threading.Semaphore(0)
        """Released once by each call that `hold` holds."""
        self._rules: list[_Rule] = []
        self._down = False
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._server = _Server(self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="proxy of s3", daemon=True
        )
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.place = place.through(self.endpoint)
        """The place as reached through the proxy."""

    # Faults. Each is in force when the call returns.

    def fail(
        self,
        kind: str,
        *,
        status: int = 500,
        code: str = "",
        times: int | None = 1,
        after: int = 0,
        match: str = "",
    ) -> None:
        """Answer calls with an error, and do not pass them on. ``times=None``: until `clear`."""
        code = code or _CODES.get(status, "Error")
        self._arm(_Rule(kind, match, after, times, status=status, code=code))

    def deny(self, kind: str, *, match: str = "", after: int = 0) -> None:
        """Refuse a kind of call: 403 AccessDenied, until `clear`."""
        self.fail(kind, status=403, times=None, match=match, after=after)

    def full(self, *, code: str = "", after: int = 0) -> None:
        """Be full, until `clear`: 507, or 403 with a `code` such as ``QuotaExceeded``."""
        self.fail("put", status=403 if code else 507, code=code, times=None, after=after)

    def throttle(self, times: int = 3, kind: str = "any") -> None:
        """Answer 503 SlowDown so many times."""
        self.fail(kind, status=503, times=times)

    def lose(self, kind: str, *, times: int | None = 1, after: int = 0, match: str = "") -> None:
        """Let the server do it, and cut the connection instead of answering."""
        self._arm(_Rule(kind, match, after, times, lose=True))

    def cut_upload(
        self, bytes_: int = 0, *, times: int | None = 1, after: int = 0, match: str = ""
    ) -> None:
        """Cut the connection after so many bytes of a body have come; the server gets nothing."""
        self._arm(_Rule("put", match, after, times, upload=bytes_))

    def cut_download(
        self, bytes_: int, *, times: int | None = 1, after: int = 0, match: str = ""
    ) -> None:
        """Cut the connection after so many bytes of an object have gone."""
        self._arm(_Rule("get", match, after, times, download=bytes_))

    def flip(self, *, times: int | None = 1, after: int = 0, match: str = "") -> None:
        """Turn a bit over in what is put."""
        self._arm(_Rule("put", match, after, times, flip=True))

    def hold(
        self, kind: str, *, times: int | None = 1, after: int = 0, match: str = ""
    ) -> threading.Event:
        """Hold calls back until the event that is returned is set, then pass them on: slow.

        `waiting` tells when a call has come.
        """
        gate = threading.Event()
        self._arm(_Rule(kind, match, after, times, gate=gate))
        return gate

    def before(
        self,
        kind: str,
        act: Callable[[], object],
        *,
        times: int | None = 1,
        after: int = 0,
        match: str = "",
    ) -> None:
        """Do something, in the proxy's thread, before a call is passed on: kill, change, count."""
        self._arm(_Rule(kind, match, after, times, before=act))

    def keep(self, *names: tuple[str, str], times: int | None = 1) -> None:
        """Answer a batch of deletes with errors for these (name of the object, code).

        The batch is not passed on, so that the others stay too.
        """
        prefix = urlsplit(self.place.base).path.strip("/")
        inside = tuple((f"{prefix}/{name}", code) for name, code in names)
        self._arm(_Rule("delete", "", 0, times, status=200, inside=inside))

    def down(self) -> None:
        """Cut every connection and every new one, until `up`."""
        self._down = True
        with self._lock:
            sockets = tuple(self._sockets)
        for conn in sockets:
            with suppress(OSError):
                conn.shutdown(socket.SHUT_RDWR)

    def up(self) -> None:
        """Serve again."""
        self._down = False

    def clear(self) -> None:
        """Take all faults away, and let go what is held."""
        with self._lock:
            rules, self._rules = self._rules, []
        for rule in rules:
            if rule.gate is not None:
                rule.gate.set()

    def count(self, kind: str, match: str = "") -> int:
        """Return how many calls of a kind have come."""
        with self._lock:
            return sum(k == kind and match in path for k, path in self.calls)

    def forget(self) -> None:
        """Begin to count anew."""
        with self._lock:
            self.calls.clear()
            self.struck.clear()

    def close(self) -> None:
        """End the proxy with all its connections."""
        self.clear()
        self.down()
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    # In the threads of the proxy.

    def _arm(self, rule: _Rule) -> None:
        assert rule.kind in {*KINDS, "any"}, rule.kind
        with self._lock:
            self._rules.append(rule)

    def strikes(self, kind: str, path: str) -> _Rule | None:
        """Count a call, and return what is to happen to it."""
        with self._lock:
            self.calls.append((kind, path))
            for rule in self._rules:
                if rule.kind not in {kind, "any"} or rule.match not in path:
                    continue
                if rule.after:
                    rule.after -= 1
                    continue
                if rule.times is not None:
                    rule.times -= 1
                    if not rule.times:
                        self._rules.remove(rule)
                self.struck[kind] += 1
                return rule
        return None

    def connected(self, conn: socket.socket) -> bool:
        """Take note of a connection; False if it is to be cut."""
        with self._lock:
            self._sockets.add(conn)
        return not self._down

    def disconnected(self, conn: socket.socket) -> None:
        """Forget a connection."""
        with self._lock:
            self._sockets.discard(conn)


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # server_close() waits for them
    block_on_close = True
    request_queue_size = 128

    def __init__(self, faults: S3Faults) -> None:
        self.faults = faults
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that go away are what this is for."""


class _CutError(Exception):
    """The connection ends here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        threading.current_thread().name = "proxy of s3, connection"
        self._upstream: http.client.HTTPConnection | None = None

    def handle(self) -> None:
        faults = self.server.faults
        try:
            if faults.connected(self.connection):
                super().handle()
        except (_CutError, OSError):
            with suppress(OSError):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        finally:
            faults.disconnected(self.connection)
            if self._upstream is not None:
                self._upstream.close()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""

    def _serve(self) -> None:
        faults = self.server.faults
        kind = kind_of(self.command, self.path)
        rule = faults.strikes(kind, self.path)
        body = self._read_body(rule)
        if rule is not None and rule.gate is not None:
            faults.waiting.release()
            rule.gate.wait(60)
        if rule is not None and rule.before is not None:
            rule.before()
        if rule is not None and rule.status:
            self._answer(rule)
            return
        if rule is not None and rule.flip and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        response, data = self._pass_on(body)
        if rule is not None and rule.lose:
            raise _CutError
        self._relay(response, data, rule.download if rule is not None else None)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

    def _read_body(self, rule: _Rule | None) -> bytes:
        length = int(self.headers.get("Content-Length", 0))
        if rule is not None and rule.upload is not None:
            self.rfile.read(min(rule.upload, length))
            raise _CutError
        return self.rfile.read(length)

    def _pass_on(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        for fresh in (False, True):
            if self._upstream is None:
                self._upstream = http.client.HTTPConnection(
                    *self.server.faults.upstream, timeout=60
                )
            try:
                # As it came, the host too: it is signed.
                self._upstream.putrequest(
                    self.command, self.path, skip_host=True, skip_accept_encoding=True
                )
                for name, value in self.headers.items():
                    if name.lower() not in {"expect", "connection"}:
                        self._upstream.putheader(name, value)
                self._upstream.endheaders(body)
                response = self._upstream.getresponse()
                return response, response.read()
            except (OSError, http.client.HTTPException):  # it was kept open for too long
                self._upstream.close()
                self._upstream = None
                if fresh:
                    raise
        raise AssertionError

    def _relay(self, response: http.client.HTTPResponse, data: bytes, limit: int | None) -> None:
        self.send_response(response.status, response.reason)
        length = len(data)
        if self.command == "HEAD":
            length = int(response.headers.get("Content-Length", 0))
        for name, value in response.headers.items():
            if name.lower() not in _HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(data if limit is None else data[:limit])
        if limit is not None:
            self.wfile.flush()
            # Not with RST, which would take back what is on its way.
            self.close_connection = True

    def _answer(self, rule: _Rule) -> None:
        bucket = urlsplit(self.path).path.strip("/").partition("/")[0]
        if rule.inside:
            errors = "".join(
                f"<Error><Key>{key}</Key><Code>{code}</Code><Message>no</Message></Error>"
                for key, code in rule.inside
            )
            text = f"<DeleteResult>{errors}</DeleteResult>"
        else:
            text = (
                f"<Error><Code>{rule.code}</Code><Message>by the fault proxy</Message>"
                f"<BucketName>{bucket}</BucketName></Error>"
            )
        data = b"" if self.command == "HEAD" else text.encode()
        self.send_response(rule.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def s3_proxy() -> Iterator[Callable[[Place], S3Faults]]:
    """A factory of `S3Faults` in front of a place of S3."""
    made: list[S3Faults] = []

    def make(place: Place) -> S3Faults:
        made.append(S3Faults(place))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


@pytest.fixture
def s3_faults(s3_proxy: Callable[[Place], S3Faults], s3_place: Place) -> S3Faults:
    """A fault proxy in front of an empty bucket of moto's; open `s3_faults.place`."""
    return s3_proxy(s3_place)
