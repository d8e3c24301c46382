"""Ask who changed what, and what a value was before: the change log answers.

``python history_and_time_travel.py [URL]``; without a URL everything happens inside this process.
"""

from __future__ import annotations

import asyncio
import sys

import llmspell_dist

WORKFLOW = "workflow:release-7"


async def main(url: str) -> None:
    """Let two agents change a value, then look back."""
    async with llmspell_dist.connect(url, namespace="example-history") as spell:
        state = spell.state
        await state.clear(WORKFLOW)

        with llmspell_dist.context(actor="planner", correlation_id="ticket-42"):
            first = await state.set(WORKFLOW, "status", "planned")
        with llmspell_dist.context(actor="coder", correlation_id="ticket-42"):
            await state.set(WORKFLOW, "status", "in review")
            await state.delete(WORKFLOW, "status")
            last = await state.set(WORKFLOW, "status", "released")

        # Newest first; every change knows who made it, when, and what it followed on.
        changes = await state.history(WORKFLOW, "status", limit=4)
        for change in changes:
            what = change.value if change.has_value else "–"
            print(f"{change.time:%H:%M:%S.%f}  {change.actor:<8} {change.op:<7} {what}")
        assert [change.actor for change in changes] == ["coder", "coder", "coder", "planner"]
        assert changes[0].revision == last
        assert changes[0].correlation_id == "ticket-42"

        # A revision is a moment: read the past by it, or by a time.
        assert await state.get_at(WORKFLOW, "status", first) == "planned"
        assert await state.get_at(WORKFLOW, "status", changes[1].revision, "gone") == "gone"
        assert await state.get_at(WORKFLOW, "status", last.time) is not None
        assert await state.get(WORKFLOW, "status") == "released"
        print(f"at {first} it was {await state.get_at(WORKFLOW, 'status', first)!r}")

        # A list's past is a shorter list.
        for number in range(5):
            await state.append(WORKFLOW, "notes", f"note {number}")
        third = (await state.history(WORKFLOW, "notes"))[2].revision
        print(f"the notes at {third}: {await state.get_at(WORKFLOW, 'notes', third)}")
        assert await state.get_at(WORKFLOW, "notes", third) == ["note 0", "note 1", "note 2"]
        await state.clear(WORKFLOW)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory://history"))
