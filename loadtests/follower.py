"""Following a feed by server-sent events: every number once, in order, and how late it came."""

from __future__ import annotations

import json
import time
from typing import Final

from loadtests.connection import Connection
from loadtests.feed_numbers import Hearing
from loadtests.ledger import Ledger
from loadtests.mixes import event_type, feed_scope
from loadtests.recorder import DELIVERY, SUBSCRIBE
from loadtests.sidecar_calls import HTTPAnswerError, Took

__all__ = ["Follower", "StreamProblemError"]

_AGAIN_AFTER_S: Final = 0.2


class StreamProblemError(Exception):
    """The sidecar ended a stream with a problem."""


class Follower:
    """One subscriber: the even ones watch a feed's scope, the odd ones hear its events.

    A watch reconnects where it was, as an EventSource of a browser does.
    """

    def __init__(
        self, connection: Connection, run: str, number: int, ledger: Ledger, took: Took
    ) -> None:
        scope = feed_scope(number // 2).replace("{run}", run)
        self.connection = connection
        self._hears = bool(number % 2)
        self._path = (
            f"/v1/events?pattern={event_type(scope)}" if self._hears else f"/v1/watch/{scope}"
        )
        self._took = took
        self._hearing = Hearing(ledger)
        self._last_id: str | None = None

    def follow(self) -> None:
        """Read for ever."""
        while True:
            began = time.perf_counter()
            try:
                self._read()
            except Exception as error:  # noqa: BLE001 - counted, and it goes on
                self._took(SUBSCRIBE, (time.perf_counter() - began) * 1000, 0, error)
                time.sleep(_AGAIN_AFTER_S)

    def _read(self) -> None:
        headers = {"accept": "text/event-stream"}
        if self._last_id is not None:
            headers["last-event-id"] = self._last_id
        if self._hears:
            self._hearing.missed()  # events are heard from now on only
        began = time.perf_counter()
        answer, parts = self.connection.stream(self._path, headers)
        if answer.status != 200:
            raise HTTPAnswerError(answer.status, b"".join(parts))
        self._took(SUBSCRIBE, (time.perf_counter() - began) * 1000, 0, None)
        rest = b""
        for part in parts:
            *blocks, rest = (rest + part).split(b"\n\n")
            for block in blocks:
                self._take(block)

    def _take(self, block: bytes) -> None:
        fields: dict[bytes, bytes] = {}
        for line in block.split(b"\n"):
            name, _, value = line.partition(b": ")
            fields[name] = value
        event = fields.get(b"event")
        if event == b"problem":
            raise StreamProblemError(json.loads(fields[b"data"])["code"])
        if event == b"missed":
            self._hearing.missed()
            self._took(f"{DELIVERY}: missed", 0.0, 0, None)
        if b"id" in fields and not self._hears:
            self._last_id = fields[b"id"].decode()
        if event is not None or b"data" not in fields:
            return
        told = json.loads(fields[b"data"])
        late_ms = self._hearing.take(told["data" if self._hears else "value"])
        if late_ms is not None:
            self._took(DELIVERY, late_ms, len(block), None)
