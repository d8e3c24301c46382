"""A hook that audits: who changed what, in a list that every process can read.

``python audit_changes.py [URL]``; without a URL everything happens inside this process.
"""

from __future__ import annotations

import asyncio
import sys

import llmspell_dist
from llmspell_dist import ConflictError, Revision
from llmspell_dist.hooks import AuditHook, HookPoint

SCOPE, AUDIT = "agent:example-audit", "custom:example-audit"


async def main(url: str) -> None:
    """Change something as two people, and read who it was."""
    async with llmspell_dist.connect(url, namespace="example-hooks") as spell:
        state = spell.state
        await state.clear(SCOPE)
        await state.clear(AUDIT)
        audit = AuditHook.to_list(state, AUDIT, "changes", values=True)
        # In line: when `set` returns, the entry is there; if it cannot be written, that is raised.
        spell.hooks.register(HookPoint.AFTER_STATE_WRITE, audit, timeout=5, on_failure="raise")

        with llmspell_dist.context(actor="ann", correlation_id="ticket-17"):
            await state.set(SCOPE, "limit", 10)
            await state.set_many(SCOPE, {"mode": "fast", "password": {"secret": "hunter2"}})
        with llmspell_dist.context(actor="bob"):
            await state.delete(SCOPE, "mode")
            try:
                await state.compare_and_set(SCOPE, "limit", 99, expected=Revision(1, 0))
            except ConflictError:
                print("bob was too late")

        entries = await state.get(AUDIT, "changes")
        for entry in entries:
            said = entry["error"] or "done"
            print(f"{entry['actor']}: {entry['operation']} {entry['key']} — {said}")
        assert [(one["actor"], one["key"]) for one in entries] == [
            ("ann", "limit"),
            ("ann", "mode"),
            ("ann", "password"),
            ("bob", "mode"),
            ("bob", "limit"),
        ]
        assert entries[0]["correlation_id"] == "ticket-17"
        assert entries[1]["batch"] == entries[2]["batch"]
        assert entries[4]["error"] == "ConflictError"
        assert "hunter2" not in repr(entries)
        await state.clear(SCOPE)
        await state.clear(AUDIT)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory://audit"))
