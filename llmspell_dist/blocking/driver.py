"""Runs the steps of state operations in the calling thread."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

from llmspell_dist.errors import SpellError
from llmspell_dist.redis.commits import read_outcome
from llmspell_dist.redis.durable import AckedOutcome
from llmspell_dist.state.housekeeping import INTERVAL_S, complain, housekeep
from llmspell_dist.state.interception import NOTHING_SEEN, Interceptor
from llmspell_dist.state.steps import Call, CommitRequest, Pause

if TYPE_CHECKING:
    from llmspell_dist.ack import Ack
    from llmspell_dist.redis.blocking_driver import BlockingDriver
    from llmspell_dist.redis.commits import Commit
    from llmspell_dist.redis.groups import Operation
    from llmspell_dist.revision import Revision
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.interception import FollowedCommit
    from llmspell_dist.state.steps import Request, Steps

__all__ = ["SyncDriver"]

T = TypeVar("T")


class SyncDriver:
    """Carries steps out over blocking sockets; safe to share between threads.

    There is no thread of its own for housekeeping: now and then a call does some of it.
    """

    __slots__ = ("_due", "_submit", "connections", "core", "execute", "seen")

    def __init__(self, core: Core, connections: BlockingDriver, *, housekeeping: bool) -> None:
        self.core = core
        self.seen: Interceptor = NOTHING_SEEN
        """Who wants to know which keys its housekeeping removes."""
        self.connections = connections
        self._submit = connections.submit
        self.execute = connections.execute
        self._due = time.monotonic() + INTERVAL_S if housekeeping else float("inf")

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

    def followed(self, followed: FollowedCommit) -> Any:
        """Send a commit and return its outcome."""
        return self.commit(followed.commit)

    def run(self, steps: Steps[T], followed: FollowedCommit | None = None) -> T:  # noqa: ARG002
        """Carry an operation out and return its result; a thread cannot be cancelled."""
        if time.monotonic() >= self._due:
            self._keep_house()
        go_on, given = steps.send, None
        try:
            while True:
                request = go_on(given)
                try:
                    given = self._carry_out(request)
                    go_on = steps.send
                except SpellError as error:  # the steps may know what to do
                    go_on, given = steps.throw, error
        except StopIteration as done:
            result: T = done.value
            return result

    def _carry_out(self, request: Request) -> Any:
        if isinstance(request, CommitRequest):
            return self.connections.commit(request.commit, request.ack)
        if isinstance(request, list):
            return [self.execute(one) for one in request]
        if isinstance(request, Pause):
            return self.pause(request.seconds)
        if isinstance(request, Call):
            return request.function(*request.arguments)
        return self.execute(request)

    def over(self, core: Core) -> SyncDriver:
        """Return a driver of another core over the same connections."""
        return SyncDriver(core, self.connections, housekeeping=False)

    def pause(self, seconds: float) -> None:
        """Wait between two attempts."""
        time.sleep(seconds)

    def _keep_house(self) -> None:
        """Remove what expired and shorten the log, if it is this process's turn."""
        self._due = time.monotonic() + INTERVAL_S
        try:
            self.run(housekeep(self.core, self.seen))
        except Exception as error:  # noqa: BLE001 - no reason to break a user's call
            complain(self.core, "housekeeping", error)

    def settle(self, operation: Operation) -> Revision | None:
        """Carry an operation of unknown outcome out, unless it was."""
        outcome: Any = self.connections.settle(operation)
        if type(outcome) is AckedOutcome and not outcome.reached:
            self.core.refuse_ack(outcome)
        return read_outcome(outcome, operation.commit, self.core.server, operation.id).revision
