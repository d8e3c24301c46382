"""Our side of the rows, and the proof after each writing row that its data really is there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import llmspell_dist
from benchmarks.harness import Arm, concurrently
from benchmarks.layout import FIELDS, KEYS, SCOPES, VARIANTS, WORKERS, Values
from benchmarks.server import Server

__all__ = [
    "NAMESPACE",
    "OURS",
    "check_written",
    "entries_added",
    "fill_scopes",
    "open_ours",
    "reading_arm",
    "writing_arm",
]

OURS = "llmspell_dist"
NAMESPACE = "bench"
_LOG = f"{NAMESPACE}:{{0}}:log"


@asynccontextmanager
async def open_ours(
    server: Server, options: llmspell_dist.Options | None = None
) -> AsyncIterator[llmspell_dist.Spell]:
    """Connect, with default options unless told otherwise, as a reader of the README would."""
    async with llmspell_dist.connect(server.url, namespace=NAMESPACE, options=options) as spell:
        yield spell


async def fill_scopes(spell: llmspell_dist.Spell, values: Values) -> None:
    """Write the scopes that our readers read."""
    for scope in SCOPES:
        await spell.state.set_many(scope, dict(zip(FIELDS, values.objects * KEYS, strict=False)))


def reading_arm(spell: llmspell_dist.Spell, values: Values) -> Arm:
    """Return our arm of 50 concurrent readers; every 1,000th value is compared."""
    get = spell.state.get
    expected = values.objects

    def call(worker: int, turn: int) -> Awaitable[object]:
        return get(SCOPES[worker], FIELDS[turn % KEYS])

    async def work(count: int) -> None:
        await concurrently(WORKERS, count, call)

    async def prepare(count: int) -> None:
        found = await get(SCOPES[count % WORKERS], FIELDS[count % KEYS])
        assert found == expected[count % KEYS % VARIANTS], "a read returned another value"

    return Arm(OURS, work, prepare, step=WORKERS)


def writing_arm(spell: llmspell_dist.Spell, values: Values, commits: list[int]) -> Arm:
    """Return our arm of 50 concurrent writers; the calls that it made are added to ``commits``."""
    put = spell.state.set
    data = values.objects

    def call(worker: int, turn: int) -> Awaitable[object]:
        return put(SCOPES[worker], FIELDS[turn % KEYS], data[turn % VARIANTS])

    async def work(count: int) -> None:
        await concurrently(WORKERS, count, call)
        commits.append(count)

    return Arm(OURS, work, step=WORKERS)


def entries_added(server: Server) -> int:
    """Return how many entries the change log ever got, trimmed ones included."""
    with server.admin() as admin:
        if not admin.exists(_LOG):
            return 0
        info: dict[str, Any] = admin.xinfo_stream(_LOG)
        return int(info.get("entries-added", info["length"]))


async def check_written(
    spell: llmspell_dist.Spell, server: Server, values: Values, *, commits: int, before: int
) -> None:
    """Assert that all data is there, and one log entry per commit, readable while it is kept."""
    assert entries_added(server) - before == commits, "commits without an entry in the log"
    (oldest,) = await spell.log.entries(limit=1)
    for scope in SCOPES:
        async for key, found in spell.state.items(scope):
            assert found in values.objects, f"{scope} {key}: a value that nobody wrote"
            record = await spell.state.get_record(scope, key)
            assert record is not None
            if record.revision < oldest.revision:
                continue  # trimmed: many commits ago
            (newest,) = await spell.state.history(scope, key, limit=1)
            assert newest.revision == record.revision, f"{scope} {key}: the log is behind"
            assert newest.value == found, f"{scope} {key}: log and record differ"
