"""How far the archive of a shard reaches: a field of the shard's settings, beside the hold.

The field ``archive`` of ``ns:{s}:ctl`` is MessagePack; the hold ``archive`` keeps the entry itself,
so that it can be compared by its operation id. Both move in one step, and only from where they were
seen last: of two who ship, one is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack

from llmspell_dist.errors import CorruptRecordError
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.scripts import load_script
from llmspell_dist.revision import Revision
from llmspell_dist.state.server_time import server_ms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmspell_dist.state.core import Core
    from llmspell_dist.state.driver import AsyncDriver
    from llmspell_dist.state.steps import Steps

__all__ = ["HOLD", "Look", "Place", "Position", "PositionSteps"]

HOLD: Final = "archive"
"""The name of the hold."""
_FIELD: Final = b"archive"
_FORMAT: Final = 1
_MOST_COUNTED: Final = 100


class Place(NamedTuple):
    """An entry of the log: nobody can mistake another one for it."""

    revision: Revision
    operation: bytes


class Position(NamedTuple):
    """Up to where everything is in the archive."""

    timeline: str
    place: Place
    digest: str = ""
    """Of the last segment; empty: the next one is the first of its timeline."""
    key: str = ""
    """The data key in use."""
    day: str = ""
    """Since when."""

    def packed(self) -> bytes:
        """Return what stands in the shard's settings."""
        parts = (
            _FORMAT,
            self.timeline,
            self.place.revision.packed,
            self.place.operation,
            self.digest,
            self.key,
            self.day,
        )
        return bytes(msgpack.packb(parts))

    @classmethod
    def unpack(cls, raw: bytes) -> Position:
        """Read it; one that is damaged or newer is a `CorruptRecordError`."""
        try:
            version, timeline, revision, operation, digest, key, day = msgpack.unpackb(raw)
            if version != _FORMAT:
                reason = f"the archive's position has format {version}, this reads {_FORMAT}"
                raise CorruptRecordError("ctl", "archive", reason)
            # Its zeros are no revision elsewhere, but the beginning of everything here.
            at = Revision.unpack(revision) or Revision(0, 0)
            return cls(timeline, Place(at, operation), digest, key, day)
        except (ValueError, TypeError, msgpack.UnpackException):
            raise CorruptRecordError("ctl", "archive", "its position is damaged") from None


class Look(NamedTuple):
    """What a shard has, as of one moment."""

    position: Position | None
    held: bool
    """Whether the hold is there."""
    broken: bool
    """Whether the log has reached its cap and the hold broke."""
    first: Place | None
    last: Place | None


class PositionSteps:
    """Reading and moving positions, as steps."""

    def __init__(self, core: Core) -> None:
        self.core = core

    def look(self, shard: str) -> Steps[Look]:
        """Return where the archive stands, and what the log has."""
        log, ctl = self.core.keyspace.log(shard), self.core.keyspace.ctl(shard)
        hold = HOLD.encode()
        fields, first, last = yield [
            Command(pack(b"HMGET", ctl, _FIELD, b"hold:" + hold, b"broken:" + hold), "HMGET"),
            Command(pack(b"XRANGE", log, b"-", b"+", b"COUNT", 1), "XRANGE"),
            Command(pack(b"XREVRANGE", log, b"+", b"-", b"COUNT", 1), "XREVRANGE"),
        ]
        raw, held, broken = fields
        position = None if raw is None else Position.unpack(raw)
        return Look(position, held is not None, broken is not None, _place(first), _place(last))

    def present(self, shard: str, places: Sequence[Place]) -> Steps[list[Place | None]]:
        """Return which entries the log has of some revisions."""
        log = self.core.keyspace.log(shard)
        replies = yield [
            Command(pack(b"XRANGE", log, str(place.revision), str(place.revision)), "XRANGE")
            for place in places
        ]
        return [_place(reply) for reply in replies]

    def generated(self, shard: str) -> Steps[Revision]:
        """Return the last revision that an empty log ever had; zeros if it never had one."""
        log = self.core.keyspace.log(shard)
        if not (yield Command(pack(b"EXISTS", log), "EXISTS")):
            return Revision(0, 0)
        found = yield Command(pack(b"XINFO", b"STREAM", log), "XINFO")
        facts = (
            found if isinstance(found, dict) else dict(zip(found[::2], found[1::2], strict=True))
        )
        return Revision.parse(facts[b"last-generated-id"])

    def move(
        self, shard: str, seen: Position | None, new: Position, *, heals: bool = False
    ) -> Steps[int | None]:
        """Move the position and the hold; the server's time in ms, or None if it was not `seen`.

        `heals`: it is known that an earlier hold broke, and what that means.
        """
        call = ScriptCall(
            load_script("archive_move"),
            (self.core.keyspace.ctl(shard),),
            (
                b"" if seen is None else seen.packed(),
                new.packed(),
                str(new.place.revision).encode(),
                b"1" if heals else b"0",
            ),
        )
        moved, now_ms = yield call
        return int(now_ms) if moved else None

    def forget(self, shard: str) -> Steps[None]:
        """Take position and hold away: the archive ends here."""
        fields = (_FIELD, b"hold:" + HOLD.encode(), b"broken:" + HOLD.encode())
        yield Command(pack(b"HDEL", self.core.keyspace.ctl(shard), *fields), "HDEL")


def _place(found: list[Any]) -> Place | None:
    if not found:
        return None
    entry, fields = found[0]
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    return Place(Revision.parse(entry), named.get(b"o", b""))


async def archive_lag(driver: AsyncDriver) -> tuple[float, int]:
    """Return how many seconds old the oldest commit is that is not archived, and how many are not.

    Of each shard at most 100 are counted.
    """
    core, oldest, pending = driver.core, None, 0
    now_ms = await driver.run(server_ms())
    for shard in core.shards():
        look = await driver.run(PositionSteps(core).look(shard))
        after = "-" if look.position is None else f"({look.position.place.revision}"
        request = pack(b"XRANGE", core.keyspace.log(shard), after, b"+", b"COUNT", _MOST_COUNTED)
        found = await driver.execute(Command(request, "XRANGE", bulk=True))
        pending += len(found)
        if found:
            first = Revision.parse(found[0][0])
            oldest = first.ms if oldest is None else min(oldest, first.ms)
    if oldest is None:
        return 0.0, 0
    return max(0.0, (now_ms - oldest) / 1000), pending
