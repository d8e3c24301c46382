"""What backups are compared with: everything in a namespace, and what its writers were told."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from llmspell_dist import Revision, Spell, StateClass

__all__ = ["SCOPES", "Ledger", "differing", "everything", "write"]


async def everything(spell: Spell) -> dict[str, dict[str, Any]]:
    """Return what all scopes hold."""
    return {
        scope.text: dict(sorted((await spell.state.get_all(scope)).items()))
        async for scope in spell.state.scopes()
    }


def differing(found: dict[str, dict[str, Any]], right: dict[str, dict[str, Any]]) -> Any:
    """Return by scope and key what is not the same: what was found, and what is right."""
    return {
        (scope, key): (found.get(scope, {}).get(key), right.get(scope, {}).get(key))
        for scope in found.keys() | right.keys()
        for key in found.get(scope, {}).keys() | right.get(scope, {}).keys()
        if found.get(scope, {}).get(key) != right.get(scope, {}).get(key)
    }


class Ledger:
    """What writers did, told by their own acknowledgements: the oracle of what a moment was."""

    def __init__(self) -> None:
        self.done: list[tuple[Revision, int, str, str, str, Any]] = []
        self._grown = asyncio.Event()

    async def reached(self, count: int) -> None:
        """Wait until so many commits were noted."""
        while len(self.done) < count:
            self._grown.clear()
            await self._grown.wait()

    def note(self, revision: Revision | None, scope: str, key: str, what: str, value: Any) -> None:
        """Remember a commit."""
        if revision is not None:
            self.done.append((revision, len(self.done), scope, key, what, value))
            self._grown.set()

    def at(self, moment: Revision | None) -> dict[str, dict[str, Any]]:
        """Return what there was at a moment."""
        state: dict[str, dict[str, Any]] = {}
        for revision, _, scope, key, what, value in sorted(self.done, key=lambda one: one[:2]):
            if moment is None or revision > moment:
                break
            there = state.setdefault(scope, {})
            if what == "set":
                there[key] = value
            elif what == "append":
                there[key] = [*there.get(key, []), *value]
            elif what == "merge":
                there[key] = {**there.get(key, {}), **value}
            elif what == "add":
                there[key] = there.get(key, 0) + value
            elif what == "delete":
                there.pop(key, None)
        return {scope: dict(sorted(keys.items())) for scope, keys in state.items() if keys}


SCOPES = [f"agent:{n}" for n in range(6)] + ["custom:large"]


async def write(spell: Spell, ledger: Ledger, rng: random.Random, stop: asyncio.Event) -> None:
    """Commit at random until told to stop; every key of one writer only."""
    state, mine, turn = spell.state, f"w{rng.randrange(10**6)}", 0
    kinds = ("v", "big", "bulk", "l", "m", "n", "pair")
    while not stop.is_set():
        turn += 1
        scope, kind = rng.choice(SCOPES), rng.choice(kinds)
        key = f"{mine}:{kind}:{rng.randrange(4)}"
        async with state.transaction() as tx:
            if rng.random() < 0.25:
                tx.delete(scope, key)
                done: tuple[str, Any] = ("delete", None)
            elif kind in ("v", "big", "bulk"):
                value = {"turn": turn, "text": "x" * (3000 if kind == "big" else 20)}
                chosen = StateClass.BULK if kind == "bulk" else None
                tx.set(scope, key, value, state_class=chosen)
                done = ("set", value)
            elif kind == "l":
                tx.append(scope, key, turn)
                done = ("append", [turn])
            elif kind == "m":
                field = str(rng.randrange(3))
                tx.merge(scope, key, {field: turn})
                done = ("merge", {field: turn})
            elif kind == "n":
                tx.increment(scope, key, turn)
                done = ("add", turn)
            else:
                other = rng.choice(SCOPES)
                tx.increment(scope, f"{mine}:from", -turn)
                tx.increment(other, f"{mine}:to", turn)
                done = ("pair", other)
        if done[0] == "pair":
            ledger.note(tx.revision, scope, f"{mine}:from", "add", -turn)
            ledger.note(tx.revision, done[1], f"{mine}:to", "add", turn)
        else:
            ledger.note(tx.revision, scope, key, *done)
