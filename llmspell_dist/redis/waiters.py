"""Those who wait for a reply and are no plain future."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from llmspell_dist.errors import StoreUnavailableError
from llmspell_dist.redis.replies import error_from_reply, nothing_ran
from llmspell_dist.redis.resp import ErrorReply

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Callable

    from llmspell_dist.redis.commands import Command, ScriptCall
    from llmspell_dist.redis.wire import Entry

__all__ = ["Call", "CallOwner", "Probe"]


class CallOwner(Protocol):
    """The lane, as its calls see it."""

    @property
    def server(self) -> str:
        """What errors call the server."""

    def refused_call(self, entry: Entry, reply: ErrorReply) -> bool:
        """Take a refused call back to send it again; False if it fails."""


class Call:
    """Waits for the reply of a script call or of a plain write."""

    __slots__ = ("command", "future", "lane")

    def __init__(self, lane: CallOwner, command: Command | ScriptCall, future: Future[Any]) -> None:
        self.lane = lane
        self.command = command
        self.future = future

    def deliver(self, entry: Entry, reply: Any) -> None:
        """Resolve the call, or let the lane send it again."""
        if self.future.done():
            return
        if type(reply) is not ErrorReply:
            self.future.set_result(reply)
        elif not self.lane.refused_call(entry, reply):
            unsure = self.command.write and not nothing_ran(reply.text)
            self.future.set_exception(
                error_from_reply(reply, self.lane.server, may_have_happened=unsure)
            )

    def lost(self, entry: Entry, said: str) -> list[Entry]:
        """Keep a read; fail a write, since it may have happened."""
        if self.command.write and not self.future.done():
            error = StoreUnavailableError(self.lane.server, said, may_have_happened=True)
            self.future.set_exception(error)
        return [] if self.future.done() else [entry]

    def fail(self, cls: type[StoreUnavailableError], said: str) -> None:
        """Fail what was never sent, or may be sent twice."""
        if not self.future.done():
            self.future.set_exception(cls(self.lane.server, said))


class Probe:
    """Takes the reply of a request of the lane's own; it is never sent again."""

    __slots__ = ("_callback",)

    def __init__(self, callback: Callable[[Any], None] | None) -> None:
        self._callback = callback

    def deliver(self, entry: Entry, reply: Any) -> None:  # noqa: ARG002 - a Waiter
        """Hand the reply on."""
        if self._callback is not None:
            self._callback(reply)

    def lost(self, entry: Entry, said: str) -> list[Entry]:  # noqa: ARG002 - a Waiter
        """Give up."""
        return []

    def fail(self, cls: type[StoreUnavailableError], said: str) -> None:
        """Do nothing: nobody waits."""
