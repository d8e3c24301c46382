"""Several leases that are held together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from llmspell_dist.errors import InvalidArgumentError, LeaseNotHeldError
from llmspell_dist.leases.cancellation import Cancellation
from llmspell_dist.leases.held import HeldGroup
from llmspell_dist.leases.holding import Lease
from llmspell_dist.leases.terms import DEFAULT_NAME
from llmspell_dist.scope import Scope
from llmspell_dist.state.manager import StateManager

if TYPE_CHECKING:
    from llmspell_dist.leases.manager import Leases
    from llmspell_dist.leases.steps import LeaseSteps, Target

__all__ = ["LeaseGroup", "in_order"]

MAX_TOGETHER = 64


def in_order(
    steps: LeaseSteps, targets: Iterable[str | Scope | tuple[str | Scope, str]]
) -> list[Target]:
    """Return leases in the order in which everybody takes them: by their keys."""
    if isinstance(targets, (str, bytes, Scope)):
        rule = "must be several scopes, or pairs of scope and name"
        raise InvalidArgumentError("targets", targets, rule)
    found: dict[bytes, Target] = {}
    for wanted in targets:
        scope, name = wanted if isinstance(wanted, tuple) else (wanted, DEFAULT_NAME)
        target = steps.target(scope, name)
        if target.keys[0] in found:
            raise InvalidArgumentError("targets", wanted, "must not name one lease twice")
        found[target.keys[0]] = target
    if not 0 < len(found) <= MAX_TOGETHER:
        rule = f"must be 1 to {MAX_TOGETHER} leases"
        raise InvalidArgumentError("targets", len(found), rule)
    return [found[key] for key in sorted(found)]


class LeaseGroup(HeldGroup[Lease, StateManager]):
    """Leases that were taken together; a sequence of them.

    Each is renewed by itself. If one is lost, the task is cancelled as for a single one.
    """

    def __init__(self, leases: Leases, held: list[Lease], task: asyncio.Task[Any] | None) -> None:
        super().__init__(leases, held)
        # One cancellation for all of them, however many are lost.
        cancellation = Cancellation(task)
        for lease in held:
            lease.cancellation = cancellation
        self._cancellation = cancellation

    async def release(self) -> None:
        """Give them all back; the first `LeaseNotHeldError` is raised when all were tried."""
        gone: LeaseNotHeldError | None = None
        for lease in reversed(self._held):
            try:
                await lease.release()
            except LeaseNotHeldError as error:
                gone = gone or error
        if gone is not None:
            raise gone

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for lease in reversed(self._held):
            await lease.close()
        lost = self.lost_ones()
        if lost and await self._cancellation.settle(error) is None:
            raise lost[0].lost_error()
