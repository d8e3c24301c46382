"""Renews leases while they are held, and says at once when one is lost. One timer for all."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any

from llmspell_dist.errors import SpellError
from llmspell_dist.leases.steps import why_not
from llmspell_dist.leases.terms import renew_after_s, retry_after_s, trusted_s

if TYPE_CHECKING:
    from asyncio import Future

    from llmspell_dist.leases.steps import Claim, LeaseSteps
    from llmspell_dist.redis.commands import ScriptCall
    from llmspell_dist.state.core import Core

__all__ = ["Grant", "Keeper"]

logger = logging.getLogger("llmspell_dist.leases")
logger.addHandler(logging.NullHandler())


_UNTIDY = 1024


class Grant:
    """A lease that was granted, and until when it counts as held here.

    Times are those of this machine's monotonic clock, counted from when a request was *sent*: the
    server gives the time to live later, so the lease is never thought to be held for longer than it
    is. The wall clock is not asked.
    """

    __slots__ = (
        "claim",
        "cores",
        "ended",
        "granted_ms",
        "lost_because",
        "next_look",
        "on_lost",
        "sent_at",
        "token",
        "ttl_ms",
    )

    def __init__(self, claim: Claim, token: int, sent_at: float) -> None:
        self.claim = claim
        self.token = token
        self.ttl_ms = claim.terms.ttl_ms
        """What is asked for."""
        self.granted_ms = self.ttl_ms
        """What was granted last."""
        self.sent_at = sent_at
        self.ended = False
        """Released or lost: nothing renews it any more."""
        self.lost_because = ""
        self.cores: list[Core] = []
        """What writes under it."""
        self.next_look = sent_at + renew_after_s(self.ttl_s)
        self.on_lost: Callable[[], None] | None = None

    @property
    def ttl_s(self) -> float:
        """The time to live in seconds."""
        return self.ttl_ms / 1000

    @property
    def deadline(self) -> float:
        """When it stops to count as held here, unless it is renewed before."""
        return self.sent_at + trusted_s(self.granted_ms / 1000)

    def want(self, ttl_ms: int) -> None:
        """Ask for another time to live from now on; a longer one counts when it is granted."""
        self.ttl_ms = ttl_ms
        self.granted_ms = min(self.granted_ms, ttl_ms)

    @property
    def holds(self) -> bool:
        """Whether it counts as held now."""
        return not self.ended and monotonic() < self.deadline

    def renewed(self, sent_at: float) -> None:
        """Note that a renewal for the present time to live, sent at this moment, was accepted."""
        self.sent_at = max(self.sent_at, sent_at)
        self.granted_ms = self.ttl_ms
        self.next_look = self.sent_at + renew_after_s(self.ttl_s)

    def end(self) -> None:
        """Note that it was released."""
        self.ended = True

    def disown(self) -> None:
        """In a forked child: it is the parent's, and the child must not write under it."""
        self.ended = True
        self.lost_because = "it belongs to the process that this one was forked from"
        for core in self.cores:
            core.disarm()

    def lose(self, because: str) -> None:
        """Note that it is held no more, and tell the holder; only the first time counts."""
        if self.ended:
            return
        self.ended = True
        self.lost_because = because
        target = self.claim.target
        logger.warning(
            "lease %s of %s lost: %s (token %d)", target.name, target.text, because, self.token
        )
        if self.on_lost is not None:
            try:
                self.on_lost()
            except Exception:
                # Of the holder's own function; the other leases must be renewed all the same.
                logger.exception("what was to be called for a lost lease failed")


class Keeper:
    """Sees to it that the grants given to it are renewed in time; belongs to one event loop."""

    def __init__(self, steps: LeaseSteps, execute: Callable[[ScriptCall], Future[Any]]) -> None:
        self._steps = steps
        self._execute = execute
        self._incoming: deque[Grant] = deque()
        self._heap: list[tuple[float, int, Grant]] = []
        self._most = _UNTIDY
        self._serial = count()
        self._timer: asyncio.TimerHandle | None = None
        self._due = float("inf")
        self._renewing: set[asyncio.Task[None]] = set()

    def keep(self, grant: Grant) -> None:
        """Renew a grant until it ends, if its holder wants that; else only watch its end."""
        if not grant.claim.terms.renew:
            grant.next_look = grant.deadline
        self._look(grant, grant.next_look)

    def offer(self, grant: Grant) -> bool:
        """Take a grant from another thread; whether the event loop must `collect` it now.

        It need not if it looks again anyhow before the grant wants anything: nearly always, since
        most leases have the same time to live.
        """
        self._incoming.append(grant)
        return grant.next_look < self._due

    def collect(self) -> None:
        """Begin to renew what other threads have offered."""
        while self._incoming:
            self.keep(self._incoming.popleft())

    def _look(self, grant: Grant, at: float) -> None:
        grant.next_look = at
        heappush(self._heap, (at, next(self._serial), grant))
        if len(self._heap) > self._most:
            self._tidy()
        if at < self._due:
            self._arm(at)

    def _tidy(self) -> None:
        """Drop what needs no look any more: short holds with a long time to live would pile up."""
        self._heap = [one for one in self._heap if not one[2].ended and one[2].next_look == one[0]]
        heapify(self._heap)
        self._most = max(_UNTIDY, 2 * len(self._heap))

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = at
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, at - monotonic()), self._tick)

    def _tick(self) -> None:
        # From here on whoever offers something wakes us; what was offered before is taken now.
        self._timer, self._due = None, float("inf")
        self.collect()
        now = monotonic()
        while self._heap and self._heap[0][0] <= now:
            at, _, grant = heappop(self._heap)
            if grant.ended or grant.next_look != at:
                continue  # released, or renewed by hand meanwhile
            if now >= grant.deadline:
                grant.lose("it was not renewed in time")
            elif grant.claim.terms.renew:
                # While the renewal is on its way only the end is watched.
                self._look(grant, grant.deadline)
                task = asyncio.get_running_loop().create_task(self._renew(grant))
                self._renewing.add(task)
                task.add_done_callback(self._renewing.discard)
            else:
                self._look(grant, grant.deadline)
        heap = self._heap
        while heap and heap[0][2].ended:
            heappop(heap)
        if heap and heap[0][0] < self._due:
            self._arm(heap[0][0])

    async def _renew(self, grant: Grant) -> None:
        sent_at, ttl_ms = monotonic(), grant.ttl_ms
        try:
            reply = await self._execute(self._steps.renew_call(grant.claim, grant.token, ttl_ms))
        except SpellError as error:
            if not grant.ended:
                logger.debug("a lease could not be renewed yet: %s", error)
                self._look(grant, min(monotonic() + retry_after_s(grant.ttl_s), grant.deadline))
            return
        if grant.ended:
            return
        if reply[0] == 1 and ttl_ms != grant.ttl_ms:
            # Renewed by hand for another time meanwhile: which of the two the server heard last is
            # not known, so it is asked for that time again.
            self._look(grant, monotonic())
        elif reply[0] == 1:
            grant.renewed(sent_at)
            self._look(grant, grant.next_look)
        else:
            grant.lose(why_not(reply, grant.token)[0])

    async def close(self) -> None:
        """Stop; nothing is renewed any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._heap.clear()
        for task in tuple(self._renewing):
            task.cancel()
        await asyncio.gather(*self._renewing, return_exceptions=True)
