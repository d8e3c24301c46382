"""The lane: one shared connection under all callers of an event loop, with group commit.

What is submitted in one turn of the loop leaves in one write. While there is no connection, or too
much is in flight, requests wait in a backlog, in order. `supervisor.Supervisor` connects, watches
and gives up; `wire.Wire` is the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from asyncio import Future, get_running_loop
from collections import deque
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from llmspell_dist.errors import (
    ClosedError,
    StoreBusyError,
    StoreUnavailableError,
    WrongEventLoopError,
)
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.commits import pack_group as default_pack_group
from llmspell_dist.redis.fork import keep_forever, on_fork
from llmspell_dist.redis.groups import (
    GROUP_BYTES,
    GROUP_ITEMS,
    Group,
    PackGroup,
    SizedCommit,
)
from llmspell_dist.redis.options import LaneOptions
from llmspell_dist.redis.refusals import Refusals
from llmspell_dist.redis.replies import NOSCRIPT, error_code, error_from_reply
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.ring import Operation, Ring, RingKey, ring_key
from llmspell_dist.redis.supervisor import Supervisor
from llmspell_dist.redis.waiters import Call, Probe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmspell_dist.clock import ServerClock
    from llmspell_dist.redis.commands import ScriptSource
    from llmspell_dist.redis.connection import EndpointResolver, ServerInfo
    from llmspell_dist.redis.resp import ErrorReply
    from llmspell_dist.redis.wire import Entry, Wire

__all__ = ["Lane", "LaneOptions"]

logger = logging.getLogger("llmspell_dist.redis")
logger.addHandler(logging.NullHandler())

_WRITE_CHUNK_BYTES = 256 * 1024
_JOIN_WITHIN_S = 0.25
_TIME = pack("TIME")


class Lane:
    """One connection, kept alive, shared by everything that runs in one event loop.

    The constructor does no I/O; the first request connects. Futures that are cancelled leave their
    place in the queue. Reads and commits survive a lost connection (commits by their operation
    id); a plain write in flight fails, since nothing can tell whether it happened.
    """

    eager_items = 16
    """A group of this many leaves before the turn ends, so that the server works on it while the
    rest of the turn is prepared."""

    def __init__(
        self,
        resolver: EndpointResolver,
        *,
        name: str = "fast",
        options: LaneOptions | None = None,
        scripts: Sequence[ScriptSource] = (),
        clock: ServerClock | None = None,
        key_of_ring: RingKey = ring_key,
        pack_group: PackGroup = default_pack_group,
    ) -> None:
        self.name = name
        self.resolver = resolver
        self.options = options or LaneOptions()
        self.scripts = tuple(scripts)
        self.clock = clock
        self._key_of_ring = key_of_ring
        self._pack_group = pack_group
        self._begin()
        on_fork(self)

    def _begin(self) -> None:
        """Start from nothing: at construction, and in the child after a fork."""
        # A child must not ask the server to end what is the parent's connection.
        self.info: ServerInfo | None = None
        self.ring = Ring(self._key_of_ring)
        self.backlog: deque[Entry] = deque()
        self.closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._create_future: Callable[[], Future[Any]] = _no_loop
        self._wire: Wire | None = None
        self._turn: list[Entry] = []
        self._turn_has_groups = False
        self._scheduled = False
        self._now = 0.0
        self._clock_due = 0.0 if self.clock is not None else float("inf")
        self._groups: dict[object, Group] = {}
        self._refusals = Refusals(self)
        self._idle: Future[None] | None = None
        self._supervisor = Supervisor(self)

    @property
    def server(self) -> str:
        """What errors call the server."""
        return self.resolver.label if self.info is None else self.info.address

    @property
    def in_flight(self) -> int:
        """Requests that were sent and are not answered."""
        return 0 if self._wire is None else len(self._wire.pending)

    # --- submitting -----------------------------------------------------------------------------

    def submit(self, packed: bytes) -> Future[Any]:
        """Send a read; the future gives the raw reply."""
        if get_running_loop() is not self._loop:
            self._bind()
        if not self._scheduled:
            self._schedule()
        future = self._create_future()
        self._turn.append((future, packed, self._now))
        return future

    def execute(self, command: Command | ScriptCall) -> Future[Any]:
        """Send one command or script call; the future gives the raw reply."""
        if type(command) is Command and not command.write:
            return self.submit(command.packed)
        if get_running_loop() is not self._loop:
            self._bind()
        if not self._scheduled:
            self._schedule()
        future = self._create_future()
        call = Call(self, command, future)
        self._turn.append((call, command.request(), self._now))
        return future

    def commit(self, commit: SizedCommit) -> Future[Any]:
        """Send a commit, together with others of this turn; the future gives its outcome."""
        return self._join(commit, commit.shard)

    def _join(self, commit: SizedCommit, key: object) -> Future[Any]:
        """Let a commit go with the open group of this key, or open a new one."""
        if get_running_loop() is not self._loop:
            self._bind()
        if not self._scheduled:
            self._schedule()
        group = self._groups.get(key)
        if (
            group is None
            or len(group.futures) >= GROUP_ITEMS
            or group.size + commit.size > GROUP_BYTES
            or self._now - group.at > _JOIN_WITHIN_S
        ):
            group = self._groups[key] = self._new_group(commit.shard, self.ring)
            group.key = key
            self._turn.append((group, None, self._now))
            self._turn_has_groups = True
        future = self._create_future()
        group.add(commit, future)
        if len(group.futures) == self.eager_items:
            self._flush()
        return future

    def _new_group(self, shard: bytes, ring: Ring) -> Group:
        return Group(self, shard, ring, self._now)

    def settle(self, operation: Operation) -> Future[Any]:
        """Send a commit again under its operation id; the future gives its first outcome."""
        if get_running_loop() is not self._loop:
            self._bind()
        if not self._scheduled:
            self._schedule()
        ring = Ring.of_operation(operation, self._key_of_ring, elapsed_s=time() - operation.at)
        group = self._new_group(operation.commit.shard, ring)
        future = self._create_future()
        group.add(operation.commit, future)
        group.first = operation.sequence
        group.sent = True
        self._turn.append((group, None, self._now))
        self._turn_has_groups = True
        return future

    def ask(self, packed: bytes, callback: Callable[[Any], None] | None = None) -> None:
        """Send something of the lane's own, to which nobody's call is bound."""
        if not self._scheduled:
            self._schedule()
        self._turn.append((Probe(callback), packed, self._now))

    def check_loop(self) -> None:
        """Raise `WrongEventLoopError` in another event loop than that of the first use."""
        if self._loop is not None and get_running_loop() is not self._loop:
            raise WrongEventLoopError(
                "a client belongs to the event loop that used it first; "
                "make one client per event loop (and per asyncio.run)"
            )

    def _bind(self) -> None:
        self.check_loop()
        loop = self._loop = get_running_loop()
        self._create_future = loop.create_future
        self._supervisor.start(loop)

    def _schedule(self) -> None:
        """Open a turn: what is submitted until the loop comes round leaves in one write."""
        if self.closing:
            raise ClosedError("the client is closed")
        if len(self.backlog) >= self.options.max_queued:
            raise StoreBusyError(self.server, f"{len(self.backlog):,} requests wait already")
        now = self._now = monotonic()
        self._scheduled = True
        get_running_loop().call_soon(self._flush)
        if now >= self._clock_due:
            self._clock_due = now + self.options.clock_interval
            # First in the write, so that the sample is there before the replies that need it.
            self._turn.append((Probe(self._clock_sample(now)), _TIME, now))

    def _clock_sample(self, sent_at: float) -> Callable[[Any], None]:
        def take(reply: Any) -> None:
            if type(reply) is list and self.clock is not None:
                self.clock.observe(sent_at, monotonic(), int(reply[0]) + int(reply[1]) / 1e6)

        return take

    # --- sending --------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Send the turn: at once if nothing is in the way, else through the backlog."""
        self._scheduled = False
        turn = self._turn
        if not turn:
            return
        self._turn = []
        wire = self._wire
        if (
            wire is not None
            and wire.writable
            and not self._turn_has_groups
            and not self.backlog
            and len(wire.pending) + len(turn) <= self.options.max_in_flight
        ):
            wire.pending.extend(turn)
            wire.write(b"".join([entry[1] for entry in turn]), len(turn), self._now)  # type: ignore[misc]
            return
        self._turn_has_groups = False
        self.backlog.extend(turn)
        self._drain()
        if wire is None:
            self._supervisor.wake()

    def _drain(self) -> None:
        """Send from the backlog, in order, as much as connection and ring take."""
        wire = self._wire
        backlog = self.backlog
        if wire is None:
            return
        room = self.options.max_in_flight - len(wire.pending)
        while backlog and room > 0 and wire.writable:
            chunk: list[bytes] = []
            size = 0
            while backlog and len(chunk) < room and size < _WRITE_CHUNK_BYTES:
                entry = backlog.popleft()
                packed = entry[1]
                if packed is None:
                    packed = self._pack(entry)
                    if packed is None:
                        break
                if packed and not (type(entry[0]) is Future and entry[0].done()):
                    wire.pending.append(entry)
                    chunk.append(packed)
                    size += len(packed)
            if not chunk:
                return
            room -= len(chunk)
            wire.write(b"".join(chunk), len(chunk), monotonic())

    def _pack(self, entry: Entry) -> bytes | None:
        """Return a group's request; empty if nobody waits for it; None if the ring is full."""
        group: Group = entry[0]
        if not group.number():
            self.backlog.appendleft(entry)
            return None
        self._shut(group)
        if not group.first:
            return b""
        try:
            return group.pack(self._pack_group)
        except Exception as error:  # noqa: BLE001 - one bad commit must not stop the lane
            group.abandon(error)
            return b""

    def _shut(self, group: Group) -> None:
        """Let nothing more join a group."""
        if self._groups.get(group.key) is group:
            del self._groups[group.key]

    # --- what the wire tells --------------------------------------------------------------------

    def progressed(self) -> None:
        """Send more, since replies came in."""
        if self._refusals.again:
            self.backlog.extendleft(reversed(self._refusals.take_again()))
        if self.backlog:
            self._drain()
        if self._idle is not None and self._is_idle() and not self._idle.done():
            self._idle.set_result(None)

    def refused(self, entry: Entry, reply: ErrorReply) -> None:
        """Retry or fail a read that was answered by an error."""
        if not self._refusals.defer(entry, reply):
            entry[0].set_exception(error_from_reply(reply, self.server))

    def refused_group(self, entry: Entry, reply: ErrorReply) -> bool:
        """Retry a refused group, if that can help."""
        group: Group = entry[0]
        if error_code(reply.text) == NOSCRIPT and not group.with_body:
            group.with_body = True  # nothing ran, so the retry flag stays as it was
            self._refusals.again.append(entry)
            return True
        return self._refusals.defer(entry, reply)

    def refused_call(self, entry: Entry, reply: ErrorReply) -> bool:
        """Retry a refused command or script call, if that can help."""
        call: Call = entry[0]
        if error_code(reply.text) == NOSCRIPT and isinstance(call.command, ScriptCall):
            packed = call.command.request(with_body=True)
            self._refusals.again.append((call, packed, entry[2]))
            return True
        return self._refusals.defer(entry, reply)

    def resume(self, entries: list[Entry], *, elsewhere: bool) -> None:
        """Send again what the server refused a while ago."""
        self.backlog.extendleft(reversed(entries))
        if elsewhere and self._wire is not None:
            self._wire.kill("the server became a replica")
        if self._wire is None:
            self._supervisor.wake()
        self._drain()

    def wire_lost(self, wire: Wire, said: str) -> None:
        """Keep what can be sent again, in order; fail the rest."""
        if wire is not self._wire:
            return
        self._wire = None
        self._take_back(wire, said)
        if not (self.closing and self._is_idle()):
            logger.warning("%s lane: lost %s: %s", self.name, self.server, said)
        self._supervisor.lost(said)
        self.progressed()

    def _take_back(self, wire: Wire, said: str) -> None:
        """Put what was sent and not answered before the backlog, as far as it can be sent again."""
        keep: list[Entry] = []
        for entry in wire.pending:
            waiter = entry[0]
            if type(waiter) is not Future:
                keep.extend(waiter.lost(entry, said))
            elif not waiter.done():
                keep.append(entry)
        wire.pending.clear()
        keep.extend(self._refusals.take_again())
        self.backlog.extendleft(reversed(keep))

    # --- what the supervisor tells --------------------------------------------------------------

    def attach(self, wire: Wire) -> None:
        """Serve requests over a connection that was greeted."""
        self.info = wire.info
        self._wire = wire
        self._clock_due = max(self._clock_due, monotonic() + self.options.clock_interval)
        self._drain()

    def expire(self, now: float, cls: type[StoreUnavailableError], said: str) -> None:
        """Fail what waits in the backlog for longer than its budget."""
        oldest = now - self.options.retry_budget
        if self.backlog and any(entry[2] <= oldest for entry in self.backlog):
            entries = list(self.backlog)
            self.backlog.clear()
            for entry in entries:
                if entry[2] <= oldest:
                    self._fail(entry, cls, said)
                else:
                    self.backlog.append(entry)
            self.progressed()

    def fail_all(self, cls: type[StoreUnavailableError], said: str) -> None:
        """Fail everything that waits."""
        entries = [*self.backlog, *self._refusals.take_all()]
        self.backlog.clear()
        for entry in entries:
            self._fail(entry, cls, said)
        self.progressed()

    def _fail(self, entry: Entry, cls: type[StoreUnavailableError], said: str) -> None:
        waiter = entry[0]
        if type(waiter) is not Future:
            if isinstance(waiter, Group):
                self._shut(waiter)
            waiter.fail(cls, said)
        elif not waiter.done():
            waiter.set_exception(cls(self.server, said))

    # --- the end --------------------------------------------------------------------------------

    def _is_idle(self) -> bool:
        return not (
            self.backlog
            or self._turn
            or self._refusals.deferred
            or (self._wire is not None and self._wire.pending)
        )

    async def close(self) -> None:
        """Refuse new requests, wait for those in flight (at most `close_timeout`), disconnect.

        What is not answered in time fails as if the connection were lost for good. Closing twice
        is allowed.
        """
        self.check_loop()
        self.closing = True
        if self._loop is None:
            return
        if not self._is_idle():
            self._idle = self._idle or self._loop.create_future()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.options.close_timeout):
                    await asyncio.shield(self._idle)
        wire, self._wire = self._wire, None
        if wire is not None:
            self._take_back(wire, "the client was closed")
        self.fail_all(StoreUnavailableError, "the client was closed before the server answered")
        await self._supervisor.stop()
        if wire is not None:
            await wire.close()

    def forget(self) -> None:
        """Drop everything that was inherited over a fork, without touching the parent's socket."""
        keep_forever(self._wire, self._supervisor, self._loop, self._turn, self.backlog)
        self._supervisor.forget()
        was_closed = self.closing
        self._begin()
        self.closing = was_closed


def _no_loop() -> Future[Any]:
    raise AssertionError("a lane binds its loop before it makes a future")
