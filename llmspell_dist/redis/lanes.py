"""The async driver: three lanes to one server, chosen by what a request does to its neighbours."""

from __future__ import annotations

import asyncio
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from llmspell_dist.clock import ServerClock
from llmspell_dist.closing import AsyncClosing
from llmspell_dist.redis.commands import BULK_BYTES, Command, ScriptCall
from llmspell_dist.redis.durable import AckLevel, DurableLane
from llmspell_dist.redis.lane import Lane, LaneOptions
from llmspell_dist.redis.resp import pack

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from llmspell_dist.redis.commands import ScriptSource
    from llmspell_dist.redis.connection import EndpointResolver, ServerInfo
    from llmspell_dist.redis.groups import Operation, SizedCommit
    from llmspell_dist.redis.metering import Meter

__all__ = ["Lanes"]

_PING = pack("PING")


class Lanes(AsyncClosing):
    """Everything that one event loop says to one server.

    *fast* never blocks; *bulk* takes what is large or slow; *durable* takes commits that wait for
    replicas or the disk. Each connects at its first use. The constructor does no I/O.
    """

    def __init__(
        self,
        resolver: EndpointResolver,
        *,
        options: LaneOptions | None = None,
        scripts: Sequence[ScriptSource] = (),
        clock: ServerClock | None = None,
        meter: Meter | None = None,
    ) -> None:
        options = options or LaneOptions()
        self.options = options
        self.clock = clock or ServerClock()
        lane, durable = _kinds(meter)
        self.fast = lane(resolver, name="fast", options=options, scripts=scripts, clock=self.clock)
        self.bulk = lane(resolver, name="bulk", options=options, scripts=scripts, clock=self.clock)
        # Its replies wait for a WAIT: they would say little about the time.
        self.durable = durable(resolver, name="durable", options=options, scripts=scripts)
        self.submit = self.fast.submit

    @property
    def server(self) -> str:
        """What errors call the server."""
        return self.fast.server

    @property
    def info(self) -> ServerInfo | None:
        """What the server said at the last connect; None before the first."""
        return self.fast.info or self.bulk.info or self.durable.info

    def execute(self, command: Command | ScriptCall) -> Future[Any]:
        """Send a command or script call; the future gives the raw reply."""
        if type(command) is ScriptCall and command.prompt:
            return self.fast.execute_now(command)
        if command.bulk or _size(command) > BULK_BYTES:
            return self.bulk.execute(command)
        return self.fast.execute(command)

    def commit(self, commit: SizedCommit, ack: AckLevel | None = None) -> Future[Any]:
        """Send a commit; the future gives its outcome, as bytes.

        Without `ack`, or with one that asks for nothing, that is when the server has it in memory.
        Otherwise the outcome is an `AckedOutcome`, which says whether the level was reached.
        """
        if ack is not None and (ack.local_fsync or ack.replicas):
            return self.durable.commit_acked(commit, ack)
        if commit.size > BULK_BYTES:
            return self.bulk.commit(commit)
        return self.fast.commit(commit)

    def follow(self, future: Future[Any]) -> Future[Any] | None:
        """Return a new future for a commit whose future was cancelled; None: it had not left."""
        for lane in self._all():
            found = lane.follow(future)
            if found is not None:
                return found
        return None

    def settle(self, operation: Operation) -> Future[Any]:
        """Send the commit of an unknown outcome again; the future gives its first outcome."""
        ack: AckLevel | None = operation.ack
        if ack is not None and (ack.local_fsync or ack.replicas):
            return self.durable.settle_acked(operation, ack)
        if operation.commit.size > BULK_BYTES:
            return self.bulk.settle(operation)
        return self.fast.settle(operation)

    async def ping(self) -> float:
        """Return the seconds that a round trip takes."""
        started = monotonic()
        await self.fast.submit(_PING)
        return monotonic() - started

    async def close(self, within: float | None = None) -> None:
        """Refuse new requests, wait for those in flight, disconnect. See `Lane.close`."""
        self.check_loop()  # before any of them is closed
        self.refuse()
        await asyncio.gather(*[lane.close(within) for lane in self._all()])

    def ending(self, within: float | None = None) -> Ending:
        """Return what closes behind a block, and after `close_timeout` in any case.

        So what is to be said before the end is said, and a server that does not answer holds up
        nobody: what the block waits for fails then.
        """
        return Ending(self, self.fast.options.close_timeout if within is None else within)

    def refuse(self) -> None:
        """Refuse new requests; those in flight go on, until `close`."""
        for lane in self._all():
            lane.closing = True

    def check_loop(self) -> None:
        """Raise `WrongEventLoopError` in another event loop than that of the first use."""
        for lane in self._all():
            lane.check_loop()

    def _all(self) -> tuple[Lane, Lane, Lane]:
        return (self.fast, self.bulk, self.durable)

    async def __aenter__(self) -> Self:
        """Connect, so that wrong credentials are found here."""
        try:
            await self.ping()
        except BaseException:
            await self.close()
            raise
        return self


class Ending:
    """The last block in which lanes are used; no generator, since those may be closing already."""

    def __init__(self, lanes: Lanes, limit_s: float) -> None:
        self._lanes = lanes
        self._limit_s = limit_s
        self._until = inf

    def left_s(self, *, kept: float = 0.0) -> float:
        """Return how long may be waited still, if this share of the limit is kept for others."""
        return max(0.0, self._until - kept * self._limit_s - monotonic())

    async def __aenter__(self) -> Self:
        self._until = monotonic() + self._limit_s
        self._cutting = asyncio.create_task(self._cut())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._lanes.close()
        finally:
            self._cutting.cancel()
            await asyncio.wait([self._cutting])

    async def _cut(self) -> None:
        await asyncio.sleep(self._limit_s)
        await self._lanes.close(0)


def _kinds(meter: Meter | None) -> tuple[Callable[..., Lane], Callable[..., DurableLane]]:
    """Return what makes lanes; those that count are another kind: the others pay nothing."""
    if meter is None:
        return Lane, DurableLane
    from llmspell_dist.redis.metering import MeteredDurableLane, MeteredLane  # noqa: PLC0415

    return partial(MeteredLane, meter), partial(MeteredDurableLane, meter)


def _size(command: Command | ScriptCall) -> int:
    if isinstance(command, Command):
        return len(command.packed)
    return sum([len(argument) for argument in command.args])
