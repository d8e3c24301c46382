"""Steps through the library, as an asyncio program calls it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from llmspell_dist import Revision, Spell, Transaction
from loadtests.feed_numbers import Numbering
from loadtests.ledger import Ledger, LostUpdateError
from loadtests.mixes import board_scope, event_type
from loadtests.steps import Kind, Step

__all__ = ["LibraryCalls"]

_LEASE_S: Final = 10.0
_PATIENCE_S: Final = 20.0
Took = Callable[[str, float, Exception | None], None]


@dataclass(slots=True)
class LibraryCalls:
    """One user's calls. What it was acknowledged stands in the ledger."""

    spell: Spell
    run: str
    user: str
    ledger: Ledger
    took: Took
    numbers: Numbering = field(default_factory=Numbering)
    _checkpoints: dict[str, Revision] = field(default_factory=dict)

    async def perform(self, step: Step) -> None:
        """Do one step; what goes wrong is told to `took`, nothing is raised."""
        failure = None
        began = time.perf_counter()
        try:
            await _DO[step.kind](self, step, step.at(self.run, self.user))
        except Exception as error:  # noqa: BLE001 - whatever it is, the test goes on and counts it
            failure = error
        self.took(step.name, (time.perf_counter() - began) * 1000, failure)

    # --- kinds of steps

    async def _get(self, step: Step, scope: str) -> None:
        await self.spell.state.get(scope, step.key)

    async def _slice(self, step: Step, scope: str) -> None:
        await self.spell.state.get_slice(scope, step.key, step.value)

    async def _set(self, step: Step, scope: str) -> None:
        if step.ttl is None:
            await self.spell.state.set(scope, step.key, step.value)
        else:
            await self.spell.state.set(scope, step.key, step.value, ttl=step.ttl)

    async def _append(self, step: Step, scope: str) -> None:
        tally = self.ledger.of(scope, step.key)
        tally.sent += 1
        await self.spell.state.append(scope, step.key, step.value)
        tally.acknowledged += 1

    async def _increment(self, step: Step, scope: str) -> None:
        tally = self.ledger.of(scope, step.key)
        tally.sent += 1
        await self.spell.state.increment(scope, step.key)
        tally.acknowledged += 1

    async def _checkpoint(self, step: Step, scope: str) -> None:
        last = self._checkpoints.pop(scope, None)
        if last is None:
            revision = await self.spell.state.set(scope, step.key, step.value)
        else:
            revision = await self.spell.state.compare_and_set(
                scope, step.key, step.value, expected=last
            )
        self._checkpoints[scope] = revision

    async def _read_back(self, step: Step, scope: str) -> None:
        if await self.spell.state.get(scope, step.key) != step.value:
            problem = f"{step.key} in {scope} reads back differently"
            self.ledger.problems.append(problem)
            raise LostUpdateError(problem)

    async def _recall(self, step: Step, scope: str) -> None:
        found = await self.spell.state.get(scope, step.key, [])
        self.ledger.check(scope, step.key, len(found))

    async def _delete(self, step: Step, scope: str) -> None:
        self.ledger.of(scope, step.key).acknowledged = 0  # from here on it may be gone
        await self.spell.state.delete(scope, step.key)
        self.ledger.forget(scope, step.key)

    async def _clear(self, step: Step, scope: str) -> None:
        self.ledger.of(scope, step.key).acknowledged = 0
        await self.spell.state.clear(scope)
        self.ledger.forget(scope, step.key)

    async def _publish(self, step: Step, scope: str) -> None:  # noqa: ARG002
        news = self.numbers.next_news("event", self.user)
        await self.spell.events.publish(event_type(scope), news)

    async def _write_news(self, step: Step, scope: str) -> None:
        await self.spell.state.set(scope, step.key, self.numbers.next_news("news", self.user))

    async def _close_turn(self, step: Step, scope: str) -> None:
        board = board_scope(self.run)
        tally = self.ledger.of(board, "turns")
        tally.sent += 1
        async with self.spell.state.transaction() as tx:
            tx.set(scope, step.key, step.value)
            tx.increment(board, "turns")
        tally.acknowledged += 1

    async def _transfer(self, step: Step, scope: str) -> None:
        self.ledger.banks.add(scope)

        async def move(tx: Transaction) -> None:
            mine = await tx.get(scope, step.key, 0)
            theirs = await tx.get(scope, step.value, 0)
            tx.set(scope, step.key, mine - 1)
            tx.set(scope, step.value, theirs + 1)

        await self.spell.state.run_transaction(move)

    async def _count_under_lease(self, step: Step, scope: str) -> None:
        tally = self.ledger.of(scope, step.key)
        acquiring = self.spell.leases.acquire(
            scope, ttl=_LEASE_S, wait=_PATIENCE_S, owner=self.user
        )
        began = time.perf_counter()
        async with acquiring as lease:
            self.took(f"{step.name}: acquire", (time.perf_counter() - began) * 1000, None)
            number = await lease.state.get(scope, step.key, 0)
            tally.sent += 1
            await lease.state.set(scope, step.key, number + 1)
            tally.acknowledged += 1


_Do = Callable[[LibraryCalls, Step, str], Awaitable[None]]
_DO: Final[dict[Kind, _Do]] = {kind: getattr(LibraryCalls, f"_{kind}") for kind in Kind}
