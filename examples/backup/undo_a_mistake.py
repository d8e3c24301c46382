"""Agents write, one makes a mistake, and its scope alone is put back as it was.

``python undo_a_mistake.py [URL]``; without a URL everything happens inside this process. The
backups go to a folder that is removed at the end; ``s3://bucket/prefix`` in its place would do.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import llmspell_dist
from llmspell_dist import ConflictError
from llmspell_dist.backup import FileKeys

AGENTS = ("alice", "bob", "carol")
TOTAL = 300


def scope(name: str) -> str:
    """Return the scope of an agent."""
    return f"agent:example-{name}"


async def pay(state: llmspell_dist.StateManager, payer: str, payee: str, amount: int) -> None:
    """Move money between two agents: both see it, or neither."""
    async with state.transaction() as tx:
        tx.increment(scope(payer), "money", -amount)
        tx.increment(scope(payee), "money", amount)


async def work(state: llmspell_dist.StateManager, name: str, stop: asyncio.Event) -> None:
    """Write all the time."""
    others = [other for other in AGENTS if other != name]
    turn = 0
    while not stop.is_set():
        await pay(state, name, others[turn % 2], 1)
        await state.append(scope(name), "messages", {"role": "tool", "content": f"turn {turn}"})
        turn += 1


async def money(state: llmspell_dist.StateManager) -> int:
    """Return what all agents have together."""
    return sum([await state.get(scope(name), "money") for name in AGENTS])


async def main(url: str, folder: Path) -> None:
    """Take a backup in the middle of everything, and get back what is needed of it."""
    keys = FileKeys(folder / "keys")
    keys.generate()
    async with llmspell_dist.connect(url, namespace="example-backup") as spell:
        state, store = spell.state, spell.backups.to(str(folder / "backups"), keys=keys)
        for name in AGENTS:
            await state.set(scope(name), "money", TOTAL // len(AGENTS))
            await state.set(scope(name), "goal", f"what {name} is for")

        # Nobody stops for the backup.
        stop = asyncio.Event()
        agents = [asyncio.create_task(work(state, name, stop)) for name in AGENTS]
        made = await store.create()
        stop.set()
        await asyncio.gather(*agents)
        print(f"backup: {made.stats.records} records of {made.stats.scopes} scopes, encrypted")
        assert made.encrypted

        # The mistake: alice forgets everything. The others go on.
        good = (await state.history(scope("alice"), "messages", limit=1))[0].revision
        kept = await state.get(scope("alice"), "messages")
        bobs = await state.set(scope("bob"), "goal", "something new")
        await state.clear(scope("alice"))
        await state.set(scope("alice"), "goal", "ERROR: no goal")

        # Any moment that backup and log lead to, also one between two backups.
        report = await store.restore(at=good, scopes=[scope("alice")])
        assert await state.get(scope("alice"), "messages") == kept
        assert await state.get(scope("alice"), "goal") == "what alice is for"
        assert await state.get(scope("bob"), "goal") == "something new"
        print(f"alice is back with {len(kept)} messages, from {len(report.sources)} sources")

        # Who had read before the restore is not fooled.
        untouched = await state.get_record(scope("bob"), "goal")
        assert untouched is not None
        assert untouched.revision == bobs
        try:
            await state.compare_and_set(scope("alice"), "goal", "mine", expected=good)
        except ConflictError as conflict:
            print(f"a compare-and-set of before: {conflict.code}")
        else:
            raise AssertionError("a restored record had an old revision")

        # Every moment holds whole transactions: no money made, none lost.
        await store.restore(at=made.id)
        assert await money(state) == TOTAL
        print(f"as of the backup they have {await money(state)} together")

        for name in AGENTS:
            await state.clear(scope(name))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="llmspell-example-") as place:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory://undo", Path(place)))
