"""The change log: what every commit did, in order; how far it reaches back and who keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.changes import LogEntry, unpack_entry
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.redis.commands import Command
from llmspell_dist.redis.resp import pack
from llmspell_dist.revision import Revision
from llmspell_dist.state.housekeeping import trim

if TYPE_CHECKING:
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.driver import AsyncDriver
    from llmspell_dist.state.steps import Steps

__all__ = ["ChangeLog", "LogStat", "check_hold"]

MAX_PAGE: Final = 1000
_HOLD, _BROKEN = b"hold:", b"broken:"


@dataclass(frozen=True, slots=True)
class LogStat:
    """How much a shard's log holds."""

    shard: str
    entries: int
    floor: Revision | None
    """The oldest entry; None if it is empty."""
    last: Revision | None
    holds: dict[str, Revision]
    """Who keeps entries from being trimmed, and from where on."""
    broken: dict[str, Revision]
    """Holds that broke because the log reached its cap, and where they stood."""


class LogSteps:
    """The operations on the log, as steps."""

    def __init__(self, core: Core) -> None:
        self.core = core

    def entries(
        self, shard: str, after: Revision | None, limit: int, newest_first: bool
    ) -> Steps[list[LogEntry]]:
        """Return some entries of a shard's log."""
        if type(limit) is not int or not 1 <= limit <= MAX_PAGE:
            raise InvalidArgumentError("limit", limit, f"must be an int from 1 to {MAX_PAGE:,}")
        _check_position("after", after)
        log = self.core.keyspace.log(shard)
        start = "-" if after is None else f"({after}"
        if newest_first:
            request = pack(b"XREVRANGE", log, "+", start, b"COUNT", limit)
        else:
            request = pack(b"XRANGE", log, start, "+", b"COUNT", limit)
        flat = yield Command(request, "XRANGE", bulk=True)
        return [unpack_entry(entry_id, fields) for entry_id, fields in flat]

    def stat(self, shard: str) -> Steps[LogStat]:
        """How much a shard's log holds."""
        keyspace = self.core.keyspace
        log = keyspace.log(shard)
        length, first, last, fields = yield [
            Command(pack(b"XLEN", log), "XLEN"),
            Command(pack(b"XRANGE", log, "-", "+", b"COUNT", 1), "XRANGE", bulk=True),
            Command(pack(b"XREVRANGE", log, "+", "-", b"COUNT", 1), "XREVRANGE", bulk=True),
            Command(pack(b"HGETALL", keyspace.ctl(shard)), "HGETALL"),
        ]
        settings = (
            fields
            if isinstance(fields, dict)
            else dict(zip(fields[::2], fields[1::2], strict=True))
        )
        return LogStat(
            shard,
            length,
            _first(first),
            _first(last),
            _named(settings, _HOLD),
            _named(settings, _BROKEN),
        )

    def hold(self, name: str, at: Revision | None) -> Steps[None]:
        """Keep entries from `at` on in every shard."""
        check_hold(name)
        _check_position("at", at)
        for shard in self.core.shards():
            yield from self.hold_shard(shard, name, at)

    def hold_shard(self, shard: str, name: str, at: Revision | None) -> Steps[None]:
        """Keep entries from `at` on in one shard (None: from the newest)."""
        ctl = self.core.keyspace.ctl(shard)
        if at is None:
            at = (yield from self.stat(shard)).last or Revision(0, 1)
        yield Command(pack(b"HSET", ctl, _HOLD + check_hold(name), str(at)), "HSET")
        yield Command(pack(b"HDEL", ctl, _BROKEN + check_hold(name)), "HDEL")

    def release(self, name: str) -> Steps[None]:
        """Let entries be trimmed again."""
        fields = (_HOLD + check_hold(name), _BROKEN + check_hold(name))
        for shard in self.core.shards():
            yield Command(pack(b"HDEL", self.core.keyspace.ctl(shard), *fields), "HDEL")

    def trim(self) -> Steps[int]:
        """Shorten every shard's log to its retention now."""
        total = 0
        for shard in self.core.shards():
            total += yield from trim(self.core, shard)
        return total


class ChangeLog:
    """The change log of a namespace; every commit is one entry, its id the commit's revision."""

    def __init__(self, driver: AsyncDriver) -> None:
        self._driver = driver
        self._steps = LogSteps(driver.core)

    def __repr__(self) -> str:
        core = self._driver.core
        return f"<{type(self).__name__} of {core.keyspace.namespace!r} on {core.server}>"

    async def entries(
        self,
        *,
        shard: str = "0",
        after: Revision | None = None,
        limit: int = 100,
        newest_first: bool = False,
    ) -> list[LogEntry]:
        """Return up to `limit` entries after a revision (None: from the oldest)."""
        return await self._driver.run(self._steps.entries(shard, after, limit, newest_first))

    async def stat(self, *, shard: str = "0") -> LogStat:
        """Return how much the log holds, where it begins, and who holds it."""
        return await self._driver.run(self._steps.stat(shard))

    async def hold(self, name: str, *, at: Revision | None = None) -> None:
        """Keep entries from `at` on (None: from the newest) from being trimmed, until `release`.

        Setting it again moves it. At the retention's cap a hold breaks; `stat` then shows it.
        """
        await self._driver.run(self._steps.hold(name, at))

    async def release(self, name: str) -> None:
        """Let entries be trimmed again."""
        await self._driver.run(self._steps.release(name))

    async def trim(self) -> int:
        """Shorten the log to its retention now; return how many entries went.

        Some process of the fleet does so every second anyway.
        """
        return await self._driver.run(self._steps.trim())


def _check_position(argument: str, position: Revision | None) -> None:
    if position is not None and not isinstance(position, Revision):
        raise InvalidArgumentError(argument, position, "must be a Revision or None")


def check_hold(name: str) -> bytes:
    """Return the name of a hold as it is stored; anything else is an `InvalidArgumentError`."""
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= 64
        or not name.isascii()
        or not name.isprintable()
    ):
        rule = "must be 1 to 64 printable ASCII characters"
        raise InvalidArgumentError("name", name, rule)
    return name.encode()


def _named(settings: dict[bytes, bytes], prefix: bytes) -> dict[str, Revision]:
    return {
        field[len(prefix) :].decode(): Revision.parse(position)
        for field, position in settings.items()
        if field.startswith(prefix)
    }


def _first(flat: list[Any]) -> Revision | None:
    return Revision.parse(flat[0][0]) if flat else None
