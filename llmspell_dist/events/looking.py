"""A look at durable subscriptions and their dead letters, and what can be done about them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.events.errors import UnreadableEventError
from llmspell_dist.events.steps import SHARD, EventSteps, check_name, read_definition
from llmspell_dist.revision import MAX_MS
from llmspell_dist.scope import decode_part

if TYPE_CHECKING:
    from llmspell_dist.events.model import Event
    from llmspell_dist.state.steps import Steps

__all__ = ["MOST_LISTED", "DeadLetter", "EventLooks", "SubscriptionInfo", "check_id"]

MOST_LISTED = 10_000
_CHUNK = 500
_PAGE = 500
_MAX_NUMBER = 2**64 - 1


@dataclass(frozen=True, slots=True)
class SubscriptionInfo:
    """A durable subscription as it stands on the server."""

    name: str
    pattern: str
    capacity: int
    overflow: str
    lag: int
    """Events that nobody acknowledged yet."""
    pending: int
    """Those of them that a consumer holds."""
    holding: int
    """How many consumers hold those: also one that died, until others take over what it held.

    One that waits for the next event is not among them; those that go through sidecars are one.
    """
    dead: int
    """Dead letters."""
    dropped: int
    """Events that the queue left out because it was full, since it was made.

    With ``drop_oldest`` one that a consumer holds counts until it is acknowledged.
    """


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that could not be handled."""

    id: str
    """Its id among the dead letters, for `Events.replay` and `Events.delete_dead`."""
    subscription: str
    event: Event | None
    """None if its bytes are no event that this release can read."""
    reason: str
    """``failed`` or ``unreadable``."""
    error: str
    """What went wrong last."""
    deliveries: int
    consumer: str
    """The one that gave it up."""
    buried_at: datetime
    """By the server's clock, in UTC."""
    raw: bytes
    """The bytes as they were published."""


class EventLooks:
    """Looks at queues and dead letters; `Events` has these too."""

    def __init__(self, steps: EventSteps, run: Callable[[Steps[Any]], Awaitable[Any]]) -> None:
        self._looks = steps
        self._run = run

    async def subscriptions(self) -> list[SubscriptionInfo]:
        """Return every durable subscription of the namespace by name, with what waits in it."""
        found: list[SubscriptionInfo] = await self._run(_subscriptions(self._looks))
        return found

    async def remove(self, name: str) -> bool:
        """End a durable subscription, with queue and dead letters; return whether it existed."""
        removed = await self._run(_call(self._looks.remove_call(check_name(name))))
        return bool(removed)

    async def dead_letters(
        self, name: str, *, limit: int = 100, after: str | None = None
    ) -> list[DeadLetter]:
        """Return the dead letters of a durable subscription, oldest first; `after`: an id."""
        if type(limit) is not int or not 1 <= limit <= MOST_LISTED:
            raise InvalidArgumentError("limit", limit, f"must be an int from 1 to {MOST_LISTED:,}")
        start = "-" if after is None else "(" + check_id(after, "after")
        key = self._looks.keys.event_dead(SHARD, check_name(name))
        found = await self._run(
            _call(self._looks.command("XRANGE", key, start, "+", "COUNT", limit))
        )
        return [self._letter(name, entry) for entry in found]

    async def replay(self, name: str, ids: Iterable[str] | str) -> int:
        """Put dead letters back into the queue, as new events at its end; return how many were."""
        wanted = _check_ids(ids)
        done = 0
        check_name(name)
        for start in range(0, len(wanted), _CHUNK):
            call = self._looks.replay_call(name, wanted[start : start + _CHUNK])
            done += self._looks.existing(name, await self._run(_call(call)))
        return done

    async def delete_dead(self, name: str, ids: Iterable[str] | str) -> int:
        """Delete dead letters; return how many there were."""
        key = self._looks.keys.event_dead(SHARD, check_name(name))
        wanted = _check_ids(ids)
        done = 0
        for start in range(0, len(wanted), _CHUNK):
            command = self._looks.command("XDEL", key, *wanted[start : start + _CHUNK])
            done += await self._run(_call(command))
        return done

    def _letter(self, name: str, entry: list[Any]) -> DeadLetter:
        entry_id, said = entry[0].decode(), dict(zip(entry[1][::2], entry[1][1::2], strict=True))
        raw = said.get(b"b", b"")
        try:
            event = self._looks.read_event(raw)
        except UnreadableEventError:
            event = None
        return DeadLetter(
            id=entry_id,
            subscription=name,
            event=event,
            reason=said.get(b"r", b"").decode(),
            error=said.get(b"e", b"").decode("utf-8", "replace"),
            deliveries=int(said.get(b"n", b"0")),
            consumer=said.get(b"c", b"").decode("utf-8", "replace"),
            buried_at=datetime.fromtimestamp(int(entry_id.partition("-")[0]) / 1000, UTC),
            raw=raw,
        )


def _call(request: Any) -> Steps[Any]:
    return (yield request)


def _subscriptions(steps: EventSteps) -> Steps[list[SubscriptionInfo]]:
    found, cursor = {}, b"0"
    while True:
        reply = yield steps.queues_call(cursor, _PAGE)
        cursor, told = reply[0], iter(reply[1:])
        for encoded, definition, lag, pending, holding, dead, dropped in zip(
            *[told] * 7, strict=True
        ):
            pattern, capacity, overflow = read_definition(definition)
            found[encoded] = SubscriptionInfo(
                name=decode_part(encoded.decode()),
                pattern=pattern,
                capacity=capacity,
                overflow=overflow,
                lag=lag,
                pending=pending,
                holding=holding,
                dead=dead,
                dropped=dropped,
            )
        if cursor == b"0":
            return [found[encoded] for encoded in sorted(found)]


def check_id(value: object, argument: str = "ids") -> str:
    """Return the id of a dead letter; anything else is an `InvalidArgumentError`."""
    if type(value) is str:
        ms, dash, number = value.partition("-")
        if dash and ms.isdecimal() and number.isdecimal() and value.isascii() and len(value) < 45:
            if int(ms) > MAX_MS or int(number) > _MAX_NUMBER:
                raise InvalidArgumentError(argument, value, "ms has 48 bits, the number 64 bits")
            return value
    raise InvalidArgumentError(argument, value, "must be ids of dead letters, as 1700000000000-0")


def _check_ids(ids: Iterable[str] | str) -> list[bytes]:
    return [check_id(one).encode() for one in ([ids] if isinstance(ids, str) else ids)]
