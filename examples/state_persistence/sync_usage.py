"""The same calls without asyncio: for scripts, notebooks and thread-based web workers.

``python sync_usage.py [URL]``; without a URL everything happens inside this process.
"""

from __future__ import annotations

import sys

from llmspell_dist import ConflictError, blocking

TOOL = "tool:search"


def main(url: str) -> None:
    """Show that the blocking surface is the async one minus async and await."""
    with blocking.connect(url, namespace="example-sync") as spell:
        state = spell.state
        state.clear(TOOL)

        revision = state.set(TOOL, "settings", {"engine": "local", "limit": 10})
        print(f"written as {revision}: {state.get(TOOL, 'settings')}")
        assert state.increment(TOOL, "calls") == 1
        assert state.append(TOOL, "queries", "redis streams", "valkey hashes") == 2

        with state.transaction() as tx:
            calls = tx.get(TOOL, "calls")
            tx.set(TOOL, "calls", calls + 1)
            tx.append(TOOL, "queries", "lua scripts")
        assert state.get_many(TOOL, ["calls", "queries"]) == {
            "calls": 2,
            "queries": ["redis streams", "valkey hashes", "lua scripts"],
        }

        state.set(TOOL, "settings", {"engine": "remote", "limit": 10})
        try:
            state.compare_and_set(TOOL, "settings", {}, expected=revision)
        except ConflictError as conflict:
            print(f"refused: {conflict}")
        else:
            raise AssertionError("a stale write went through")

        print(f"keys: {sorted(state.keys(TOOL))}")
        assert dict(state.items(TOOL)) == state.get_all(TOOL)
        assert state.clear(TOOL) == 3


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "memory://sync")
