"""A lease that a coroutine holds: what it can do with it, and what happens when it is lost."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from llmspell_dist.errors import LeaseNotHeldError, SpellError
from llmspell_dist.leases.cancellation import Cancellation
from llmspell_dist.leases.held import Held, note_failed_release
from llmspell_dist.state.manager import StateManager

if TYPE_CHECKING:
    from llmspell_dist.leases.keeper import Grant
    from llmspell_dist.leases.manager import Leases

__all__ = ["Lease", "Lost"]


class Lost(asyncio.Event):
    """Fires when a lease is lost; ``reason`` then says why."""

    reason = ""


class Lease(Held[StateManager]):
    """A lease that this process holds; `Leases.acquire` gives it.

    `state` is the shared state with every write carrying the lease: the store refuses them with
    `StaleFencingTokenError` as soon as the lease is not held any more, whatever this process
    believes. `lost` fires when the lease is known to be lost.
    """

    def __init__(self, leases: Leases, grant: Grant, task: asyncio.Task[Any] | None) -> None:
        self.lost = Lost()
        """Fires when the lease is lost: an `asyncio.Event` whose ``reason`` says why."""
        super().__init__(leases, grant, self.lost)
        self._leases = leases
        self.cancellation = Cancellation(task)
        """How its holder is stopped; those of a group share one."""

    def cancel_holder(self) -> None:
        """Cancel the task that acquired it; the `CancelledError` carries a `LeaseLostError`."""
        self.cancellation.request(self.lost_error())

    async def renew(self, ttl: float | timedelta | None = None) -> float:
        """Hold it for another while from now, or for another time to live; return the seconds.

        It is renewed by itself anyhow. Raises `LeaseNotHeldError` if it is not held any more.
        """
        call = self.renewal(ttl)
        sent_at = monotonic()
        return self.renewed(await self._leases.execute(call), sent_at)

    async def release(self) -> None:
        """Give it back; the next in line has it at once.

        Raises `LeaseNotHeldError` if it was released before, or is not held any more. Whatever
        happens, nothing renews it afterwards. A caller that is cancelled here has released it
        all the same.
        """
        self.must_be_open("release it")
        self._leases.check_loop()
        await self._give_back()

    async def _give_back(self) -> None:
        target, token = self.grant.claim.target, self.grant.token
        if self._leases.points.wants("lease:before_release", "lease:after_release"):
            try:
                await self._leases.at("lease:before_release", target, token)
            finally:
                await self._given_back()
            await self._leases.at("lease:after_release", target, token)
        else:
            await self._given_back()

    async def _given_back(self) -> None:
        self.end()
        self.released(await self._leases.give_back(self.grant.claim, self.grant.token))

    def mark_lost(self) -> None:
        """Let `lost` fire, and hooks hear of it."""
        super().mark_lost()
        self._leases.tell_lost(self)

    # --- as a context manager

    async def __aenter__(self) -> Self:
        # Who works in the block is to be stopped, which need not be the task that acquired it.
        self.cancellation = Cancellation(asyncio.current_task())
        self.check()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.close()
        except SpellError as failed:
            if error is None:
                raise
            note_failed_release(self, failed)  # the block's own error goes first
        if self.lost.is_set() and await self.cancellation.settle(error) is None:
            raise self.lost_error()

    async def close(self) -> None:
        """Release it if it is held still; if it turns out not to be, `lost` fires."""
        if self.grant.ended:
            return
        try:
            await self._give_back()
        except LeaseNotHeldError as gone:
            self.turned_out_lost(gone)
