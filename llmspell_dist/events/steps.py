"""What is sent for events and how the answers are read; nothing here does I/O.

Every script may be sent twice: a publish operation is known by its number, and the others change
nothing the second time. So a lost connection is survived by sending again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llmspell_dist.errors import InvalidArgumentError, StoreUnavailableError
from llmspell_dist.events.errors import SubscriptionExistsError, SubscriptionNotFoundError
from llmspell_dist.events.model import Event
from llmspell_dist.events.wire import pack_event, unpack_event
from llmspell_dist.patterns import Pattern
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.scripts import load_script

if TYPE_CHECKING:
    from datetime import datetime

    from llmspell_dist.state.core import Core

__all__ = [
    "DEFAULT_CAPACITY",
    "OVERFLOWS",
    "SHARD",
    "Definition",
    "EventSteps",
    "Packed",
    "Refusal",
    "check_durable",
    "check_live",
    "check_name",
    "new_event",
]

SHARD: Final = "0"
"""Events of a namespace lie in one shard, so that one script reaches all of its queues."""
DEFAULT_CAPACITY: Final = 1_000_000
MAX_CAPACITY: Final = 100_000_000
CORRELATION_ENTRIES: Final = 10_000
CORRELATION_KEEP_MS: Final = 7 * 24 * 3_600_000
MAX_DEAD: Final = 100_000
FORGET_CONSUMERS_MS: Final = 600_000
MAX_NAME: Final = 128

OVERFLOWS: Final = {
    "block": "block",
    "drop_oldest": "oldest",
    "drop_newest": "newest",
    "reject": "reject",
}
"""What happens at capacity, by its name here and on the server."""
_OVERFLOW_NAMES: Final = {wire: name for name, wire in OVERFLOWS.items()}


class Definition(NamedTuple):
    """A durable subscription as the server has it."""

    pattern: str
    capacity: int
    overflow: str


class Packed(NamedTuple):
    """An event, ready to be sent."""

    event: Event
    correlation: bytes
    envelope: bytes


class Refusal(NamedTuple):
    """Why an event was not stored."""

    place: int
    code: str
    subscription: str


def check_name(name: object, argument: str = "name") -> str:
    """Return the name of a durable subscription or a consumer."""
    if type(name) is not str or not 0 < len(name.encode("utf-8", "replace")) <= MAX_NAME:
        raise InvalidArgumentError(argument, name, f"must be text of 1 to {MAX_NAME} bytes")
    return name


def check_overflow(overflow: object) -> str:
    """Return an overflow strategy by its name on the server."""
    if type(overflow) is not str or overflow not in OVERFLOWS:
        raise InvalidArgumentError("overflow", overflow, f"must be one of {', '.join(OVERFLOWS)}")
    return OVERFLOWS[overflow]


def new_event(
    event_type: str, data: Any, *, event_id: str | None, time: datetime | None, **fields: Any
) -> Event:
    """Return the event of what `publish` was given; an event where its type is meant is refused."""
    if isinstance(event_type, Event):
        rule = "must be the event's type: publish_event publishes an Event"
        raise InvalidArgumentError("type", event_type, rule)
    given = {"id": event_id, "time": time}
    fields |= {name: value for name, value in given.items() if value is not None}
    return Event(event_type, data, **fields)


def check_live(**given: tuple[object, object]) -> None:
    """Refuse arguments of durable subscriptions, each with its default, on a live one."""
    _check_only("is for durable subscriptions: give `durable` too", given)


def check_durable(**given: tuple[object, object]) -> None:
    """Refuse arguments of live subscriptions, each with its default, on a durable one."""
    _check_only("is for live subscriptions: a durable one has `capacity` and `overflow`", given)


def _check_only(rule: str, given: Mapping[str, tuple[object, object]]) -> None:
    for argument, (value, default) in given.items():
        if value != default:
            raise InvalidArgumentError(argument, value, rule)


class EventSteps:
    """Spells the calls of one client for events."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.codec = core.values.codec
        self.new_client()

    def new_client(self) -> None:
        """Begin with a new client id: at the start, and in the child after a fork."""
        self.client = os.urandom(8).hex()
        self._operations = count(1)

    @property
    def keys(self) -> Any:
        """How keys are spelled."""
        return self._core.keyspace

    # --- publishing

    def packed(self, event: Event) -> Packed:
        """Encode an event."""
        envelope = pack_event(event, self.codec)
        correlation = event.correlation_id
        key = b"" if correlation is None else self.keys.correlation(SHARD, correlation)
        return Packed(event, key, envelope)

    def publish_call(self, batch: Sequence[Packed], *, first: bool = False) -> ScriptCall:
        """Publish events as one operation, under a number of its own.

        `first`: no other events of this client wait for room, or all of them come again now.
        """
        keys = self.keys
        arguments: list[bytes] = [
            keys.prefix(SHARD),
            b"%d" % next(self._operations),
            b"%d" % CORRELATION_ENTRIES,
            b"%d" % CORRELATION_KEEP_MS,
            b"first" if first else b"",
        ]
        for event, correlation, envelope in batch:
            arguments += (event.type.encode(), correlation, envelope)
        return ScriptCall(
            load_script("event_publish"),
            (
                keys.events(SHARD),
                keys.event_ring(SHARD, self.client),
                keys.event_stats(SHARD),
                keys.event_idle(SHARD),
            ),
            tuple(arguments),
        )

    def read_published(self, reply: Any) -> list[Refusal]:
        """Return what was refused; an operation that the server forgot is an error."""
        refusals = []
        for line in reply[0].split(b"\n") if reply[0] else ():
            index, code, name = line.decode().split(" ", 2)
            if code == "UNKNOWN":
                said = "it no longer knows what became of this publish operation"
                raise StoreUnavailableError(self._core.server, said, may_have_happened=True)
            refusals.append(Refusal(int(index), code, name))
        return refusals

    # --- durable subscriptions

    def subscribe_call(
        self, name: str, pattern: Pattern, capacity: int | None, overflow: str | None
    ) -> ScriptCall:
        """Enter a durable subscription, or find it."""
        keys = self.keys
        return ScriptCall(
            load_script("event_subscribe"),
            (keys.events(SHARD), keys.event_queue(SHARD, name)),
            (
                _encoded(keys.event_queue(SHARD, name)),
                pattern.text.encode(),
                b"" if capacity is None else b"%d" % _check_capacity(capacity),
                b"" if overflow is None else check_overflow(overflow).encode(),
                b"%d" % DEFAULT_CAPACITY,
                b"block",
            ),
        )

    def read_subscribed(self, name: str, pattern: Pattern, reply: list[bytes]) -> Definition:
        """Return the definition; another pattern is an error."""
        if reply[0] == b"EXISTS":
            raise SubscriptionExistsError(name, pattern.text, reply[1].decode())
        return read_definition(reply[0])

    def fetch_call(
        self,
        name: str,
        consumer: bytes,
        after: bytes,
        most: int,
        most_bytes: int,
        *,
        own: bool = False,
    ) -> ScriptCall:
        """Ask for the next events of a queue, and for what an answer held that was lost.

        `own`: for nothing but what the consumer holds.
        """
        queue = self.keys.event_queue(SHARD, name)
        return ScriptCall(
            load_script("event_fetch"),
            (queue, self.keys.event_idle(SHARD)),
            (
                consumer,
                _encoded(queue),
                b"%d" % most,
                b"%d" % most_bytes,
                after,
                b"own" if own else b"",
            ),
        )

    def claim_call(self, name: str, consumer: bytes, idle_ms: int, most: int) -> ScriptCall:
        """Take over what was not touched for so long."""
        return ScriptCall(
            load_script("event_claim"),
            (self.keys.event_queue(SHARD, name),),
            (consumer, b"%d" % idle_ms, b"%d" % most, b"%d" % FORGET_CONSUMERS_MS),
        )

    def renew_call(self, name: str, consumer: bytes, ids: list[bytes]) -> ScriptCall:
        """Keep what a consumer works on."""
        queue = self.keys.event_queue(SHARD, name)
        return ScriptCall(load_script("event_renew"), (queue,), (consumer, *ids))

    def deliver_call(self, name: str, consumer: bytes, entry: bytes, deliveries: int) -> ScriptCall:
        """Count the delivery of what was delivered before."""
        queue = self.keys.event_queue(SHARD, name)
        arguments = (consumer, entry, b"%d" % deliveries)
        return ScriptCall(load_script("event_deliver"), (queue,), arguments)

    def ack_call(self, name: str, ids: list[bytes]) -> ScriptCall:
        """Take handled events out of the queue."""
        queue = self.keys.event_queue(SHARD, name)
        return ScriptCall(
            load_script("event_ack"),
            (queue, self.keys.event_stats(SHARD)),
            (_encoded(queue), *ids),
        )

    def answer_call(
        self,
        name: str,
        consumer: bytes,
        what: str,
        held: Iterable[tuple[bytes, int]],
        *,
        counts: bool = True,
        burial: tuple[str, str] = ("", ""),
    ) -> ScriptCall:
        """Answer for deliveries, by id and number; those that are over stay as they are.

        ``ack``, ``renew``, ``release`` (`counts`: the deliveries count) or ``bury`` (`burial`: why,
        and what went wrong). The answer is the places of those that are over.
        """
        keys = self.keys
        queue = keys.event_queue(SHARD, name)
        why, error = burial
        said = [part for entry, number in held for part in (entry, b"%d" % number)]
        return ScriptCall(
            load_script("event_answer"),
            (queue, keys.event_stats(SHARD), keys.event_dead(SHARD, name)),
            (
                _encoded(queue),
                consumer,
                what.encode(),
                keys.event_bell(SHARD, name),
                b"0" if counts else b"1",
                why.encode(),
                _text(error),
                b"%d" % MAX_DEAD,
                *said,
            ),
        )

    def release_call(
        self, name: str, consumer: bytes, held: Iterable[tuple[bytes, int]]
    ) -> ScriptCall:
        """Give back what a consumer did not handle, each with how often it was handed out."""
        keys = self.keys
        said = [part for entry, handed in held for part in (entry, b"%d" % handed)]
        return ScriptCall(
            load_script("event_release"),
            (keys.event_queue(SHARD, name),),
            (consumer, keys.event_bell(SHARD, name), *said),
        )

    def bury_call(
        self, name: str, consumer: bytes, entry: bytes, *, why: str, deliveries: int, error: str
    ) -> ScriptCall:
        """Move an event to the dead letters."""
        keys = self.keys
        return ScriptCall(
            load_script("event_bury"),
            (keys.event_queue(SHARD, name), keys.event_dead(SHARD, name)),
            (
                entry,
                why.encode(),
                b"%d" % deliveries,
                _text(error),
                consumer,
                b"%d" % MAX_DEAD,
            ),
        )

    def queues_call(self, cursor: bytes, most: int) -> ScriptCall:
        """Ask how durable subscriptions stand, about so many at a time."""
        keys = self.keys
        return ScriptCall(
            load_script("event_queues"),
            (keys.events(SHARD), keys.event_stats(SHARD)),
            (keys.prefix(SHARD), cursor, b"%d" % most),
        )

    def remove_call(self, name: str) -> ScriptCall:
        """End a durable subscription."""
        keys = self.keys
        queue = keys.event_queue(SHARD, name)
        return ScriptCall(
            load_script("event_remove"),
            (
                keys.events(SHARD),
                queue,
                keys.event_dead(SHARD, name),
                keys.event_idle(SHARD),
                keys.event_stats(SHARD),
            ),
            (_encoded(queue), keys.event_bell(SHARD, name)),
        )

    def replay_call(self, name: str, ids: Iterable[bytes]) -> ScriptCall:
        """Put dead letters back into their queue."""
        keys = self.keys
        queue = keys.event_queue(SHARD, name)
        return ScriptCall(
            load_script("event_replay"),
            (queue, keys.event_dead(SHARD, name), keys.event_idle(SHARD)),
            (_encoded(queue), keys.event_bell(SHARD, name), *ids),
        )

    def command(self, *request: str | bytes | int) -> Command:
        """Return a command that may be sent twice."""
        return Command(pack(*request), str(request[0]))

    def read_event(self, envelope: bytes) -> Event:
        """Decode an event; `UnreadableEventError` if it is none."""
        return unpack_event(envelope, self.codec)

    def existing(self, name: str, reply: Any) -> Any:
        """Return a reply, or raise if it says that there is no such subscription."""
        if reply == b"GONE":
            raise SubscriptionNotFoundError(name)
        return reply


def read_definition(stored: bytes) -> Definition:
    """Read what the registry holds of a subscription."""
    _, capacity, overflow, pattern = stored.decode().split(" ", 3)
    return Definition(pattern, int(capacity), _OVERFLOW_NAMES.get(overflow, overflow))


def _check_capacity(capacity: object) -> int:
    if type(capacity) is not int or not 1 <= capacity <= MAX_CAPACITY:
        rule = f"must be an int from 1 to {MAX_CAPACITY:,}"
        raise InvalidArgumentError("capacity", capacity, rule)
    return capacity


def _text(error: str) -> bytes:
    """Return as much of what went wrong as a dead letter keeps."""
    return error[:2000].encode("utf-8", "replace")


def _encoded(queue: bytes) -> bytes:
    """Return a subscription's name as the scripts know it: the last part of its queue's key."""
    return queue.rpartition(b":")[2]
