"""What agents need of leases; who puts the client together hands them in."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from llmspell_dist.blocking.leases import Lease as BlockingLease
    from llmspell_dist.leases.holding import Lease
    from llmspell_dist.scope import Scope

__all__ = ["AsyncLeases", "BlockingLeases"]


class AsyncLeases(Protocol):
    """Where leases come from."""

    def acquire(
        self,
        scope: str | Scope,
        *,
        name: str = "main",
        ttl: float | timedelta = 10.0,
        wait: float | timedelta | None = None,
        label: str | None = None,
    ) -> AbstractAsyncContextManager[Lease]:
        """Hold a lease for the length of a block."""


class BlockingLeases(Protocol):
    """Where leases come from, blocking."""

    def acquire(
        self,
        scope: str | Scope,
        *,
        name: str = "main",
        ttl: float | timedelta = 10.0,
        wait: float | timedelta | None = None,
        label: str | None = None,
    ) -> AbstractContextManager[BlockingLease]:
        """Hold a lease for the length of a block."""
