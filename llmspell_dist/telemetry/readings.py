"""What the clients of this process have counted, read when somebody exports it.

Nothing is added up on the way of a call: services and connections keep plain counts of their own,
and this reads them, from whatever thread exports. What a client counted stays when it is closed, so
that no counter ever goes down.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from llmspell_dist.observation import Histogram
from llmspell_dist.telemetry.names import METRICS
from llmspell_dist.watch.watch import Watch

if TYPE_CHECKING:
    from llmspell_dist.cache.near import Near
    from llmspell_dist.redis.metering import Meter
    from llmspell_dist.telemetry.http import HttpMetrics

__all__ = ["Book", "Labels", "Number", "labels"]

logger = logging.getLogger("llmspell_dist.telemetry")

Labels = tuple[tuple[str, Any], ...]
"""Attributes, sorted, so that they can be a key."""
_STATM: Final = Path("/proc/self/statm")
_STARTED: Final = time.monotonic()


class Number(NamedTuple):
    """One reading of a counter or a gauge."""

    name: str
    labels: Labels
    value: float


class _Attached(NamedTuple):
    """A client that is read."""

    meter: Meter | None
    facts: Mapping[str, Any]
    listening: Callable[[], list[Any]]


def labels(**attributes: Any) -> Labels:
    """Return attributes as a key; two underscores of a name stand for its dot."""
    return tuple(sorted((name.replace("__", "."), value) for name, value in attributes.items()))


def _key(own: Labels, **more: Any) -> Labels:
    return tuple(sorted((*own, *labels(**more))))


class Book:
    """All counts of one `Telemetry`."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._clients: WeakKeyDictionary[Any, _Attached] = WeakKeyDictionary()
        self._numbers: dict[tuple[str, Labels], float] = {}
        """Counters of clients that are closed, and of what has no client."""
        self._histograms: dict[tuple[str, Labels], Histogram] = {}
        self.gauges: dict[tuple[str, Labels], float] = {}
        """What an inspector saw last."""
        self.http: HttpMetrics | None = None
        self._page: dict[str, list[tuple[Labels, float]]] = {}
        self._taken: set[str] = set()

    # --- clients

    def attach(
        self,
        client: Any,
        meter: Meter | None,
        facts: Mapping[str, Any],
        listening: Callable[[], list[Any]],
    ) -> None:
        """Read a client from now on."""
        with self._lock:
            self._clients[client] = _Attached(meter, facts, listening)

    def detach(self, client: Any) -> None:
        """Read a client a last time."""
        with self._lock:
            attached = self._clients.pop(client, None)
            if attached is None:
                return
            for name, key, value in self._read(client, attached):
                if METRICS[name].kind == "counter":
                    self._numbers[name, key] = self._numbers.get((name, key), 0.0) + value
            for name, key, histogram in self._read_histograms(client, attached):
                self._histogram(self._histograms, name, key).merge(histogram)

    def count(self, name: str, key: Labels, by: float = 1) -> None:
        """Count something that belongs to no client."""
        with self._lock:
            self._numbers[name, key] = self._numbers.get((name, key), 0.0) + by

    # --- reading

    def values(self, name: str) -> list[tuple[Labels, float]]:
        """Return what one counter or gauge is at now.

        All of them are read in one go, and each is given out once from that: so what one export
        shows is of one moment.
        """
        with self._lock:
            if not self._page or name in self._taken:
                self._page, self._taken = self._snapshot(), set()
            self._taken.add(name)
            return self._page.get(name, [])

    def _snapshot(self) -> dict[str, list[tuple[Labels, float]]]:
        sums = {**self._numbers, **self.gauges}
        found = [*_process(), *(self.http.numbers() if self.http is not None else ())]
        for client, attached in list(self._clients.items()):
            found += self._read(client, attached)
        for name, key, value in found:
            sums[name, key] = sums.get((name, key), 0.0) + value
        page: dict[str, list[tuple[Labels, float]]] = {}
        for (name, key), value in sums.items():
            page.setdefault(name, []).append((key, value))
        return page

    def _read(self, client: Any, attached: _Attached) -> list[Number]:
        try:
            return list(_numbers_of(client, attached))
        except Exception:  # whatever is wrong with one client, the others are exported
            logger.exception("the counts of a client cannot be read")
            return []

    def histograms(self) -> dict[tuple[str, Labels], Histogram]:
        """Return all histograms as they are now; they are the caller's."""
        with self._lock:
            sums: dict[tuple[str, Labels], Histogram] = {}
            for (name, key), histogram in self._histograms.items():
                self._histogram(sums, name, key).merge(histogram)
            for client, attached in list(self._clients.items()):
                for name, key, histogram in self._read_histograms(client, attached):
                    self._histogram(sums, name, key).merge(histogram)
            for name, key, histogram in self.http.histograms() if self.http is not None else ():
                self._histogram(sums, name, key).merge(histogram)
            return sums

    @staticmethod
    def _histogram(book: dict[tuple[str, Labels], Histogram], name: str, key: Labels) -> Histogram:
        found = book.get((name, key))
        if found is None:
            found = book[name, key] = Histogram(METRICS[name].bounds)
        return found

    @staticmethod
    def _read_histograms(
        client: Any, attached: _Attached
    ) -> Iterator[tuple[str, Labels, Histogram]]:
        meter, facts, _ = attached
        own = labels(llmspell__namespace=facts["llmspell.namespace"])
        yield "llmspell.lease.wait.duration", own, client.leases.counted.waits
        if meter is None:
            return
        yield "llmspell.commit.group.size", own, meter.groups
        for (operation, error), histogram in list(meter.durations.items()):
            said = {**facts, "db.operation.name": operation}
            if error:
                said["error.type"] = error
            yield "db.client.operation.duration", tuple(sorted(said.items())), histogram


# --- one client


def _numbers_of(client: Any, attached: _Attached) -> Iterator[Number]:
    meter, facts, listening = attached
    own = labels(llmspell__namespace=facts["llmspell.namespace"])
    yield from _of_services(client, own)
    if meter is not None:
        yield from _of_lanes(meter, own)
    yield from _of_hooks(client, own)
    yield from _of_events(client, own)
    yield from _of_watches(listening(), own)
    yield from _of_cache(client.near_cache, own)


def _of_lanes(meter: Meter, own: Labels) -> Iterator[Number]:
    for name, lane in list(meter.lanes.items()):
        key = _key(own, llmspell__lane=name)
        yield Number("llmspell.lane.connected", key, int(getattr(lane, "connected", False)))
        yield Number("llmspell.lane.in_flight", key, lane.in_flight)
        yield Number("llmspell.lane.queued", key, len(lane.backlog))
    for name, counts in list(meter.counts.items()):
        key = _key(own, llmspell__lane=name)
        yield Number("llmspell.lane.connections", key, counts.connections)
        yield Number("llmspell.lane.losses", key, counts.losses)
        yield Number("llmspell.lane.retries", key, counts.retries)
        for direction, size in (("transmit", counts.sent), ("receive", counts.received)):
            where = _key(own, llmspell__lane=name, network__io__direction=direction)
            yield Number("llmspell.lane.io", where, size)


def _of_services(client: Any, own: Labels) -> Iterator[Number]:
    held, waiting = client.leases.standing()
    key, counted = own, client.leases.counted
    yield Number("llmspell.lease.held", key, held)
    yield Number("llmspell.lease.waiting", key, waiting)
    yield Number("llmspell.lease.acquired", key, counted.acquired)
    yield Number("llmspell.lease.lost", key, counted.lost)


def _of_hooks(client: Any, own: Labels) -> Iterator[Number]:
    for (name, point), counted in client.hooks.counts().items():
        key = _key(own, llmspell__hook__name=name, llmspell__hook__point=point)
        yield Number("llmspell.hook.runs", key, counted.runs)
        yield Number("llmspell.hook.failures", key, counted.failures)
        yield Number("llmspell.hook.skipped", key, counted.skipped)
    for hooks in client.hooks.stats().values():
        for hook in hooks:
            if hook.breaker is not None:
                key = _key(own, llmspell__hook__name=hook.name, llmspell__hook__point=hook.point)
                yield Number("llmspell.hook.breaker.open", key, int(hook.breaker == "open"))


_REFUSED: Final = ("rejected", "blocked", "dropped")


def _of_events(client: Any, own: Labels) -> Iterator[Number]:
    published = client.events.stats()
    yield Number("llmspell.event.published", own, published.published)
    for reason in _REFUSED:
        key = _key(own, llmspell__event__reason=reason)
        yield Number("llmspell.event.refused", key, getattr(published, reason))
    for name, stats in client.events.consumed().items():
        key = _key(own, llmspell__subscription=name)
        yield Number("llmspell.event.delivered", key, stats.delivered)
        yield Number("llmspell.event.acknowledged", key, stats.acknowledged)
        yield Number("llmspell.event.failed", key, stats.failed)
        yield Number("llmspell.event.dead_lettered", key, stats.dead)


def _of_watches(listening: list[Any], own: Labels) -> Iterator[Number]:
    key = own
    watches = [ear for ear in listening if isinstance(ear, Watch)]
    yield Number("llmspell.watch.open", key, len(watches))
    yield Number("llmspell.watch.buffered", key, sum(watch.buffered for watch in watches))


def _of_cache(near: Near | None, own: Labels) -> Iterator[Number]:
    if near is None:
        return
    key, stats = own, near.stats()
    for result, count in (("hit", stats.hits), ("miss", stats.misses)):
        where = _key(own, llmspell__near_cache__result=result)
        yield Number("llmspell.near_cache.lookups", where, count)
    yield Number("llmspell.near_cache.invalidations", key, stats.invalidations)
    yield Number("llmspell.near_cache.evictions", key, stats.evictions)
    yield Number("llmspell.near_cache.entries", key, stats.entries)
    yield Number("llmspell.near_cache.size", key, stats.bytes)


# --- the process


def _process() -> Iterator[Number]:
    yield Number("process.uptime", (), time.monotonic() - _STARTED)
    try:
        pages = int(_STATM.read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, LookupError):
        return  # not Linux
    yield Number("process.memory.usage", (), pages * os.sysconf("SC_PAGE_SIZE"))
