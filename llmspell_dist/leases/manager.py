"""Leases, asynchronous: acquire, wait in line, keep, give back, look, break."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from datetime import timedelta
from functools import wraps
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from llmspell_dist.closing import AsyncOpening
from llmspell_dist.errors import SpellError
from llmspell_dist.fork import keep_forever, on_fork
from llmspell_dist.leases.group import LeaseGroup, in_order
from llmspell_dist.leases.holding import Lease
from llmspell_dist.leases.keeper import Grant, Keeper
from llmspell_dist.leases.line import Line, left_s
from llmspell_dist.leases.model import LeaseMode
from llmspell_dist.leases.shell import LeaseShell
from llmspell_dist.leases.steps import broken_because
from llmspell_dist.leases.terms import (
    DEFAULT_NAME,
    DEFAULT_TTL_S,
    OnLost,
    Terms,
    make_terms,
)
from llmspell_dist.leases.waiting import Wakes
from llmspell_dist.leases.wire import read_said

if TYPE_CHECKING:
    from llmspell_dist.leases.steps import Claim, Target
    from llmspell_dist.redis.commands import ScriptCall
    from llmspell_dist.redis.hub import Hub
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.driver import AsyncDriver
    from llmspell_dist.state.manager import StateManager

__all__ = ["Leases"]

logger = logging.getLogger("llmspell_dist.leases")

T = TypeVar("T")
L = TypeVar("L", "Lease", LeaseGroup)
_CLOSE_WITHIN_S = 1.0


class Leases(LeaseShell):
    """Leases on scopes: the holder may write, and the store itself refuses who held it before.

    A lease is held for a time (`ttl`) and renewed while its holder lives. Each grant has a fencing
    token that is higher than every earlier one; a write that carries the lease (`Lease.state`) is
    accepted only while it holds, by the server's clock. Waiters are served in the order in which
    they came.

    Raised everywhere: `InvalidArgumentError` and its children before anything is sent, and
    `StoreUnavailableError` and its children when the server cannot be reached in time.
    """

    def __init__(
        self,
        driver: AsyncDriver,
        hub: Hub,
        state_of: Callable[[Core], StateManager],
    ) -> None:
        super().__init__(driver)
        self._hub = hub
        self.execute = driver.execute
        self.state_of = state_of
        self._begin()
        on_fork(self)

    def _begin(self) -> None:
        self.keeper = Keeper(self.steps, self.execute)
        self._wakes = Wakes(self.steps, self._hub, self._broken)
        self._line = Line(self.steps, self._wakes, self)
        self._grants: dict[bytes, Grant] = {}
        self._owners: WeakKeyDictionary[asyncio.Task[Any], str] = WeakKeyDictionary()
        self._last_owner = 0
        self._asking: dict[bytes, Claim] = {}
        """Of those who ask for a lease, or wait for one."""
        self._leaving: set[asyncio.Future[Any]] = set()
        self._telling: set[asyncio.Future[None]] = set()

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
    ) -> _Acquiring[Lease]:
        """Hold a lease, with ``async with``; or with ``await``, to be released by hand.

        `ttl`: seconds or a timedelta from 50 ms to a day, for which the lease outlives a holder
        that died; it is renewed at a third of it, unless `renew` is False. `wait`: seconds for
        which to wait in line; 0 tries once, None waits without end. `mode`: ``exclusive``, or
        ``shared`` with other readers. `owner`: who holds it; by default this task. The same owner
        can hold it several times with `reentrant`, and releases it as often. `label` is for people
        who look.
        `on_lost`: by default the task that acquired it is cancelled, and ``async with`` raises
        `LeaseLostError`; ``event`` only sets `Lease.lost`; a function is called with the lease.

        Raises `LeaseUnavailableError` if it did not come free in time, `LeaseAlreadyHeldError` if
        this owner holds it already, and `DeadlockError` if its holder waits for this owner.
        """
        terms = make_terms(ttl, wait, mode, owner, reentrant, label, on_lost, renew)
        return _Acquiring(self._take, self.steps.target(scope, name), terms)

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
    ) -> _Acquiring[LeaseGroup]:
        """Hold several leases, all or none: scopes, or pairs of scope and name.

        They are taken one after the other in one fixed order, the same for everybody, so that two
        who want the same ones never wait for each other. `wait` is for all together. The group's
        `state` carries them all.
        """
        terms = make_terms(ttl=ttl, wait=wait, mode=mode, owner=owner, label=label, on_lost=on_lost)
        wanted = in_order(self.steps, targets)
        return _Acquiring(self._take_all, wanted, terms)

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
    ) -> Callable[[Callable[..., Awaitable[T]]], Callable[..., Coroutine[Any, Any, T]]]:
        """Decorate a coroutine function: each call holds the lease while it runs.

        `scope` may be a function that gets the call's arguments and returns the scope. `pass_as`
        names the keyword argument in which the function gets the lease.
        """
        if not callable(scope):
            self.steps.target(scope, name)
        make_terms(ttl=ttl, wait=wait, mode=mode, label=label)

        def decorate(
            function: Callable[..., Awaitable[T]],
        ) -> Callable[..., Coroutine[Any, Any, T]]:
            @wraps(function)
            async def call(*args: Any, **kwargs: Any) -> T:
                where = scope(*args, **kwargs) if callable(scope) else scope
                async with self.acquire(
                    where, name=name, ttl=ttl, wait=wait, mode=mode, label=label
                ) as lease:
                    if pass_as is not None:
                        kwargs[pass_as] = lease
                    return await function(*args, **kwargs)

            return call

        return decorate

    async def _take(self, target: Target, terms: Terms) -> Lease:
        await self.at("lease:before_acquire", target, None)
        lease = await self._observed(target, terms)
        try:
            await self.at("lease:after_acquire", target, lease.token)
        except BaseException:
            self.drop(lease.grant)
            raise
        return lease

    async def _observed(self, target: Target, terms: Terms) -> Lease:
        began = monotonic()
        said = {
            "db.operation.name": "lease.acquire",
            "llmspell.scope.kind": target.scope.scope.kind.value,
            "llmspell.lease.name": target.name,
            "llmspell.lease.mode": terms.mode.value,
        }
        with self._driver.core.observer.span("lease.acquire", "client", said):
            lease = await self._taken(target, terms)
        self.counted.waits.add(monotonic() - began)
        return lease

    async def _taken(self, target: Target, terms: Terms) -> Lease:
        task = asyncio.current_task()
        owner = terms.owner if terms.owner is not None else self._owner_of(task)
        claim = self.steps.claim(target, terms, owner)
        self._must_be_open()
        self._asking[claim.nonce] = claim
        try:
            token, sent_at = await self._token(claim)
            self._must_be_open()  # else `leave` has given it back
        finally:
            self._asking.pop(claim.nonce, None)
        return self._granted(claim, token, sent_at, task)

    async def _token(self, claim: Claim) -> tuple[int, float]:
        """Ask for a lease, and wait for it; its token, and when it was asked for."""
        target, terms = claim.target, claim.terms
        sent_at = monotonic()
        # Who waits and can be woken asks for a place in line at once.
        may_wait = terms.wait_s != 0
        token = None
        if not (may_wait and self._wakes.listens(target.shard)):
            token = await self._try(claim, may_wait)
        if token is None:
            token, sent_at = await self._line.wait(claim, sent_at)
        return token, sent_at

    async def _try(self, claim: Claim, may_wait: bool) -> int | None:
        """Ask once; the token, or None if another holds it and the caller wants to wait."""
        try:
            reply = await self.execute(self.steps.acquire_call(claim, wait=False))
        except BaseException:
            self.abandon(claim)
            raise
        return self.steps.read_try(claim, reply, may_wait)

    def _granted(
        self, claim: Claim, token: int, sent_at: float, task: asyncio.Task[Any] | None
    ) -> Lease:
        grant = Grant(claim, token, sent_at)
        lease = Lease(self, grant, task)
        self._grants[claim.nonce] = grant
        self.keeper.keep(grant)
        self.note(grant, "acquired")
        return lease

    def standing(self) -> tuple[int, int]:
        """Return how many leases are held now, and how many callers wait in line."""
        return len(self._grants), len(self._wakes)

    def keep(self, grant: Grant) -> None:
        """Renew a grant until it ends."""
        if not grant.ended:
            self.keeper.keep(grant)

    def _owner_of(self, task: asyncio.Task[Any] | None) -> str:
        if task is None:
            return self.steps.client.hex()
        owner = self._owners.get(task)
        if owner is None:
            self._last_owner += 1
            owner = self._owners[task] = f"{self.steps.client.hex()}-{self._last_owner}"
        return owner

    async def _take_all(self, wanted: list[Target], terms: Terms) -> LeaseGroup:
        started = monotonic()
        taken: list[Lease] = []
        try:
            for target in wanted:
                left = left_s(started, terms.wait_s)
                taken.append(await self._take(target, terms._replace(wait_s=left)))
            for lease in taken:
                lease.check()
        except BaseException as error:
            for lease in taken:
                self.drop(lease.grant)
            lost = [one for one in taken if one.is_lost]
            # Each has its own cancellation still: all of them end here, whatever is raised.
            told = [await one.cancellation.settle(error) for one in lost]
            if None in told:
                raise lost[0].lost_error() from None
            raise
        return LeaseGroup(self, taken, asyncio.current_task())

    # --- giving back

    def check_loop(self) -> None:
        """Raise `WrongEventLoopError` in another event loop than the client's."""
        self._driver.lanes.fast.check_loop()

    async def give_back(self, claim: Claim, token: int | None) -> list[Any]:
        """Release; if the caller is cancelled meanwhile, it happens all the same."""
        try:
            reply: list[Any] = await self.execute(self.steps.release_call(claim, token))
        except asyncio.CancelledError:
            self.abandon(claim)  # sent twice it is carried out once
            raise
        return reply

    async def give_all_back(self, grants: list[Grant]) -> list[Any]:
        """Release several at once; the answers, or what went wrong, in their order."""
        waiting: list[asyncio.Future[Any]] = []
        for grant in grants:
            try:
                waiting.append(self.execute(self.steps.release_call(grant.claim, grant.token)))
            except SpellError as error:  # closed
                failed = asyncio.get_running_loop().create_future()
                failed.set_exception(error)
                waiting.append(failed)
        try:
            return await asyncio.gather(*waiting, return_exceptions=True)
        except asyncio.CancelledError:
            for grant in grants:
                self.abandon(grant.claim)
            raise

    def abandon(self, claim: Claim) -> None:
        """Leave nothing behind of an attempt, without waiting for that."""
        self._send(self.steps.release_call(claim, None))

    def drop(self, grant: Grant) -> None:
        """Release a grant without waiting for the answer."""
        grant.end()
        self.over(grant)
        self.abandon(grant.claim)
        self.note(grant, "released")

    def note(self, grant: Grant, what: str, reason: str | None = None) -> None:
        """Remember what became of a grant with its correlation, without waiting for that."""
        self.counted.note(what)
        call = self.steps.note_call(grant.claim, grant.token, what, reason)
        if call is not None:
            self._send(call)

    def _send(self, call: ScriptCall) -> None:
        try:
            future = self.execute(call)
        except SpellError:
            return  # closed
        self._leaving.add(future)
        future.add_done_callback(self._left)

    def _left(self, future: asyncio.Future[Any]) -> None:
        self._leaving.discard(future)
        if not future.cancelled() and future.exception() is not None:
            logger.debug(
                "a lease could not be given back, or noted: it ends by itself: %s",
                future.exception(),
            )

    def over(self, grant: Grant) -> None:
        """Take note that a grant is over."""
        self._grants.pop(grant.claim.nonce, None)

    def _broken(self, nonce: bytes, said: bytes) -> None:
        grant = self._grants.get(nonce)
        if grant is not None:
            grant.lose(broken_because(*read_said(said)))

    def tell_lost(self, lease: Lease) -> None:
        """Let hooks hear of a lost lease, in a task of their own."""
        if self.points.wants("lease:lost"):
            grant = lease.grant
            told = asyncio.ensure_future(
                self.at("lease:lost", grant.claim.target, grant.token, grant.lost_because)
            )
            self._telling.add(told)
            told.add_done_callback(self._telling.discard)

    # --- the end

    def forget(self) -> None:
        """In a forked child: what is held is the parent's, and so is the event loop."""
        for grant in self._grants.values():
            grant.disown()
        keep_forever(self.keeper, self._wakes, self._leaving)
        self.steps.new_client()
        self._begin()

    async def leave(self) -> None:
        """Send the release of every lease that is still held; who waits for one leaves its line.

        Nobody waits for an answer here: `close` does.
        """
        self._left_all = True
        for grant in tuple(self._grants.values()):
            self.drop(grant)
        for claim in tuple(self._asking.values()):
            self.abandon(claim)  # what is on its way may be granted still
        await self._wakes.dismiss()

    async def close(self) -> None:
        """Wait at most a second for what `leave` sent, and stop renewing."""
        leaving = (*self._leaving, *self._telling)
        if leaving:
            await asyncio.wait(leaving, timeout=_CLOSE_WITHIN_S)
        await self.keeper.close()
        await self._wakes.close()


class _Acquiring(AsyncOpening[L]):
    """What `acquire` returns: held by ``async with``, or by ``await`` and released by hand."""

    __slots__ = ("_arguments", "_take")

    call = "acquire()"
    blocking = "spell.leases of llmspell_dist.blocking.connect()"

    def __init__(self, take: Callable[..., Coroutine[Any, Any, L]], *arguments: Any) -> None:
        super().__init__()
        self._take: Callable[..., Coroutine[Any, Any, L]] = take
        self._arguments = arguments

    async def open(self) -> L:
        """Wait for the lease."""
        return await self._take(*self._arguments)
