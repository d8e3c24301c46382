"""Waiting in line for a lease: asleep until woken, and asking rarely in case nobody can wake us."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from llmspell_dist.errors import ClosedError, LeaseUnavailableError
from llmspell_dist.leases.steps import Place
from llmspell_dist.leases.terms import look_again_s
from llmspell_dist.leases.waiting import CLOSED, GRANTED, RESUMED

if TYPE_CHECKING:
    from asyncio import Future

    from llmspell_dist.leases.steps import Claim, LeaseSteps
    from llmspell_dist.leases.waiting import Waiter, Wakes
    from llmspell_dist.redis.commands import ScriptCall

__all__ = ["Line", "left_s"]

_LEAST_SLEEP_S = 1.0


class LineOwner(Protocol):
    """The lease manager, as a line sees it."""

    @property
    def execute(self) -> Callable[[ScriptCall], Future[Any]]:
        """Send a script call."""

    async def give_back(self, claim: Claim, token: int | None) -> list[Any]:
        """Release a hold or a place."""

    def abandon(self, claim: Claim) -> None:
        """Leave nothing behind of an attempt, without waiting for that."""


class Line:
    """The places in line of this client.

    The server grants a lease to the first in line when it comes free and publishes that to its
    client. When exactly is not known here, only that it was after this client asked last: if that
    is long ago, the grant is renewed first. Nobody can wake the line when a holder dies, so the
    first in line also looks when the holder's time is over.
    """

    def __init__(self, steps: LeaseSteps, wakes: Wakes, owner: LineOwner) -> None:
        self._steps = steps
        self._wakes = wakes
        self._owner = owner

    async def wait(self, claim: Claim, started: float) -> tuple[int, float]:
        """Wait in line; the token, and when the request was sent that gave it."""
        waiter = self._wakes.enter(claim.nonce)
        try:
            await self._wakes.listen(claim.target.shard)
            return await self._until_granted(claim, waiter, started)
        except BaseException:
            self._owner.abandon(claim)
            raise
        finally:
            self._wakes.leave(claim.nonce)

    async def _until_granted(
        self, claim: Claim, waiter: Waiter, started: float
    ) -> tuple[int, float]:
        steps, wait_s = self._steps, claim.terms.wait_s
        call = steps.acquire_call(claim, wait=True, left_s=left_s(started, wait_s))
        while True:
            sent_at = monotonic()
            reply = await self._owner.execute(call)
            place = steps.read_acquire(claim, reply, sent_at - started)
            if not isinstance(place, Place):
                return place, sent_at
            token = await self._sleep(claim, waiter, place, started)
            if token and monotonic() < sent_at + claim.terms.ttl_s / 2:
                return steps.seen(token), sent_at  # granted after we asked last: that is the bound
            if token:
                sent_at = monotonic()
                reply = await self._owner.execute(
                    steps.renew_call(claim, token, claim.terms.ttl_ms)
                )
                if reply[0] == 1:
                    return steps.seen(token), sent_at
            call = steps.again_call(claim, place, left_s(started, wait_s))

    async def _sleep(self, claim: Claim, waiter: Waiter, place: Place, started: float) -> int:
        """Return the token of a grant that wants to be confirmed; 0 when it is time to ask."""
        # It may go on to one who holds it for a shorter time and dies, and the server's clock may
        # step back: nobody sleeps for longer than its own time to live.
        holder_s = min(place.holder_s, max(claim.terms.ttl_s, _LEAST_SLEEP_S))
        look_at = monotonic() + look_again_s(place.place, holder_s)
        while True:
            left = left_s(started, claim.terms.wait_s)
            pause = max(0.0, look_at - monotonic())
            message = await waiter.next(pause if left is None else min(pause, left))
            kind = message[:1]
            if kind == GRANTED:
                # One from before we asked is over: it came late, by another connection.
                token = int.from_bytes(message[1:9], "big")
                return token if token > place.last_token else 0
            if kind == RESUMED:
                return 0
            if kind == CLOSED:
                raise ClosedError("the client was closed while it waited")
            if left_s(started, claim.terms.wait_s) == 0:
                await self._give_up(claim, started)
            if monotonic() >= look_at:
                return 0

    async def _give_up(self, claim: Claim, started: float) -> None:
        """Leave the queue, or give back what was granted at the last moment; always raises."""
        await self._owner.give_back(claim, None)
        target = claim.target
        reply = await self._owner.execute(self._steps.show_call(target, 0))
        info = self._steps.read_show(target, reply)
        waited_s = monotonic() - started
        raise LeaseUnavailableError(target.text, target.name, waited_s, info.holders)


def left_s(started: float, wait_s: float | None) -> float | None:
    """How many of the seconds to wait are left; None: they have no end."""
    return None if wait_s is None else max(0.0, wait_s - (monotonic() - started))
