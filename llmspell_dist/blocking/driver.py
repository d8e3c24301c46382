"""Runs the steps of state operations in the calling thread."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, TypeVar

from llmspell_dist.errors import SpellError
from llmspell_dist.redis.commits import read_outcome
from llmspell_dist.state.housekeeping import INTERVAL_S, housekeep
from llmspell_dist.state.steps import Call, CommitRequest, Pause

if TYPE_CHECKING:
    from llmspell_dist.ack import Ack
    from llmspell_dist.redis.blocking_driver import BlockingDriver
    from llmspell_dist.redis.commits import Commit
    from llmspell_dist.redis.groups import Operation
    from llmspell_dist.retention import Retention
    from llmspell_dist.revision import Revision
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Steps

__all__ = ["SyncDriver"]

T = TypeVar("T")
logger = logging.getLogger("llmspell_dist")


class SyncDriver:
    """Carries steps out over blocking sockets; safe to share between threads.

    There is no thread of its own for housekeeping: now and then a call does some of it.
    """

    __slots__ = ("_due", "_execute", "_retention", "_submit", "connections", "core")

    def __init__(
        self, core: Core, connections: BlockingDriver, retention: Retention | None
    ) -> None:
        self.core = core
        self.connections = connections
        self._submit = connections.submit
        self._execute = connections.execute
        self._retention = retention
        self._due = float("inf") if retention is None else time.monotonic() + INTERVAL_S

    def submit(self, packed: bytes) -> Any:
        """Send a read and return the raw reply."""
        if time.monotonic() >= self._due:
            self._keep_house()
        return self._submit(packed)

    def commit(self, commit: Commit, ack: Ack | None = None) -> Any:
        """Send a commit and return its outcome."""
        if time.monotonic() >= self._due:
            self._keep_house()
        return self.connections.commit(commit, ack)

    def run(self, steps: Steps[T]) -> T:
        """Carry an operation out and return its result."""
        if time.monotonic() >= self._due:
            self._keep_house()
        send, reply = steps.send, None
        try:
            while True:
                request = send(reply)
                kind = type(request)
                if kind is CommitRequest:
                    reply = self.connections.commit(request.commit, request.ack)  # type: ignore[union-attr]
                elif kind is list:
                    reply = [self._execute(one) for one in request]  # type: ignore[union-attr]
                elif kind is Pause:
                    reply = self.pause(request.seconds)  # type: ignore[func-returns-value,union-attr]
                elif kind is Call:
                    reply = request.function(*request.arguments)  # type: ignore[union-attr]
                else:
                    reply = self._execute(request)  # type: ignore[arg-type]
        except StopIteration as done:
            result: T = done.value
            return result

    def pause(self, seconds: float) -> None:
        """Wait between two attempts."""
        time.sleep(seconds)

    def _keep_house(self) -> None:
        """Remove what expired and shorten the log, if it is this process's turn."""
        assert self._retention is not None  # noqa: S101 - else it is never due
        self._due = time.monotonic() + INTERVAL_S
        try:
            self.run(housekeep(self.core, self._retention))
        except SpellError as error:
            logger.debug("housekeeping failed, another process may do it: %s", error)

    def settle(self, operation: Operation) -> Revision | None:
        """Carry an operation of unknown outcome out, unless it was."""
        outcome: Any = self.connections.settle(operation)
        return read_outcome(outcome, operation.commit, self.core.server, operation.id).revision
