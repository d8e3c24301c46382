"""The lane: one shared connection under all callers of an event loop, with group commit.

What is submitted in one turn of the loop leaves in one write. This is the half that callers see;
`sending.Sending` is the other. `supervisor.Supervisor` connects, watches and gives up; `wire.Wire`
is the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import Future, get_running_loop
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from llmspell_dist.errors import (
    ClosedError,
    StoreBusyError,
    StoreUnavailableError,
)
from llmspell_dist.fork import keep_forever, on_fork
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.commits import pack_group as default_pack_group
from llmspell_dist.redis.groups import (
    GROUP_BYTES,
    GROUP_ITEMS,
    Group,
    PackGroup,
    SizedCommit,
)
from llmspell_dist.redis.options import LaneOptions
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.ring import Operation, Ring, RingKey, ring_key
from llmspell_dist.redis.sending import Sending
from llmspell_dist.redis.supervisor import Supervisor
from llmspell_dist.redis.waiters import Call, Probe
from llmspell_dist.redis.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmspell_dist.clock import ServerClock
    from llmspell_dist.redis.commands import ScriptSource
    from llmspell_dist.redis.connection import EndpointResolver

__all__ = ["Lane", "LaneOptions"]

_JOIN_WITHIN_S = 0.25
_TIME = pack("TIME")


class Lane(Sending):
    """One connection, kept alive, shared by everything that runs in one event loop.

    The constructor does no I/O; the first request connects. Futures that are cancelled leave their
    place in the queue. Reads and commits survive a lost connection (commits by their operation
    id); a plain write in flight fails, since nothing can tell whether it happened.
    """

    eager_reads = 24
    """So many requests leave before the turn ends, so that the server works on them meanwhile."""
    eager_items = 20
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
        self.scripts = tuple(scripts)
        self.clock = clock
        self._key_of_ring = key_of_ring
        super().__init__(resolver, name, options or LaneOptions(), pack_group)
        on_fork(self)

    def _begin(self) -> None:
        super()._begin()
        self.ring = Ring(self._key_of_ring)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._create_future: Callable[[], Future[Any]] = _no_loop
        if self.clock is not None:
            self._clock_due = 0.0
        self._supervisor = Supervisor(self, self.make_wire)

    def make_wire(self, owner: Any) -> Wire:
        """Return the protocol of a new connection."""
        return Wire(owner)

    # --- submitting -----------------------------------------------------------------------------

    def submit(self, packed: bytes) -> Future[Any]:
        """Send a read; the future gives the raw reply."""
        if get_running_loop() is not self._loop:
            self._bind()
        if not self._scheduled:
            self._schedule()
        future = self._create_future()
        turn = self._turn
        turn.append((future, packed, self._now))
        if len(turn) == self.eager_reads:
            self._flush()
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

    def execute_now(self, call: ScriptCall) -> Future[Any]:
        """Send a script call without waiting for the end of the turn, if the lane is quiet.

        One caller alone saves a turn of the event loop; of many at once the first one goes ahead,
        and the others leave in one write as always.
        """
        wire = self._wire
        if (
            wire is None
            or wire.pending
            or self._turn
            or self.backlog
            or self.closing
            or not wire.writable
            or get_running_loop() is not self._loop
        ):
            return self.execute(call)
        future = self._create_future()
        request, now = call.request(), monotonic()
        wire.pending.append((Call(self, call, future), request, now))
        wire.write(request, 1, now)
        return future

    def commit(self, commit: SizedCommit) -> Future[Any]:
        """Send a commit, together with others of this turn; the future gives its outcome."""
        return self._join(commit, commit.shard)

    def follow(self, future: Future[Any]) -> Future[Any] | None:
        """Return a new future for a commit whose future was cancelled; None: it had not left."""
        for cancelled, outcome in self.ring.missed:
            if cancelled is future:
                again = self._create_future()
                again.set_result(outcome)
                return again
        for group in self.ring.unresolved():
            if isinstance(group, Group) and future in group.futures:
                again = group.futures[group.futures.index(future)] = self._create_future()
                return again
        return None

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
        self._supervisor.check_loop()

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
            try:
                server_s = int(reply[0]) + int(reply[1]) / 1e6
            except (TypeError, ValueError, LookupError):
                return  # refused, or not what TIME says: the estimate grows old, and reads ask
            if self.clock is not None:
                self.clock.observe(sent_at, monotonic(), server_s)

        return take

    # --- the end --------------------------------------------------------------------------------

    async def close(self, within: float | None = None) -> None:
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
                async with asyncio.timeout(
                    self.options.close_timeout if within is None else within
                ):
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
