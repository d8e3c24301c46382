"""Leases through a sidecar: the library's own leases, whose requests go over HTTP.

The waiting is the sidecar's: one request stands in line, and closing its connection leaves the
line. Renewing, losing and giving back are the library's, as in a process that talks to Redis.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from weakref import WeakKeyDictionary

from llmspell_dist.errors import InvalidArgumentError, LeaseNotHeldError, StoreUnavailableError
from llmspell_dist.fork import keep_forever, on_fork
from llmspell_dist.leases.handles import Handle, read_handle
from llmspell_dist.leases.keeper import Keeper
from llmspell_dist.leases.looking import MAX_LISTED, MAX_WAITERS_SHOWN
from llmspell_dist.leases.manager import Leases
from llmspell_dist.leases.model import LeaseMode
from llmspell_dist.leases.shell import LeaseShell
from llmspell_dist.leases.steps import LeaseSteps, not_held
from llmspell_dist.leases.terms import (
    DEFAULT_NAME,
    DEFAULT_TTL_S,
    check_name,
    check_reason,
    make_terms,
)
from llmspell_dist.remote.lease_documents import graph_of, info_of
from llmspell_dist.revision import Revision

if TYPE_CHECKING:
    from llmspell_dist.leases.holding import Lease
    from llmspell_dist.leases.keeper import Grant
    from llmspell_dist.leases.model import LeaseInfo, WaitGraph
    from llmspell_dist.leases.steps import Claim, Target
    from llmspell_dist.leases.terms import Terms
    from llmspell_dist.remote.driver import RemoteDriver
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.manager import StateManager

__all__ = ["RemoteLeases", "carrying"]


class _Ask(NamedTuple):
    """A request about a hold; sent twice it does no harm."""

    path: tuple[str, ...]
    document: dict[str, Any]


class _RemoteSteps(LeaseSteps):
    """What is sent for a hold. A claim's ``info`` is the handle that the sidecar gave for it."""

    def renew_call(self, claim: Claim, token: int, ttl_ms: int) -> Any:
        """Ask for another while."""
        return self._ask("renew", claim, token, ttl=ttl_ms / 1000)

    def release_call(self, claim: Claim, token: int | None) -> Any:
        """Give a hold back."""
        return self._ask("release", claim, token)

    def _ask(self, operation: str, claim: Claim, token: int | None, **more: Any) -> _Ask:
        target = claim.target
        document: dict[str, Any] = {"handle": claim.info.decode()}
        if not claim.info:
            mode = claim.terms.mode.value
            document = {"owner": claim.owner.decode(), "token": token, "mode": mode}
        return _Ask(("v1", "leases", target.text, target.name, operation), document | more)

    def note_call(self, claim: Claim, token: int, what: str, *_: Any, **__: Any) -> None:
        """Nothing: the sidecar notes what it does for the request's correlation."""


class RemoteLeases(Leases):
    """Leases on scopes, through a sidecar; every method of `Leases`, with its promises."""

    def __init__(
        self, driver: RemoteDriver, state_over: Callable[[RemoteDriver], StateManager]
    ) -> None:
        LeaseShell.__init__(self, cast("Any", driver))
        self._remote = driver
        self._state_over = state_over
        self.steps = _RemoteSteps(driver.core)
        self.execute = cast("Any", self._sent)
        self.state_of = self._state_of
        self._begin()
        on_fork(self)

    def _begin(self) -> None:
        self.keeper = Keeper(self.steps, self.execute)
        self._grants: dict[bytes, Grant] = {}
        self._owners: WeakKeyDictionary[asyncio.Task[Any], str] = WeakKeyDictionary()
        self._last_owner = 0
        self._leaving: set[asyncio.Future[Any]] = set()
        self._telling: set[asyncio.Future[None]] = set()
        self._attempts: dict[str, tuple[str, ...]] = {}
        """Of those who ask for a lease, or wait for one: where."""

    # --- requests

    def _sent(self, ask: _Ask) -> asyncio.Task[list[Any]]:
        return asyncio.get_running_loop().create_task(self._answered(ask))

    async def _answered(self, ask: _Ask) -> list[Any]:
        """Return what the script would: 1, or 0 with the reason and who holds it now."""
        try:
            await self._request("POST", *ask.path, document=ask.document, idempotent=True)
        except LeaseNotHeldError as error:
            return [0, error.why, error.current]
        return [1]

    async def _request(self, method: str, *path: str, **more: Any) -> Any:
        return (await self._remote.transport.request(method, path, **more)).document

    def _state_of(self, core: Core) -> StateManager:
        return self._state_over(carrying(self._remote, core))

    def check_loop(self) -> None:
        """Nothing: the transport says so with the first request."""

    # --- taking

    async def _taken(self, target: Target, terms: Terms) -> Lease:
        task = asyncio.current_task()
        owner = terms.owner if terms.owner is not None else self._owner_of(task)
        began = monotonic()
        self._must_be_open()
        while True:
            left = None if terms.wait_s is None else max(0.0, terms.wait_s - (monotonic() - began))
            claim, token, sent_at = await self._asked(target, terms._replace(wait_s=left), owner)
            # How long ago it was granted is not known here, only when it was asked for.
            if monotonic() < sent_at + terms.ttl_s / 2:
                return self._granted(claim, token, sent_at, task)
            sent_at = monotonic()
            reply = await self.execute(self.steps.renew_call(claim, token, terms.ttl_ms))
            if reply[0] == 1:
                return self._granted(claim, token, sent_at, task)
            if left == 0:
                raise not_held(claim, "renew it", reply, token)

    async def _asked(self, target: Target, terms: Terms, owner: str) -> tuple[Claim, int, float]:
        attempt = os.urandom(12).hex()
        wish = {
            "ttl": terms.ttl_s,
            "wait": terms.wait_s,
            "mode": terms.mode.value,
            "owner": owner,
            "reentrant": terms.reentrant,
            "label": terms.label,
            "attempt": attempt,
        }
        path = ("v1", "leases", target.text, target.name)
        sent_at = monotonic()
        self._attempts[attempt] = path
        try:
            found = await self._request("POST", *path, document=wish, patience_s=terms.wait_s)
            self._must_be_open()  # else `leave` has given it back
        except (asyncio.CancelledError, StoreUnavailableError):
            self._give_up(attempt)
            raise
        finally:
            self._attempts.pop(attempt, None)
        text: str = found["handle"]
        claim = self.steps.claim(target, terms, owner)
        nonce = read_handle(text).nonce
        return claim._replace(nonce=nonce, info=text.encode()), found["token"], sent_at

    def _give_up(self, attempt: str) -> None:
        """Have the sidecar give back what it grants for an attempt, now or later."""
        path = self._attempts[attempt]
        self._send(cast("Any", _Ask((*path, "abandon"), {"attempt": attempt})))

    def standing(self) -> tuple[int, int]:
        """Return how many leases are held now; who waits does so in the sidecar."""
        return len(self._grants), 0

    # --- by owner and token

    async def release(
        self,
        scope: str | Scope,
        *,
        name: str = DEFAULT_NAME,
        owner: str,
        token: int,
        mode: LeaseMode | str = LeaseMode.EXCLUSIVE,
    ) -> None:
        """Release a lease that is known by owner and token only, with all holds of the owner."""
        claim = self.steps.by_facts(scope, name, owner, token, make_terms(mode=mode))
        reply = await self.execute(self.steps.release_call(claim, token))
        if reply[0] == 0:
            raise not_held(claim, "release it", reply, token)

    async def renew(
        self,
        scope: str | Scope,
        *,
        name: str = DEFAULT_NAME,
        owner: str,
        token: int,
        ttl: float | timedelta = DEFAULT_TTL_S,
        mode: LeaseMode | str = LeaseMode.EXCLUSIVE,
    ) -> None:
        """Renew a lease that is known by owner and token only, once."""
        terms = make_terms(ttl=ttl, mode=mode)
        claim = self.steps.by_facts(scope, name, owner, token, terms)
        reply = await self.execute(self.steps.renew_call(claim, token, terms.ttl_ms))
        if reply[0] == 0:
            raise not_held(claim, "renew it", reply, token)

    # --- looking

    async def show(
        self, scope: str | Scope, *, name: str = DEFAULT_NAME, waiters: int = 100
    ) -> LeaseInfo:
        """Return who holds a lease, who waits (up to `waiters`), and the last holds that ended."""
        _check_count("waiters", waiters, 0, MAX_WAITERS_SHOWN)
        target = self.steps.target(scope, name)
        query = {"waiters": waiters}
        path = ("v1", "leases", target.text, target.name)
        return info_of(await self._request("GET", *path, query=query))

    async def list(
        self, *, shard: str = "0", limit: int = 100, waiters: int = 0
    ) -> list[LeaseInfo]:
        """Return the leases that are held or waited for, those that end soonest first."""
        _check_count("limit", limit, 1, MAX_LISTED)
        _check_count("waiters", waiters, 0, MAX_WAITERS_SHOWN)
        query = {"shard": shard, "limit": limit, "waiters": waiters}
        found = await self._request("GET", "v1", "leases", query=query)
        return [info_of(one) for one in found["leases"]]

    async def graph(self, *, shard: str = "0") -> WaitGraph:
        """Return who waits for whom; its ``deadlocks`` names the cycles."""
        return graph_of(await self._request("GET", "v1", "lease-graph", query={"shard": shard}))

    async def requirement(self, scope: str | Scope) -> str | None:
        """Return the name of the lease that every write of a scope must carry; None: none."""
        name: str | None = (await self._request("GET", *self._demand(scope)))["name"]
        return name

    def _demand(self, scope: str | Scope) -> tuple[str, ...]:
        return "v1", "lease-requirements", self.steps.core.scope_key(scope).scope.text

    # --- changing

    async def break_lease(
        self,
        scope: str | Scope,
        *,
        name: str = DEFAULT_NAME,
        reason: str,
        token: int | None = None,
    ) -> Revision | None:
        """Take a lease from its holder, whose writes are refused from then on."""
        check_reason(reason)
        if token is not None and (type(token) is not int or not 0 < token < 2**53):
            raise InvalidArgumentError("token", token, "must be the int of a holder, or None")
        target = self.steps.target(scope, name)
        path = ("v1", "leases", target.text, target.name, "break")
        document = {"reason": reason, "token": token}
        said = (await self._request("POST", *path, document=document))["revision"]
        return None if said is None else Revision.parse(said)

    async def require(
        self, scope: str | Scope, *, name: str = DEFAULT_NAME, lease: Lease | None = None
    ) -> bool:
        """Let the store refuse every write of a scope that does not carry this lease."""
        check_name(name)
        return await self._demanded("PUT", scope, lease, document={"name": name})

    async def unrequire(self, scope: str | Scope, *, lease: Lease) -> bool:
        """Let a scope be written without a lease again; this write needs it for the last time."""
        if not hasattr(lease, "grant"):
            raise InvalidArgumentError("lease", lease, "must be the lease that the scope demands")
        return await self._demanded("DELETE", scope, lease)

    async def _demanded(
        self, method: str, scope: str | Scope, lease: Lease | None, **more: Any
    ) -> bool:
        headers = None
        if lease is not None:
            headers = {"llmspell-lease": lease.grant.claim.info.decode()}
        found = await self._request(method, *self._demand(scope), headers=headers, **more)
        changed: bool = found["changed"]
        return changed

    # --- the end

    def forget(self) -> None:
        """In a forked child: what is held is the parent's, and so is the event loop."""
        for grant in self._grants.values():
            grant.disown()
        keep_forever(self.keeper, self._owners, self._leaving, self._telling)
        self.steps.new_client()
        self._begin()

    async def leave(self) -> None:
        """Send the release of every lease that is still held, or that is being asked for."""
        self._left_all = True
        for grant in tuple(self._grants.values()):
            self.drop(grant)
        for attempt in self._attempts:
            self._give_up(attempt)

    async def close(self) -> None:
        """Wait at most a second for what `leave` sent, and stop renewing."""
        if self._leaving:
            await asyncio.wait(tuple(self._leaving), timeout=1.0)
        await self.keeper.close()


def carrying(driver: RemoteDriver, core: Core) -> RemoteDriver:
    """Return a driver whose every request carries the leases of a core."""
    if not core.fences:
        return driver
    handles = [
        Handle(one.scope, one.name, LeaseMode.EXCLUSIVE, one.owner.decode(), one.token).text
        for one in core.fences
    ]
    return driver.over(core, ", ".join(handles))


def _check_count(argument: str, value: int, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise InvalidArgumentError(argument, value, f"must be an int from {least} to {most:,}")
