"""Several leases that are held together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from llmspell_dist.errors import InvalidArgumentError, LeaseNotHeldError, SpellError
from llmspell_dist.leases.cancellation import Cancellation
from llmspell_dist.leases.held import HeldGroup, note_failed_release
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
        self._leases = leases
        self._rebind(task)

    def _rebind(self, task: asyncio.Task[Any] | None) -> None:
        """Let this task be stopped: once, however many of the leases are lost."""
        self._cancellation = Cancellation(task)
        for lease in self._held:
            lease.cancellation = self._cancellation

    async def release(self) -> None:
        """Give them all back; the first `LeaseNotHeldError` is raised when all were tried."""
        for lease in self._held:
            lease.must_be_open("release it")
        failed = await self._give_back()
        if failed is not None:
            raise failed

    async def _give_back(self) -> SpellError | None:
        """Give back what is held still; what went wrong first.

        Nothing renews them from the first moment on, and all releases leave together: whatever
        happens to one of them, or to the caller, the others are on their way.
        """
        held = [lease for lease in reversed(self._held) if not lease.grant.ended]
        for lease in held:
            lease.end()
        told = await self._leases.give_all_back([lease.grant for lease in held])
        failed: SpellError | None = None
        for lease, reply in zip(held, told, strict=True):
            try:
                if isinstance(reply, BaseException):
                    raise reply
                lease.released(reply)
            except LeaseNotHeldError as gone:
                lease.turned_out_lost(gone)
                failed = failed or gone
            except SpellError as error:
                failed = failed or error
        return failed

    async def __aenter__(self) -> Self:
        self._rebind(asyncio.current_task())
        self.check()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        failed = await self._give_back()
        lost = self.lost_ones()
        if lost:
            if await self._cancellation.settle(error) is None:
                raise lost[0].lost_error()
        elif failed is not None:
            if error is None:
                raise failed
            note_failed_release(self, failed)
