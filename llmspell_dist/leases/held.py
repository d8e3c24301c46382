"""What is known about a lease that is held, the same for coroutines and threads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from llmspell_dist.errors import LeaseLostError, LeaseNotHeldError, SpellError
from llmspell_dist.leases.model import LeaseMode
from llmspell_dist.leases.steps import BROKEN, not_held, why_not
from llmspell_dist.leases.terms import check_ttl

if TYPE_CHECKING:
    from llmspell_dist.leases.keeper import Grant
    from llmspell_dist.leases.steps import LeaseSteps
    from llmspell_dist.redis.commands import ScriptCall
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.core import Core

__all__ = ["Held", "HeldGroup", "LeaseDesk", "Signal"]

logger = logging.getLogger("llmspell_dist.leases")

S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)


class Signal(Protocol):
    """An event of asyncio or of threading, which can tell why it fired."""

    reason: str

    def set(self) -> None:
        """Fire."""

    def is_set(self) -> bool:
        """Whether it has fired."""


class LeaseDesk(Protocol[S_co]):
    """The lease manager of either surface, as what is held sees it; it gives a state manager."""

    steps: LeaseSteps

    def state_of(self, core: Core, /) -> S_co:
        """Return the shared state over a core."""

    def keep(self, grant: Grant) -> None:
        """Renew a grant until it ends."""

    def over(self, grant: Grant) -> None:
        """Take note that a grant is over."""

    def note(self, grant: Grant, what: str, reason: str | None = None) -> None:
        """Remember what became of a grant with its correlation, without waiting for that."""


class Held(Generic[S]):
    """A lease that this process holds."""

    def __init__(self, desk: LeaseDesk[S], grant: Grant, lost: Signal) -> None:
        self._desk = desk
        self.grant = grant
        """For services: what the server granted."""
        self._signal = lost
        self._core: Core | None = None
        self._state: S | None = None
        grant.on_lost = self._lose

    def __repr__(self) -> str:
        held = "held" if self.held else "not held"
        return f"<Lease {self.name!r} of {self.scope}, token {self.token}, {held}>"

    # --- what it is

    @property
    def scope(self) -> Scope:
        """The scope."""
        return self.grant.claim.target.scope.scope

    @property
    def name(self) -> str:
        """The name of the lease within its scope."""
        return self.grant.claim.target.name

    @property
    def mode(self) -> LeaseMode:
        """Exclusive or shared."""
        return self.grant.claim.terms.mode

    @property
    def owner(self) -> str:
        """Who holds it, as the server knows it."""
        return self.grant.claim.owner.decode()

    @property
    def token(self) -> int:
        """The fencing token: higher than that of every earlier grant."""
        return self.grant.token

    @property
    def ttl_s(self) -> float:
        """Seconds for which each renewal holds."""
        return self.grant.ttl_s

    @property
    def is_lost(self) -> bool:
        """Whether it is known to be lost."""
        return self._signal.is_set()

    @property
    def held(self) -> bool:
        """Whether it counts as held: not released, not lost, and renewed lately enough.

        A little before the server's time is over this turns False. It is what this process knows;
        only the store's check of a write that carries the lease is proof.
        """
        return self.grant.holds

    @property
    def expires_in_s(self) -> float:
        """Seconds for which it counts as held without another renewal; 0 if it is not."""
        return max(0.0, self.grant.deadline - monotonic()) if self.grant.holds else 0.0

    def check(self) -> None:
        """Raise `LeaseLostError` if the lease does not count as held any more."""
        if not self.grant.holds:
            raise self.lost_error()

    @property
    def core(self) -> Core:
        """Builds operations whose every commit carries the lease; for services."""
        if self._core is None:
            self._core = self._desk.steps.fenced_core(self.grant)
        return self._core

    @property
    def state(self) -> S:
        """The shared state; every write through it carries the lease, or is refused."""
        if self._state is None:
            self._state = self._desk.state_of(self.core)
        return self._state

    # --- what its shells send

    def renewal(self, ttl: float | timedelta | None) -> ScriptCall:
        """Return what asks for another while.

        The keeper asks for the same from now on. What it asked for before may still be on its way,
        and count: until the answer is there, the lease counts as held for the shorter of the two.
        """
        self.must_be_open("renew it")
        grant = self.grant
        if ttl is not None:
            grant.want(check_ttl(ttl))
        return self._desk.steps.renew_call(grant.claim, grant.token, grant.ttl_ms)

    def renewed(self, reply: list[Any], sent_at: float) -> float:
        """Take the answer to a renewal; the seconds for which it holds."""
        grant = self.grant
        if reply[0] != 1:
            grant.lose(why_not(reply, grant.token)[0])
            raise not_held(grant.claim, "renew it", reply, grant.token)
        grant.renewed(sent_at)
        self._desk.keep(grant)
        return grant.ttl_s

    def released(self, reply: list[Any]) -> None:
        """Take the answer to a release."""
        if reply[0] == 0:
            raise not_held(self.grant.claim, "release it", reply, self.grant.token)
        self._desk.note(self.grant, "released")

    def end(self) -> None:
        """Nothing renews it any more."""
        self.grant.end()
        self._desk.over(self.grant)

    def turned_out_lost(self, gone: LeaseNotHeldError) -> None:
        """Let `lost` fire: the server did not know it when it was released."""
        self.grant.lost_because = gone.why
        self.mark_lost()

    # --- when it ends

    def must_be_open(self, operation: str) -> None:
        """Raise `LeaseNotHeldError` if it was released or lost."""
        if self.grant.ended:
            target = self.grant.claim.target
            why = self.grant.lost_because or "it was released already"
            raise LeaseNotHeldError(target.text, target.name, operation, why)

    def lost_error(self) -> LeaseLostError:
        """Return the error that says why it is not held."""
        grant = self.grant
        reason = grant.lost_because
        if not reason:
            reason = "it was released already" if grant.ended else "it was not renewed in time"
        return LeaseLostError(grant.claim.target.text, self.name, reason, self.token)

    def mark_lost(self) -> None:
        """Let `lost` fire."""
        self._signal.reason = self.grant.lost_because
        self._signal.set()
        self._desk.over(self.grant)
        because = self.grant.lost_because
        what = "broken" if because.startswith(BROKEN) else "lost"
        self._desk.note(self.grant, what, because)

    def _lose(self) -> None:
        self.mark_lost()
        reaction = self.grant.claim.terms.on_lost
        if callable(reaction):
            self.call(reaction)
        elif reaction == "cancel":
            self.cancel_holder()

    def call(self, reaction: Callable[[Any], Any]) -> None:
        """Call what the holder wants to be called when the lease is lost."""
        reaction(self)

    def cancel_holder(self) -> None:
        """Stop whoever works under the lease, if there is a way."""


def note_failed_release(what: object, error: SpellError) -> None:
    """Say that something was not given back, where another error is on its way already."""
    logger.warning("%r could not be given back, it ends by itself: %s", what, error)


H = TypeVar("H", bound="Held[Any]")


class HeldGroup(Generic[H, S]):
    """Leases that were taken together; a sequence of them. Each is renewed by itself."""

    def __init__(self, desk: LeaseDesk[S], held: list[H]) -> None:
        self._desk = desk
        self._held = tuple(held)
        self._state: S | None = None

    def __repr__(self) -> str:
        return f"<LeaseGroup of {len(self._held)}>"

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[H]:
        return iter(self._held)

    def __getitem__(self, place: int) -> H:
        return self._held[place]

    @property
    def held(self) -> bool:
        """Whether all of them count as held."""
        return all(lease.held for lease in self._held)

    @property
    def state(self) -> S:
        """The shared state; every write through it carries all the leases, or is refused."""
        if self._state is None:
            core = self._desk.steps.fenced_core(*[lease.grant for lease in self._held])
            self._state = self._desk.state_of(core)
        return self._state

    def check(self) -> None:
        """Raise `LeaseLostError` if one of them does not count as held any more."""
        for lease in self._held:
            lease.check()

    def lost_ones(self) -> list[H]:
        """Return those that were lost."""
        return [lease for lease in self._held if lease.is_lost]
