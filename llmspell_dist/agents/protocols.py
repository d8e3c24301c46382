"""What agents need of leases; who puts the client together hands them in."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.core import Core

__all__ = ["AsyncLeases", "BlockingLeases", "HeldLease"]


class HeldLease(Protocol):
    """A lease that is held."""

    @property
    def core(self) -> Core:
        """A core whose every commit carries the lease."""


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
    ) -> AbstractAsyncContextManager[HeldLease]:
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
    ) -> AbstractContextManager[HeldLease]:
        """Hold a lease for the length of a block."""
