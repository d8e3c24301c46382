"""Leases for clients: taken, renewed and given back by handles, and handed over at the end."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import uuid4

from llmspell_dist.errors import InvalidArgumentError, LeaseNotHeldError, SpellError
from llmspell_dist.leases.handles import Handle
from llmspell_dist.leases.model import LeaseMode
from llmspell_dist.leases.steps import not_held
from llmspell_dist.leases.terms import trusted_s
from llmspell_dist.revision import from_ms
from llmspell_dist.sidecar.receiving import ClientGoneError

if TYPE_CHECKING:
    from llmspell_dist.leases.holding import Lease
    from llmspell_dist.leases.manager import Leases
    from llmspell_dist.sidecar.services import Services

__all__ = ["Leasing", "Taken", "handle_of"]

logger = logging.getLogger("llmspell_dist.sidecar")
_UNTIDY: Final = 1024
_ATTEMPTS: Final = 4096
_HANDED_OVER_WITHIN_S: Final = 2.0


class Taken(NamedTuple):
    """A lease that a client holds from now on."""

    handle: Handle
    left_s: float
    """Seconds for which it holds at least, if it is not renewed."""


class Leasing:
    """What the sidecar does with leases for clients that have only a handle.

    The client renews, so the library's own keeper has no part in it. What was taken or renewed here
    is remembered for one purpose: a stop hands it over at once, instead of after its time to live.
    """

    def __init__(self, services: Services) -> None:
        self._leases: Leases = services.spell.leases
        self._steps = self._leases.steps
        self._remembers = not services.settings.keep_leases
        self._lent: dict[bytes, tuple[Handle, float]] = {}
        self._most = _UNTIDY
        self._attempts: dict[str, Handle | None] = {}
        """What attempts were granted, lately; None: they were abandoned."""
        services.ending.append(self.hand_over)

    @property
    def leases(self) -> Leases:
        """The library's leases."""
        return self._leases

    def __len__(self) -> int:
        """How many leases would be handed over now."""
        now = monotonic()
        return sum(until > now for _, until in self._lent.values())

    # --- taking

    @staticmethod
    def new_owner() -> str:
        """Return an owner that nobody else is: not the task, which may serve another request."""
        return uuid4().hex

    async def acquire(
        self,
        scope: str,
        name: str,
        *,
        owner: str | None,
        reentrant: bool,
        attempt: str | None = None,
        **terms: Any,
    ) -> Taken:
        """Take a lease for a client, waiting in line if it wants that.

        `attempt`: by what the client may `abandon` it, should it go before it has the answer.
        """
        if owner is None and reentrant:
            rule = "must be given with reentrant: the same owner holds it again"
            raise InvalidArgumentError("owner", None, rule)
        owner = owner or self.new_owner()
        lease = await self._leases.acquire(
            *(scope,),
            name=name,
            owner=owner,
            reentrant=reentrant,
            on_lost="event",
            renew=False,
            **terms,
        )
        # From here on it is the client's: nothing watches it here, and nothing is sent for that.
        lease.end()
        handle = handle_of(lease)
        left_s = lease.grant.deadline - monotonic()
        self._remember(handle, left_s)
        if attempt is not None and not self._enter(attempt, handle):
            await self.release(handle)
            raise ClientGoneError
        return Taken(handle, left_s)

    def _enter(self, attempt: str, handle: Handle) -> bool:
        """Note what an attempt was granted; False if it was abandoned meanwhile."""
        if self._attempts.get(attempt, handle) is None:
            return False
        self._note(attempt, handle)
        return True

    def _note(self, attempt: str, outcome: Handle | None) -> None:
        if len(self._attempts) >= _ATTEMPTS:
            del self._attempts[next(iter(self._attempts))]
        self._attempts[attempt] = outcome

    async def abandon(self, attempt: str) -> None:
        """Leave nothing behind of an attempt, whether it was granted or is on its way still."""
        known = self._attempts.pop(attempt, None)
        self._note(attempt, None)
        if known is not None:
            with suppress(LeaseNotHeldError):
                await self.release(known)

    def _remember(self, handle: Handle, left_s: float) -> None:
        if not self._remembers:
            return
        if len(self._lent) >= self._most:
            now = monotonic()
            self._lent = {key: one for key, one in self._lent.items() if one[1] > now}
            self._most = max(_UNTIDY, 2 * len(self._lent))
        self._lent[_place(handle)] = handle, monotonic() + left_s

    # --- by handle

    async def renew(self, handle: Handle, ttl: float | None = None) -> Taken:
        """Keep a lease for another while; `LeaseNotHeldError` says why it cannot."""
        claim = handle.claim(self._steps, ttl)
        sent_at = monotonic()
        reply = await self._leases.execute(
            self._steps.renew_call(claim, handle.token, claim.terms.ttl_ms)
        )
        if reply[0] == 0:
            self._lent.pop(_place(handle), None)
            raise not_held(claim, "renew it", reply, handle.token)
        renewed = handle._replace(ttl_ms=claim.terms.ttl_ms)
        left_s = sent_at + trusted_s(claim.terms.ttl_s) - monotonic()
        self._remember(renewed, left_s)
        return Taken(renewed, left_s)

    async def release(self, handle: Handle) -> None:
        """Give a lease back; the next in line has it at once."""
        claim, leases = handle.claim(self._steps), self._leases
        await leases.at("lease:before_release", claim.target, handle.token)
        self._lent.pop(_place(handle), None)
        reply = await leases.give_back(claim, handle.token)
        if reply[0] == 0:
            raise not_held(claim, "release it", reply, handle.token)
        leases.counted.note("released")
        note = self._steps.note_call(claim, handle.token, "released")
        if note is not None:
            await leases.execute(note)
        await leases.at("lease:after_release", claim.target, handle.token)

    # --- the end

    async def hand_over(self) -> None:
        """Give back what clients still hold through this sidecar, all at once."""
        now, steps = monotonic(), self._steps
        held = [handle for handle, until in self._lent.values() if until > now]
        self._lent.clear()
        waiting = []
        for handle in held:
            try:
                call = steps.release_call(handle.claim(steps), handle.token)
                waiting.append(self._leases.execute(call))
            except SpellError as error:
                logger.warning("a client's lease could not be handed over: %s", error)
        if not waiting:
            return
        await asyncio.wait(waiting, timeout=_HANDED_OVER_WITHIN_S)
        told = [future.result() for future in waiting if _answered(future)]
        over = sum(reply[0] != 0 for reply in told)
        logger.info("handed over %d leases that clients held through this sidecar", over)

    def expires(self, left_s: float) -> datetime:
        """Return about when a time is over, by the server's clock where that is known: for people.

        Who counts on a lease counts from when the request was sent that took or renewed it.
        """
        bounds = self._steps.core.clock.bounds_ms()
        now = datetime.now(UTC) if bounds is None else from_ms(int(bounds[0]))
        return now + timedelta(seconds=left_s)


def _answered(future: asyncio.Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _place(handle: Handle) -> bytes:
    """Return under what a hold is remembered."""
    return handle.nonce or f"{handle.scope}\0{handle.name}\0{handle.owner}".encode()


def handle_of(lease: Lease) -> Handle:
    """Return the handle of a lease that was just taken."""
    claim = lease.grant.claim
    return Handle(
        claim.target.text,
        claim.target.name,
        LeaseMode(claim.terms.mode),
        lease.owner,
        lease.token,
        claim.nonce,
        claim.terms.ttl_ms,
    )
