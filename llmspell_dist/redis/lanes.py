"""The async driver: three lanes to one server, chosen by what a request does to its neighbours."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from llmspell_dist.clock import ServerClock
from llmspell_dist.redis.commands import BULK_BYTES, Command, ScriptCall
from llmspell_dist.redis.durable import AckLevel, DurableLane
from llmspell_dist.redis.lane import Lane, LaneOptions
from llmspell_dist.redis.resp import pack

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Sequence
    from types import TracebackType

    from llmspell_dist.redis.commands import ScriptSource
    from llmspell_dist.redis.connection import EndpointResolver, ServerInfo
    from llmspell_dist.redis.groups import Operation, SizedCommit

__all__ = ["Lanes"]

_PING = pack("PING")


class Lanes:
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
    ) -> None:
        options = options or LaneOptions()
        self.options = options
        self.clock = clock or ServerClock()
        self.fast = Lane(resolver, name="fast", options=options, scripts=scripts, clock=self.clock)
        self.bulk = Lane(resolver, name="bulk", options=options, scripts=scripts, clock=self.clock)
        # Its replies wait for a WAIT: they would say little about the time.
        self.durable = DurableLane(resolver, name="durable", options=options, scripts=scripts)
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

    async def close(self) -> None:
        """Refuse new requests, wait for those in flight, disconnect. See `Lane.close`."""
        self.check_loop()  # before any of them is closed
        self.refuse()
        await asyncio.gather(*[lane.close() for lane in self._all()])

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

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        await self.close()


def _size(command: Command | ScriptCall) -> int:
    if isinstance(command, Command):
        return len(command.packed)
    return sum([len(argument) for argument in command.args])
