"""Leases for threads: acquired and released in the calling thread, renewed in the background."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial, wraps
from itertools import count
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from llmspell_dist.blocking._leases import LeaseShell
from llmspell_dist.blocking._manager import StateManager
from llmspell_dist.errors import LeaseError, LeaseNotHeldError, SpellError
from llmspell_dist.fork import keep_forever, on_fork
from llmspell_dist.leases.group import in_order
from llmspell_dist.leases.held import Held, HeldGroup, note_failed_release
from llmspell_dist.leases.keeper import Grant, Keeper
from llmspell_dist.leases.line import Line, left_s
from llmspell_dist.leases.model import LeaseMode
from llmspell_dist.leases.steps import broken_because
from llmspell_dist.leases.terms import (
    DEFAULT_NAME,
    DEFAULT_TTL_S,
    OnLost,
    make_terms,
)
from llmspell_dist.leases.waiting import Wakes
from llmspell_dist.leases.wire import read_said

if TYPE_CHECKING:
    from llmspell_dist.blocking.backstage import Backstage
    from llmspell_dist.blocking.driver import SyncDriver
    from llmspell_dist.leases.steps import Claim, LeaseSteps, Target
    from llmspell_dist.leases.terms import Terms
    from llmspell_dist.redis.commands import ScriptCall
    from llmspell_dist.redis.lanes import Lanes
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.core import Core

__all__ = ["Lease", "LeaseGroup", "Leases"]

logger = logging.getLogger("llmspell_dist.leases")

_CLOSE_WITHIN_S = 1.0

T = TypeVar("T")


class Lost(threading.Event):
    """Fires when a lease is lost; ``reason`` then says why."""

    reason = ""


class Lease(Held[StateManager]):
    """A lease that this process holds; `Leases.acquire` gives it, and ``with`` releases it.

    As its asynchronous twin, but a thread cannot be cancelled: `lost` fires, `check` raises, every
    write through `state` is refused, and ``with`` raises `LeaseLostError` at its end.
    """

    def __init__(self, leases: Leases, grant: Grant) -> None:
        self.lost = Lost()
        """Fires when the lease is lost: a `threading.Event` whose ``reason`` says why."""
        super().__init__(leases, grant, self.lost)
        self._leases = leases

    def renew(self, ttl: float | timedelta | None = None) -> float:
        """Hold it for another while from now, or for another time to live; return the seconds.

        It is renewed by itself anyhow. Raises `LeaseNotHeldError` if it is not held any more.
        """
        call = self.renewal(ttl)
        sent_at = monotonic()
        return self.renewed(self._leases.execute(call), sent_at)

    def release(self) -> None:
        """Give it back; the next in line has it at once.

        Raises `LeaseNotHeldError` if it was released before, or is not held any more. Whatever
        happens, nothing renews it afterwards.
        """
        self.must_be_open("release it")
        self._give_back()

    def _give_back(self) -> None:
        target, token = self.grant.claim.target, self.grant.token
        try:
            self._leases.at("lease:before_release", target, token)
        finally:
            with self._leases.busy():
                self.end()
                self.send_release()
        self._leases.at("lease:after_release", target, token)

    def mark_lost(self) -> None:
        """Let `lost` fire, and hooks hear of it."""
        super().mark_lost()
        self._leases.tell_lost(self)

    def send_release(self) -> None:
        """Ask the server to take it back."""
        grant = self.grant
        self.released(
            self._leases.execute(self._leases.steps.release_call(grant.claim, grant.token))
        )

    def close(self) -> None:
        """Release it if it is held still; if it turns out not to be, `lost` fires."""
        if self.grant.ended:
            return
        try:
            self._give_back()
        except LeaseNotHeldError as gone:
            self.turned_out_lost(gone)

    def call(self, reaction: Callable[[Any], Any]) -> None:
        """Call what the holder wants to be called, in a thread of its own.

        It may take its time, or acquire again; the thread in the background has others to renew.
        """
        name = f"lease {self.name} lost"
        threading.Thread(target=reaction, args=(self,), name=name, daemon=True).start()

    def __enter__(self) -> Self:
        self.check()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except SpellError as failed:
            if error is None:
                raise
            note_failed_release(self, failed)  # the block's own error goes first
        if error is None and self.lost.is_set():
            raise self.lost_error()


class LeaseGroup(HeldGroup[Lease, StateManager]):
    """Leases that were taken together; a sequence of them. Each is renewed by itself."""

    def __init__(self, leases: Leases, held: list[Lease]) -> None:
        super().__init__(leases, held)
        self._leases = leases

    def release(self) -> None:
        """Give them all back; the first `LeaseNotHeldError` is raised when all were tried."""
        for lease in self._held:
            lease.must_be_open("release it")
        failed = self._give_back()
        if failed is not None:
            raise failed

    def _give_back(self) -> SpellError | None:
        """Give back what is held still, whatever happens to one of them; what went wrong first."""
        held = [lease for lease in reversed(self._held) if not lease.grant.ended]
        failed: SpellError | None = None
        with self._leases.busy():
            for lease in held:
                lease.end()  # nothing renews them from now on, also if this is interrupted
            for lease in held:
                try:
                    lease.send_release()
                except LeaseNotHeldError as gone:
                    lease.turned_out_lost(gone)
                    failed = failed or gone
                except SpellError as error:
                    failed = failed or error
        return failed

    def __enter__(self) -> Self:
        self.check()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        failed = self._give_back()
        lost = self.lost_ones()
        if failed is not None and error is not None and not lost:
            note_failed_release(self, failed)
        if error is None and lost:
            raise lost[0].lost_error()
        if error is None and failed is not None:
            raise failed


class Leases(LeaseShell):
    """Leases on scopes, for threads: what `llmspell_dist.leases.manager.Leases` is to coroutines.

    To take a free lease and to give one back is done in the calling thread. A thread in the
    background, started by the first lease, renews and waits in line.
    """

    def __init__(
        self,
        driver: SyncDriver,
        backstage: Backstage,
        state_of: Callable[[Core], StateManager],
    ) -> None:
        super().__init__(driver)
        self._backstage = backstage
        self.state_of = state_of
        self.execute = driver.execute
        self._begin()
        backstage.at_end(self._end)
        on_fork(self)

    def _begin(self) -> None:
        lanes = self._backstage.lanes
        self._keeper = Keeper(self.steps, lanes.execute)
        self._wakes = Wakes(self.steps, self._backstage.hub, self._broken)
        self._line = Line(self.steps, self._wakes, _LineOwner(self.steps, lanes))
        self._grants: dict[bytes, Grant] = {}
        self._door = threading.Condition()
        self._busy = 0
        """Threads that ask for a lease, wait for one or give one back."""
        self._owners = threading.local()
        self._last_owner = count(1)

    # --- taking

    def acquire(
        self,
        scope: str | Scope,
        *,
        name: str = DEFAULT_NAME,
        ttl: float | timedelta = DEFAULT_TTL_S,
        wait: float | timedelta | None = None,
        mode: LeaseMode | str = LeaseMode.EXCLUSIVE,
        owner: str | None = None,
        reentrant: bool = False,
        label: str | None = None,
        on_lost: OnLost = "cancel",
        renew: bool = True,
    ) -> Lease:
        """Take a lease and return it; ``with`` releases it at its end, or `Lease.release` does.

        Arguments and errors are those of the asynchronous surface. `owner` is by default this
        thread. No thread can be cancelled, so ``cancel`` is the same as ``event`` here; a function
        is called in a thread of its own.
        """
        terms = make_terms(ttl, wait, mode, owner, reentrant, label, on_lost, renew)
        return self._take(self.steps.target(scope, name), terms)

    def acquire_all(
        self,
        targets: Iterable[str | Scope | tuple[str | Scope, str]],
        *,
        ttl: float | timedelta = DEFAULT_TTL_S,
        wait: float | timedelta | None = None,
        mode: LeaseMode | str = LeaseMode.EXCLUSIVE,
        owner: str | None = None,
        label: str | None = None,
        on_lost: OnLost = "cancel",
    ) -> LeaseGroup:
        """Take several leases, all or none, in the one order that everybody keeps."""
        terms = make_terms(ttl=ttl, wait=wait, mode=mode, owner=owner, label=label, on_lost=on_lost)
        started = monotonic()
        taken: list[Lease] = []
        try:
            for target in in_order(self.steps, targets):
                left = left_s(started, terms.wait_s)
                taken.append(self._take(target, terms._replace(wait_s=left)))
            for lease in taken:
                lease.check()
        except BaseException:
            for lease in reversed(taken):
                lease.close()
            raise
        return LeaseGroup(self, taken)

    def holding(
        self,
        scope: str | Scope | Callable[..., str | Scope],
        *,
        name: str = DEFAULT_NAME,
        ttl: float | timedelta = DEFAULT_TTL_S,
        wait: float | timedelta | None = None,
        mode: LeaseMode | str = LeaseMode.EXCLUSIVE,
        label: str | None = None,
        pass_as: str | None = None,
    ) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Decorate a function: each call holds the lease while it runs.

        `scope` may be a function that gets the call's arguments and returns the scope. `pass_as`
        names the keyword argument in which the function gets the lease.
        """
        if not callable(scope):
            self.steps.target(scope, name)
        make_terms(ttl=ttl, wait=wait, mode=mode, label=label)

        def decorate(function: Callable[..., T]) -> Callable[..., T]:
            @wraps(function)
            def call(*args: Any, **kwargs: Any) -> T:
                where = scope(*args, **kwargs) if callable(scope) else scope
                with self.acquire(
                    where, name=name, ttl=ttl, wait=wait, mode=mode, label=label
                ) as lease:
                    if pass_as is not None:
                        kwargs[pass_as] = lease
                    return function(*args, **kwargs)

            return call

        return decorate

    def _take(self, target: Target, terms: Terms) -> Lease:
        self.at("lease:before_acquire", target, None)
        lease = self._observed(target, terms)
        try:
            self.at("lease:after_acquire", target, lease.token)
        except BaseException:
            lease.end()
            self._abandon(lease.grant.claim)
            raise
        return lease

    def _observed(self, target: Target, terms: Terms) -> Lease:
        began = monotonic()
        said = {
            "db.operation.name": "lease.acquire",
            "llmspell.scope.kind": target.scope.scope.kind.value,
            "llmspell.lease.name": target.name,
            "llmspell.lease.mode": terms.mode.value,
        }
        with self._driver.core.observer.span("lease.acquire", "client", said):
            lease = self._taken(target, terms)
        self.counted.waits.add(monotonic() - began)
        return lease

    def _taken(self, target: Target, terms: Terms) -> Lease:
        claim = self.steps.claim(target, terms, terms.owner or self._owner())
        with self.busy():
            self._must_be_open()
            return self._asked(claim)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Let `close` wait for what this thread asks for, or gives back."""
        with self._door:
            self._busy += 1
        try:
            yield
        finally:
            with self._door:
                self._busy -= 1
                self._door.notify_all()

    def _asked(self, claim: Claim) -> Lease:
        terms, sent_at = claim.terms, monotonic()
        try:
            reply = self.execute(self.steps.acquire_call(claim, wait=False))
            token = self.steps.read_try(claim, reply, terms.wait_s != 0)
            if token is None:
                token, sent_at = self._backstage.run(self._line.wait(claim, sent_at))
            self._must_be_open()
            grant = Grant(claim, token, sent_at)
            lease = Lease(self, grant)
            self._grants[claim.nonce] = grant
            self.keep(grant)
        except LeaseError:
            raise  # refused: there is nothing to give back
        except BaseException:
            # An interrupt can come at any point, also when the lease was granted already.
            self._grants.pop(claim.nonce, None)
            self._abandon(claim)
            raise
        self.note(grant, "acquired")
        return lease

    def standing(self) -> tuple[int, int]:
        """Return how many leases are held now, and how many callers wait in line."""
        return len(self._grants), len(self._wakes)

    def keep(self, grant: Grant) -> None:
        """Renew a grant until it ends."""
        if not grant.ended and (self._keeper.offer(grant) or not self._backstage.running):
            self._backstage.call(self._keeper.collect)

    def _owner(self) -> str:
        owner: str | None = getattr(self._owners, "name", None)
        if owner is None:
            # Numbered, because the system gives the number of a thread again when it has ended.
            owner = f"{self.steps.client.hex()}-t{next(self._last_owner)}"
            self._owners.name = owner
        return owner

    def _abandon(self, claim: Claim) -> None:
        try:
            self.execute(self.steps.release_call(claim, None))
        except SpellError as error:
            logger.debug("a lease could not be given back, it ends by itself: %s", error)

    def tell_lost(self, lease: Lease) -> None:
        """Let hooks hear of a lost lease, in a thread of their own."""
        grant = lease.grant
        if self.points.wants("lease:lost"):
            said = ("lease:lost", grant.claim.target, grant.token, grant.lost_because)
            lease.call(lambda _: self.at(*said))

    # --- the end

    def over(self, grant: Grant) -> None:
        """Take note that a grant is over."""
        self._grants.pop(grant.claim.nonce, None)

    def note(self, grant: Grant, what: str, reason: str | None = None) -> None:
        """Remember what became of a grant with its correlation; in the background."""
        self.counted.note(what)
        call = self.steps.note_call(grant.claim, grant.token, what, reason, overtaken=True)
        if call is not None:
            self._backstage.call(partial(self._send, call))

    def _send(self, call: ScriptCall) -> None:
        try:
            self._backstage.lanes.execute(call).add_done_callback(_note)
        except SpellError as error:  # closed
            logger.debug("what became of a lease could not be noted: %s", error)

    def _broken(self, nonce: bytes, said: bytes) -> None:
        grant = self._grants.get(nonce)
        if grant is not None:
            grant.lose(broken_because(*read_said(said)))

    def forget(self) -> None:
        """In a forked child: what is held is the parent's."""
        for grant in self._grants.values():
            grant.disown()
        keep_forever(self._keeper, self._wakes)
        self.steps.new_client()
        self._begin()

    def close(self) -> None:
        """Release every lease that is still held; who waits for one leaves its line."""
        with self._door:
            self._left_all = True
        if self._backstage.running:
            self._backstage.run(self._wakes.dismiss())
        with self._door:  # what is on its way may be granted still, and is given back then
            self._door.wait_for(lambda: not self._busy, _CLOSE_WITHIN_S)
        for grant in tuple(self._grants.values()):
            grant.end()
            self.over(grant)
            self._abandon(grant.claim)
            self.note(grant, "released")

    async def _end(self) -> None:
        await self._wakes.dismiss()
        await self._keeper.close()
        await self._wakes.close()


class _LineOwner:
    """Sends what waiting in line needs, from the background's event loop."""

    def __init__(self, steps: LeaseSteps, lanes: Lanes) -> None:
        self._steps = steps
        self.execute = lanes.execute

    async def give_back(self, claim: Claim, token: int | None) -> list[Any]:
        reply: list[Any] = await self.execute(self._steps.release_call(claim, token))
        return reply

    def abandon(self, claim: Claim) -> None:
        future = self.execute(self._steps.release_call(claim, None))
        future.add_done_callback(_note)


def _note(future: asyncio.Future[Any]) -> None:
    if not future.cancelled() and future.exception() is not None:
        said = "a lease could not be given back, or noted: it ends by itself: %s"
        logger.debug(said, future.exception())
