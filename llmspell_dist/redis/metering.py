"""What goes over the connections, counted: a batch of replies at a time, not a call at a time.

A client with telemetry has these lanes instead of the plain ones, so that one without pays nothing.
The clock is read once for all replies that come in together, and most of what is counted is counted
once a group, a batch or a connection.
"""

from __future__ import annotations

from asyncio import Future
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.errors import (
    ClassChangedError,
    ConflictError,
    CorruptRecordError,
    LeaseRequiredError,
    NumberOverflowError,
    OperationReusedError,
    OutcomeUnknownError,
    SpellError,
    StagedElementsLostError,
    StaleFencingTokenError,
    WrongKindError,
)
from llmspell_dist.fork import child_safe_lock, on_fork
from llmspell_dist.observation import SIZE_BOUNDS, Histogram
from llmspell_dist.redis.durable import DurableLane
from llmspell_dist.redis.groups import Group
from llmspell_dist.redis.lane import Lane
from llmspell_dist.redis.replies import error_from_reply
from llmspell_dist.redis.resp import ErrorReply
from llmspell_dist.redis.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmspell_dist.errors import StoreUnavailableError
    from llmspell_dist.redis.blocking_driver import BlockingDriver
    from llmspell_dist.redis.commands import Command, ScriptCall
    from llmspell_dist.redis.durable import AckLevel
    from llmspell_dist.redis.groups import Operation, PackGroup, Ring, SizedCommit
    from llmspell_dist.redis.wire import Entry

__all__ = ["LaneCounts", "Meter", "MeteredConnections", "MeteredDurableLane", "MeteredLane"]

COMMIT: Final = "commit"
_READ: Final = b"*3\r\n$4\r\nHGET\r\n"
_READS: Final = len(_READ)
_DIGITS: Final = frozenset(b"0123456789-")
_CODES: Final = {
    b"CONFLICT": ConflictError.code,
    b"REUSED": OperationReusedError.code,
    b"UNKNOWN": OutcomeUnknownError.code,
    b"FENCED": StaleFencingTokenError.code,
    b"UNLEASED": LeaseRequiredError.code,
    b"KIND": WrongKindError.code,
    b"CLASS": ClassChangedError.code,
    b"OVERFLOW": NumberOverflowError.code,
    b"STAGED": StagedElementsLostError.code,
    b"CORRUPT": CorruptRecordError.code,
}


class LaneCounts:
    """What one lane did since the client was opened."""

    __slots__ = ("connections", "losses", "received", "retries", "sent")

    def __init__(self) -> None:
        self.connections = 0
        """Connections made and greeted."""
        self.losses = 0
        """Connections lost."""
        self.retries = 0
        """Requests sent again."""
        self.sent = self.received = 0
        """Bytes."""


class Meter:
    """The counts of one client; read by whoever exports them, from any thread."""

    def __init__(self) -> None:
        self.lock = child_safe_lock()
        self.lanes: dict[str, Lane] = {}
        """Those that run on an event loop, by name: how full they are is asked when it is read."""
        self.forget()
        on_fork(self)

    def forget(self) -> None:
        """Begin with nothing: at construction, and in a forked child."""
        self.durations: dict[tuple[str, str], Histogram] = {}
        """By operation (a command or a script) and error code (empty: it went well)."""
        self.groups = Histogram(SIZE_BOUNDS)
        """Commits in a script call."""
        self.counts: dict[str, LaneCounts] = {}

    def lane(self, name: str) -> LaneCounts:
        """Return the counts of a lane."""
        return self.counts.setdefault(name, LaneCounts())

    def took(self, operation: str, seconds: float, times: int = 1, error: str = "") -> None:
        """Count requests that were answered, or given up, after so long."""
        key = operation, error
        found = self.durations.get(key)
        if found is None:
            found = self.durations.setdefault(key, Histogram())
        found.add(seconds, times)

    def settled(self, seconds: float, outcomes: Sequence[Any]) -> None:
        """Count the members of a group."""
        refused = [one for one in outcomes if type(one) is not ErrorReply and one[0] not in _DIGITS]
        if len(outcomes) > len(refused):
            self.took(COMMIT, seconds, len(outcomes) - len(refused))
        for outcome in refused:
            self.took(COMMIT, seconds, error=code_of(outcome))


def code_of(outcome: bytes) -> str:
    """Return the stable error code of what the commit script refused."""
    return _CODES.get(bytes(outcome).partition(b" ")[0], SpellError.code)


def operation_of(packed: bytes) -> str:
    """Return the command of a packed request."""
    return packed.split(b"\r\n", 3)[2].decode("ascii", "replace").upper()


class _MeteredGroup(Group):
    """A group that is counted when it is answered."""

    __slots__ = ()

    def settle(self, outcomes: Sequence[Any]) -> None:
        super().settle(outcomes)
        _meter(self).settled(monotonic() - self.at, outcomes)

    def pack(self, pack_group: PackGroup) -> bytes:
        if not self.sent:
            _meter(self).groups.add(len(self.commits))
        return super().pack(pack_group)

    def refuse(self, reply: ErrorReply) -> None:
        code = error_from_reply(reply, self._lane.server).code
        _meter(self).took(COMMIT, monotonic() - self.at, len(self.futures), code)
        super().refuse(reply)

    def fail(self, cls: type[StoreUnavailableError], said: str, *, sent: bool = False) -> None:
        code = OutcomeUnknownError.code if sent or self.sent else cls.code
        _meter(self).took(COMMIT, monotonic() - self.at, len(self.futures), code)
        super().fail(cls, said, sent=sent)


def _meter(group: Group) -> Meter:
    meter: Meter = group._lane.meter  # type: ignore[attr-defined]  # noqa: SLF001 - of its own lane
    return meter


class _MeteredWire(Wire):
    """A connection whose replies are counted as they come."""

    __slots__ = ("_lane",)

    def __init__(self, lane: MeteredLane) -> None:
        super().__init__(lane)
        self._lane = lane

    def write(self, data: bytes, count: int, now: float) -> None:
        self._lane.counts.sent += len(data)
        super().write(data, count, now)

    def data_received(self, data: bytes) -> None:
        lane = self._lane
        lane.counts.received += len(data)
        pending, sent = self.pending, self._sent
        entries = tuple(pending)
        super().data_received(data)
        if self._lost or self.info is None:
            return  # what was pending goes on elsewhere, or this is the handshake
        lane.answered(entries, len(entries) + self._sent - sent - len(pending))


class MeteredLane(Lane):
    """A lane that counts."""

    def __init__(self, meter: Meter, *args: Any, **kwargs: Any) -> None:
        self.meter = meter
        super().__init__(*args, **kwargs)
        meter.lanes[self.name] = self

    def _begin(self) -> None:
        self.counts = self.meter.lane(self.name)
        self._refused: list[Entry] = []
        super()._begin()

    def make_wire(self, owner: Any) -> Wire:
        """Return the protocol of a new connection."""
        return _MeteredWire(owner)

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._wire is not None

    @property
    def queued(self) -> int:
        """Requests that wait to be sent."""
        return len(self.backlog)

    def _new_group(self, shard: bytes, ring: Ring) -> Group:
        return _MeteredGroup(self, shard, ring, self._now)

    def answered(self, entries: tuple[Entry, ...], count: int) -> None:
        """Count the first so many of the entries, which were answered just now."""
        now = monotonic()
        took = self.meter.took
        reads, since = 0, 0.0
        refused, self._refused = self._refused, []
        for entry in islice(entries, count):
            waiter, packed, at = entry
            if type(waiter) is not Future:
                command = getattr(waiter, "command", None)
                if command is not None and not _among(entry, refused):
                    took(command.name, now - at)
            elif packed[:_READS] == _READ and not refused:  # type: ignore[index]
                if at != since:  # nearly always the same: they left together
                    if reads:
                        took("HGET", now - since, reads)
                    reads, since = 0, at
                reads += 1
            elif not _among(entry, refused):
                took(operation_of(packed or b""), now - at)
        if reads:
            took("HGET", now - since, reads)

    # --- what goes wrong

    def refused(self, entry: Entry, reply: ErrorReply) -> None:
        """Retry or fail a read that was answered by an error."""
        super().refused(entry, reply)
        self._refused.append(entry)
        if entry[0].done():
            self._count_refusal(operation_of(entry[1] or b""), entry, reply)

    def refused_call(self, entry: Entry, reply: ErrorReply) -> bool:
        """Retry a refused command or script call, if that can help."""
        deferred = super().refused_call(entry, reply)
        self._refused.append(entry)
        if not deferred:
            self._count_refusal(entry[0].command.name, entry, reply)
        return deferred

    def _count_refusal(self, operation: str, entry: Entry, reply: ErrorReply) -> None:
        code = error_from_reply(reply, self.server).code
        self.meter.took(operation, monotonic() - entry[2], error=code)

    def _fail(self, entry: Entry, cls: type[StoreUnavailableError], said: str) -> None:
        waiter = entry[0]
        command = getattr(waiter, "command", None)
        if command is not None:
            self.meter.took(command.name, monotonic() - entry[2], error=cls.code)
        elif type(waiter) is Future and not waiter.done():
            operation = operation_of(entry[1] or b"")
            self.meter.took(operation, monotonic() - entry[2], error=cls.code)
        super()._fail(entry, cls, said)

    # --- connections

    def attach(self, wire: Wire) -> None:
        """Serve requests over a connection that was greeted."""
        self.counts.connections += 1
        super().attach(wire)

    def wire_lost(self, wire: Wire, said: str) -> None:
        """Keep what can be sent again, in order; fail the rest."""
        if wire is self._wire:
            self.counts.losses += not self.closing
        super().wire_lost(wire, said)

    def _take_back(self, wire: Wire, said: str) -> None:
        waiting = len(self.backlog)
        super()._take_back(wire, said)
        if not self.closing:
            self.counts.retries += len(self.backlog) - waiting

    def resume(self, entries: list[Entry], *, elsewhere: ErrorReply | None) -> None:
        """Send again what the server refused a while ago."""
        self.counts.retries += len(entries)
        super().resume(entries, elsewhere=elsewhere)


def _among(entry: Entry, refused: list[Entry]) -> bool:
    """Whether an entry was refused; nearly always nothing was."""
    return bool(refused) and any(one is entry for one in refused)


class MeteredDurableLane(MeteredLane, DurableLane):
    """A durable lane that counts its waits, and its calls that are no commits."""

    def _new_group(self, shard: bytes, ring: Ring) -> Group:
        return DurableLane._new_group(self, shard, ring)  # noqa: SLF001 - of its own base

    def commit_acked(self, commit: SizedCommit, level: AckLevel) -> Future[Any]:
        """Send a commit; the future gives an `AckedOutcome`."""
        future = super().commit_acked(commit, level)
        began = monotonic()

        def over(done: Future[Any]) -> None:
            # They are few, and wait for a disk or a replica: a callback each is nothing.
            if not done.cancelled():
                self._count_acked(monotonic() - began, done)

        future.add_done_callback(over)
        return future

    def _count_acked(self, seconds: float, done: Future[Any]) -> None:
        if done.exception() is None:
            self.meter.settled(seconds, [done.result()])
        else:
            code = getattr(done.exception(), "code", SpellError.code)
            self.meter.took(COMMIT, seconds, error=code)


class MeteredConnections:
    """The connections of a blocking client, counted: a call there takes some 90 µs anyway."""

    def __init__(self, connections: BlockingDriver, meter: Meter) -> None:
        self._connections = connections
        self._meter = meter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connections, name)

    def submit(self, packed: bytes) -> Any:
        """Send a read; see `BlockingDriver.submit`."""
        operation = "HGET" if packed[:_READS] == _READ else operation_of(packed)
        return self._timed(operation, self._connections.submit, packed)

    def execute(self, command: Command | ScriptCall) -> Any:
        """Send a command or script call; see `BlockingDriver.execute`."""
        return self._timed(command.name, self._connections.execute, command)

    def commit(self, commit: SizedCommit, ack: AckLevel | None = None) -> Any:
        """Send a commit; see `BlockingDriver.commit`."""
        return self._timed(COMMIT, self._connections.commit, commit, ack)

    def settle(self, operation: Operation) -> Any:
        """Send the commit of an unknown outcome again; see `BlockingDriver.settle`."""
        return self._timed(COMMIT, self._connections.settle, operation)

    def _timed(self, operation: str, call: Callable[..., Any], *arguments: Any) -> Any:
        began, error = monotonic(), ""
        try:
            reply = call(*arguments)
            if operation is COMMIT and reply[0] not in _DIGITS:
                error = code_of(reply)
        except SpellError as failure:
            error = failure.code
            raise
        finally:
            seconds = monotonic() - began
            with self._meter.lock:
                self._meter.took(operation, seconds, error=error)
        return reply
