"""The blocking driver: the lanes' promises for threads, over a small pool of plain sockets."""

from __future__ import annotations

import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from llmspell_dist.clock import ServerClock
from llmspell_dist.closing import Closing
from llmspell_dist.errors import ClosedError, StoreBusyError
from llmspell_dist.fork import on_fork
from llmspell_dist.redis.blocking_attempts import Attempts, Call, CommitRequest, Read, Request
from llmspell_dist.redis.blocking_socket import BlockingSocket
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.options import LaneOptions
from llmspell_dist.redis.resp import ErrorReply, ProtocolError, pack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmspell_dist.redis.commands import ScriptSource
    from llmspell_dist.redis.connection import EndpointResolver, ServerInfo
    from llmspell_dist.redis.durable import AckLevel
    from llmspell_dist.redis.groups import Operation, SizedCommit

__all__ = ["BlockingDriver"]

_PING = pack("PING")


class BlockingDriver(Closing):
    """What `Lanes` is to coroutines, for threads: each call has a connection for itself.

    The constructor does no I/O. Usable from any thread, and again after a fork.
    """

    def __init__(
        self,
        resolver: EndpointResolver,
        *,
        options: LaneOptions | None = None,
        scripts: Sequence[ScriptSource] = (),
        clock: ServerClock | None = None,
        max_connections: int = 16,
    ) -> None:
        self.resolver = resolver
        self.options = options or LaneOptions()
        self.clock = clock or ServerClock()
        self.info: ServerInfo | None = None
        self._scripts = tuple(scripts)
        self._max = max_connections
        self._closed = False
        self._most_replicas = 0
        self._begin()
        on_fork(self)

    def _begin(self) -> None:
        self._idle: deque[BlockingSocket] = deque()
        self._all: list[BlockingSocket] = []
        self._returned = threading.Condition()
        self._waiting = 0

    def forget(self) -> None:
        """Drop everything that was inherited over a fork."""
        for connection in self._all:
            connection.forget()
        self._begin()

    @property
    def server(self) -> str:
        """What errors call the server."""
        return self.resolver.label if self.info is None else self.info.address

    # --- the pool -------------------------------------------------------------------------------

    def _take(self) -> BlockingSocket:
        if self._closed:
            raise ClosedError("the client is closed")
        try:
            return self._idle.pop()  # the one used last: the others may age
        except IndexError:
            return self._take_another()

    def _take_another(self) -> BlockingSocket:
        deadline = monotonic() + self.options.retry_budget
        with self._returned:
            while True:
                if self._closed:
                    raise ClosedError("the client is closed")
                if self._idle:
                    return self._idle.pop()
                if len(self._all) < self._max:
                    connection = BlockingSocket(self.options, self._scripts, self.clock)
                    self._all.append(connection)
                    return connection
                left = deadline - monotonic()
                if left <= 0:
                    said = (
                        f"all {self._max} connections were busy for {self.options.retry_budget:g} s"
                    )
                    raise StoreBusyError(self.server, said)
                self._waiting += 1
                # Bounded, because a connection may come back just before we are counted.
                self._returned.wait(min(left, 0.05))
                self._waiting -= 1

    def _give_back(self, connection: BlockingSocket) -> None:
        self._idle.append(connection)
        if self._waiting or self._closed:
            with self._returned:
                self._returned.notify()

    # --- calls ----------------------------------------------------------------------------------

    def submit_sync(self, packed: bytes) -> Any:
        """Send a read and return the raw reply."""
        connection = self._take()
        try:
            if connection.connected:
                try:
                    reply = connection.round_trip(packed)
                except (OSError, ProtocolError):
                    pass  # as any other failed attempt: again, with a budget
                else:
                    if type(reply) is not ErrorReply:
                        return reply
            return Attempts(self, connection, Read(packed)).run()
        finally:
            self._give_back(connection)

    submit = submit_sync

    def execute(self, command: Command | ScriptCall) -> Any:
        """Send a command or script call and return the raw reply."""
        if type(command) is Command and not command.write:
            return self.submit_sync(command.packed)
        return self._run(Call(command))

    def commit(self, commit: SizedCommit, ack: AckLevel | None = None) -> Any:
        """Send a commit and return its outcome; an `AckedOutcome` if `ack` asks for a level."""
        return self._run(CommitRequest(commit, ack))

    def settle(self, operation: Operation) -> Any:
        """Send the commit of an unknown outcome again and return its first outcome."""
        return self._run(CommitRequest(operation.commit, operation.ack, operation))

    def _run(self, request: Request) -> Any:
        connection = self._take()
        try:
            return Attempts(self, connection, request).run()
        finally:
            self._give_back(connection)

    def ping(self) -> float:
        """Return the seconds that a round trip takes."""
        started = monotonic()
        self.submit_sync(_PING)
        return monotonic() - started

    def replicas_known(self, info: ServerInfo | None) -> int:
        """How many replicas "all" means."""
        if self.options.replicas is not None:
            return self.options.replicas
        if info is not None:
            self._most_replicas = max(self._most_replicas, info.replicas)
        return max(1, self._most_replicas)

    # --- the end --------------------------------------------------------------------------------

    def close(self, within: float | None = None) -> None:
        """Refuse new calls, wait for those in flight (at most `close_timeout`), disconnect."""
        self._closed = True
        deadline = monotonic() + (self.options.close_timeout if within is None else within)
        with self._returned:
            while len(self._idle) < len(self._all) and (left := deadline - monotonic()) > 0:
                self._returned.wait(min(left, 0.05))
            idle = set(map(id, self._idle))
            for connection in self._all:
                if id(connection) in idle:
                    connection.disconnect()
                else:
                    connection.interrupt()

    def __enter__(self) -> Self:
        """Connect, so that wrong credentials are found here."""
        try:
            self.ping()
        except BaseException:
            self.close()
            raise
        return self

    @property
    def closed(self) -> bool:
        """Whether new calls are refused."""
        return self._closed
