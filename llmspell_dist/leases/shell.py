"""Leases by scope and name: looking, breaking, requiring, and what needs no `Lease` object."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING

from llmspell_dist.errors import ClosedError, InvalidArgumentError, SpellError
from llmspell_dist.leases.looking import LeaseViews
from llmspell_dist.leases.model import LeaseCounts, LeaseInfo, LeaseMode, WaitGraph
from llmspell_dist.leases.steps import LeaseSteps, not_held
from llmspell_dist.leases.terms import DEFAULT_NAME, DEFAULT_TTL_S, check_name, make_terms
from llmspell_dist.state.points import NO_POINTS, Points

if TYPE_CHECKING:
    from llmspell_dist.leases.holding import Lease
    from llmspell_dist.leases.steps import Target
    from llmspell_dist.revision import Revision
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.driver import AsyncDriver

__all__ = ["LeaseShell"]

logger = logging.getLogger("llmspell_dist.leases")


class LeaseShell:
    """The operations on leases that hold nothing themselves."""

    def __init__(self, driver: AsyncDriver) -> None:
        self._driver = driver
        self.points: Points = NO_POINTS
        """Where hooks are let in; set by who puts the client together."""
        self.steps = LeaseSteps(driver.core)
        self.counted = LeaseCounts()
        """What became of this client's leases."""
        self._views = LeaseViews(self.steps)
        self._left_all = False
        """The client closes: what is granted from now on is given back."""

    def __repr__(self) -> str:
        core = self._driver.core
        return f"<{type(self).__name__} of {core.keyspace.namespace!r} on {core.server}>"

    def _must_be_open(self) -> None:
        if self._left_all:
            raise ClosedError("the client is closed")

    async def at(self, point: str, target: Target, token: int | None, reason: str = "") -> None:
        """Let hooks run at ``lease:…``; only before a lease is taken, and behind, may they refuse.

        What is given back is given back: what goes wrong there is logged.
        """
        if not self.points.wants(point):
            return
        refusable = point.endswith("_acquire")
        data = {"scope": target.text, "name": target.name, "token": token, "reason": reason}
        steps = self.points.at(point, ("lease", target.name), data, refusable=refusable)
        try:
            await self._driver.run(steps)
        except SpellError as error:
            if refusable:
                raise
            logger.warning("hooks at %s failed: %s", point, error)

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
        """Release a lease that is known by owner and token only, with all holds of the owner.

        For who has no `Lease` object, as after a restart. Raises `LeaseNotHeldError` if that owner
        does not hold it with that token.
        """
        claim = self.steps.by_facts(scope, name, owner, token, make_terms(mode=mode))
        reply = await self._driver.execute(self.steps.release_call(claim, token))
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
        """Renew a lease that is known by owner and token only, once.

        Raises `LeaseNotHeldError` if that owner does not hold it with that token.
        """
        terms = make_terms(ttl=ttl, mode=mode)
        claim = self.steps.by_facts(scope, name, owner, token, terms)
        reply = await self._driver.execute(self.steps.renew_call(claim, token, terms.ttl_ms))
        if reply[0] == 0:
            raise not_held(claim, "renew it", reply, token)

    # --- looking

    async def show(
        self, scope: str | Scope, *, name: str = DEFAULT_NAME, waiters: int = 100
    ) -> LeaseInfo:
        """Return who holds a lease, who waits (up to `waiters`), and the last holds that ended."""
        return await self._driver.run(self._views.show(scope, name, waiters))

    async def list(
        self, *, shard: str = "0", limit: int = 100, waiters: int = 0
    ) -> list[LeaseInfo]:
        """Return the leases that are held or waited for, those that end soonest first."""
        return await self._driver.run(self._views.listing(shard, limit, waiters))

    async def graph(self, *, shard: str = "0") -> WaitGraph:
        """Return who waits for whom; its ``deadlocks`` names the cycles."""
        return await self._driver.run(self._views.graph(shard))

    async def requirement(self, scope: str | Scope) -> str | None:
        """Return the name of the lease that every write of a scope must carry; None: none."""
        return await self._driver.run(self._views.requirement(scope))

    # --- changing

    async def break_lease(
        self,
        scope: str | Scope,
        *,
        name: str = DEFAULT_NAME,
        reason: str,
        token: int | None = None,
    ) -> Revision | None:
        """Take a lease from its holder, whose writes are refused from then on; the next one has it.

        `token` says which holder is meant, so that no other is hit; None: whoever holds it. The
        change log keeps who did it (actor), whose it was and the reason; the revision is that
        entry's. Raises `LeaseNotHeldError` if nobody holds it so.
        """
        _, revision = await self._driver.run(self._views.break_lease(scope, name, reason, token))
        return revision

    async def require(
        self, scope: str | Scope, *, name: str = DEFAULT_NAME, lease: Lease | None = None
    ) -> bool:
        """Let the store refuse every write of a scope that does not carry this lease.

        Stored with the scope and checked by the commit script, so it binds processes that know
        nothing of it: they get `LeaseRequiredError`. Keys still expire. Returns whether that is
        new; to change a requirement that there is, `lease` must be the one that it names.
        """
        check_name(name)  # None would lift it
        core = self._driver.core if lease is None else lease.core
        return await self._driver.run(self._views.require(core, scope, name))

    async def unrequire(self, scope: str | Scope, *, lease: Lease) -> bool:
        """Let a scope be written without a lease again; this write needs it for the last time.

        Returns whether there was a requirement.
        """
        if not hasattr(lease, "core"):
            raise InvalidArgumentError("lease", lease, "must be the lease that the scope demands")
        return await self._driver.run(self._views.require(lease.core, scope, None))
