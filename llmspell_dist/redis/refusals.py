"""What to do about refusals that pass by themselves: send again, at once or after a pause."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from llmspell_dist.backoff import Backoff
from llmspell_dist.redis.replies import RETRIED, error_code

if TYPE_CHECKING:
    from llmspell_dist.redis.options import LaneOptions
    from llmspell_dist.redis.resp import ErrorReply
    from llmspell_dist.redis.wire import Entry

__all__ = ["Refusals", "RefusalsOwner"]

logger = logging.getLogger("llmspell_dist.redis")

_CALM_AFTER_S = 1.0
"""After so long without a refusal the pauses are short again."""


class RefusalsOwner(Protocol):
    """The lane, as far as refusals need it."""

    options: LaneOptions

    @property
    def server(self) -> str:
        """What errors call the server."""

    def resume(self, entries: list[Entry], *, elsewhere: ErrorReply | None) -> None:
        """Send the entries again; `elsewhere`: over a new connection, because of this refusal."""


class Refusals:
    """The entries of a lane that the server refused and that are to be sent again, in order."""

    __slots__ = ("_backoff", "_elsewhere", "_lane", "_resume_at", "again", "deferred")

    def __init__(self, lane: RefusalsOwner) -> None:
        self._lane = lane
        self._backoff = Backoff.within(lane.options.retry_budget)
        self._resume_at = 0.0
        self._elsewhere: ErrorReply | None = None
        self.again: list[Entry] = []
        """To be sent again at once."""
        self.deferred: list[Entry] = []
        """To be sent again after a pause."""

    def defer(self, entry: Entry, reply: ErrorReply) -> bool:
        """Keep an entry for later, if its refusal is one that passes and its budget allows."""
        code = error_code(reply.text)
        if code not in RETRIED:
            return False
        now = monotonic()
        if not self.deferred:
            if now - self._resume_at > _CALM_AFTER_S:
                self._backoff.reset()
            pause = self._backoff.next_s()
            self._resume_at = now + pause
        if self._resume_at >= entry[2] + self._lane.options.retry_budget:
            return False  # what the server says now is more than a later "timed out" would say
        if not self.deferred:
            logger.warning("%s: %s; trying again soon", self._lane.server, reply.text)
            asyncio.get_running_loop().call_later(self._resume_at - now, self._resume)
        self.deferred.append(entry)
        if code == "READONLY":
            self._elsewhere = reply
        return True

    def _resume(self) -> None:
        entries, self.deferred = self.deferred, []
        elsewhere, self._elsewhere = self._elsewhere, None
        if entries:
            # What was the primary is a replica now: its resolver may know a better one.
            self._lane.resume(entries, elsewhere=elsewhere)

    def take_again(self) -> list[Entry]:
        """Hand over what is to be sent at once."""
        entries, self.again = self.again, []
        return entries

    def take_all(self) -> list[Entry]:
        """Hand over everything."""
        entries, self.deferred = [*self.deferred, *self.again], []
        self.again = []
        return entries
