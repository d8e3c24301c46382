"""The server's time, for what waits for a moment: the clock of one machine may be wrong."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Final

from llmspell_dist.redis.commands import Command
from llmspell_dist.redis.resp import pack

if TYPE_CHECKING:
    from llmspell_dist.state.driver import AsyncDriver
    from llmspell_dist.state.steps import Steps

__all__ = ["ServerTime", "server_ms"]

_LEAST_S: Final = 0.005
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class ServerTime:
    """What the server's clock says; `clock` takes its place in tests."""

    def __init__(self, driver: AsyncDriver, clock: Callable[[], datetime] | None = None) -> None:
        self._driver = driver
        self._clock = clock
        self._told, self._asked = datetime.now(UTC), monotonic()

    async def now(self) -> datetime:
        """Ask the server."""
        if self._clock is not None:
            return self._clock()
        asked = monotonic()
        micros = await self._driver.run(_server_us())
        # As of when it was asked: a connection that was yet to be made must not let moments pass.
        self._asked = asked
        waited = timedelta(seconds=monotonic() - asked)
        self._told = _EPOCH + timedelta(microseconds=micros) - waited
        return self._told

    def about_now(self) -> datetime:
        """Return what it must say by what it said last."""
        if self._clock is not None:
            return self._clock()
        return self._told + timedelta(seconds=monotonic() - self._asked)

    def left_s(self, moment: datetime | None, most_s: float) -> float:
        """Return how long to wait for a moment, if it comes: no longer than `most_s`."""
        if moment is None:
            return most_s
        left_s = (moment - self.about_now()).total_seconds()
        return min(max(left_s, _LEAST_S), most_s)


def server_ms() -> Steps[int]:
    """Ask the server for its time, in milliseconds since the epoch."""
    return (yield from _server_us()) // 1000


def _server_us() -> Steps[int]:
    seconds, micros = yield Command(pack(b"TIME"), "TIME")
    return int(seconds) * 1_000_000 + int(micros)
