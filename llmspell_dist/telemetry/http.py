"""What an HTTP server tells about its requests, with the conventions' names.

One object a process, given to `Telemetry` once; every method is a dictionary look-up and an
addition, so a request pays a microsecond or two for all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import Final

from llmspell_dist.observation import Histogram
from llmspell_dist.telemetry.readings import Labels, Number, labels

__all__ = ["HttpMetrics"]

_KNOWN: Final = frozenset(
    ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "QUERY")
)
_SERVER_ERROR: Final = 500
_OTHER: Final = "_OTHER"
"""What the conventions call a method that nobody knows: attackers would make a metric of each."""


class HttpMetrics:
    """Counts requests, streams and refusals of an HTTP server, of one event loop.

    `route` is always the template (``/v1/state/{scope}/{key}``), never the path of a request. It is
    the `Observer` of the sidecar.
    """

    def __init__(self) -> None:
        self._active: dict[tuple[str, str], int] = {}
        self._durations: dict[tuple[str, str, int, str], Histogram] = {}
        self._streams = 0
        self._refused = {"unauthenticated": 0, "forbidden": 0}

    def started(self, method: str, scheme: str = "http") -> float:
        """Note that a request came; what it returns is given to `ended`."""
        key = (method if method in _KNOWN else _OTHER), scheme
        self._active[key] = self._active.get(key, 0) + 1
        return perf_counter()

    def ended(
        self, started: float, method: str, route: str, status: int, scheme: str = "http"
    ) -> None:
        """Note that a request that was `started` is answered; in a ``finally``."""
        known = method if method in _KNOWN else _OTHER
        self._active[known, scheme] = self._active.get((known, scheme), 0) - 1
        key = known, route, status, scheme
        found = self._durations.get(key)
        if found is None:
            found = self._durations[key] = Histogram()
        found.add(perf_counter() - started)

    def streams(self, change: int) -> None:
        """Note that a stream (server-sent events, a WebSocket) began (1) or ended (-1)."""
        self._streams += change

    def unauthenticated(self) -> None:
        """Count a request whose credentials were not accepted."""
        self._refused["unauthenticated"] += 1

    def forbidden(self) -> None:
        """Count a request for which a right was missing."""
        self._refused["forbidden"] += 1

    # --- reading

    def numbers(self) -> Iterator[Number]:
        """Yield counters and gauges."""
        for (method, scheme), count in list(self._active.items()):
            key = labels(http__request__method=method, url__scheme=scheme)
            yield Number("http.server.active_requests", key, count)
        yield Number("llmspell.http.streams", (), self._streams)
        for reason, count in list(self._refused.items()):
            key = labels(llmspell__http__auth__reason=reason)
            yield Number("llmspell.http.auth.failures", key, count)

    def histograms(self) -> Iterator[tuple[str, Labels, Histogram]]:
        """Yield the durations."""
        for (method, route, status, scheme), histogram in list(self._durations.items()):
            # By the conventions the status of a failure of the server's is its type too.
            failed = (("error.type", str(status)),) if status >= _SERVER_ERROR else ()
            key = (
                *failed,
                ("http.request.method", method),
                ("http.response.status_code", status),
                ("http.route", route),
                ("url.scheme", scheme),
            )
            yield "http.server.request.duration", key, histogram
