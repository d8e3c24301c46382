"""The sending half of a lane: what leaves in a turn, what waits in line, what a reply leads to."""

from __future__ import annotations

import logging
from asyncio import Future
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

from llmspell_dist.redis.commands import ScriptCall
from llmspell_dist.redis.groups import Group
from llmspell_dist.redis.options import LaneOptions
from llmspell_dist.redis.refusals import Refusals
from llmspell_dist.redis.replies import NOSCRIPT, error_code, error_from_reply

if TYPE_CHECKING:
    from llmspell_dist.errors import StoreUnavailableError
    from llmspell_dist.redis.connection import EndpointResolver, ServerInfo
    from llmspell_dist.redis.groups import PackGroup
    from llmspell_dist.redis.resp import ErrorReply
    from llmspell_dist.redis.supervisor import Supervisor
    from llmspell_dist.redis.waiters import Call
    from llmspell_dist.redis.wire import Entry, Wire

__all__ = ["Sending"]

logger = logging.getLogger("llmspell_dist.redis")
logger.addHandler(logging.NullHandler())

_WRITE_CHUNK_BYTES = 256 * 1024


class Sending:
    """Entries on their way to the server and back, over one wire after another.

    A turn leaves at once if nothing is in the way. Else it waits in the backlog, in order: for a
    connection, for room in flight, in the transport or in the ring. What a lost connection or a
    passing refusal gives back goes before it.
    """

    _supervisor: Supervisor

    def __init__(
        self,
        resolver: EndpointResolver,
        name: str,
        options: LaneOptions,
        pack_group: PackGroup,
    ) -> None:
        self.name = name
        self.resolver = resolver
        self.options = options
        self._pack_group = pack_group
        self._begin()

    def _begin(self) -> None:
        """Start from nothing: at construction, and in the child after a fork."""
        # A child must not ask the server to end what is the parent's connection.
        self.info: ServerInfo | None = None
        self.backlog: deque[Entry] = deque()
        self.closing = False
        self._wire: Wire | None = None
        self._turn: list[Entry] = []
        self._turn_has_groups = False
        self._scheduled = False
        self._now = 0.0
        self._clock_due = float("inf")
        self._groups: dict[object, Group] = {}
        self._refusals = Refusals(self)
        self._idle: Future[None] | None = None

    @property
    def server(self) -> str:
        """What errors call the server."""
        return self.resolver.label if self.info is None else self.info.address

    @property
    def in_flight(self) -> int:
        """Requests that were sent and are not answered."""
        return 0 if self._wire is None else len(self._wire.pending)

    # --- out -------------------------------------------------------------------------------------

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

    def resume(self, entries: list[Entry], *, elsewhere: ErrorReply | None) -> None:
        """Send again what the server refused a while ago."""
        self.backlog.extendleft(reversed(entries))
        if elsewhere is not None and self._wire is not None:
            self._supervisor.leave(self._wire, error_from_reply(elsewhere, self.server))
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

    def _is_idle(self) -> bool:
        return not (
            self.backlog
            or self._turn
            or self._refusals.deferred
            or (self._wire is not None and self._wire.pending)
        )
