"""One correlation, several real processes; a user with few rights; a connection that is cut."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fix_correlation import ids

import llmspell_dist
from llmspell_dist.correlation import CorrelationContext, EntryKind, correlation, to_headers

if TYPE_CHECKING:
    from fix_servers import Server

pytestmark = [pytest.mark.integration, pytest.mark.needs("process")]

EACH = 40
WORKER = """
import asyncio, json, sys
import llmspell_dist
from llmspell_dist.context import context
from llmspell_dist.correlation import correlation, from_headers

async def main():
    url, namespace, name, headers, each = sys.argv[1:]
    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        with correlation(from_headers(json.loads(headers)), actor=name):
            async def step(number):
                revision = await spell.state.set(f"agent:{name}", f"k{number}", number)
                with context(causation_id=str(revision)):
                    await spell.events.publish("step.done", number)
            await asyncio.gather(*[step(number) for number in range(int(each))])
        print("done", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        timeline = await spell.correlation.timeline("run")
        print(json.dumps([entry.id for entry in timeline]))

asyncio.run(main())
"""


@pytest.mark.needs("process")
async def test_several_processes_make_and_see_one_timeline(server: Server, namespace: str) -> None:
    """Nothing is lost, every event stands below its commit, and all see it in the same order."""
    package = str(Path(llmspell_dist.__file__).parents[1])
    async with llmspell_dist.connect(server.url, namespace=namespace) as spell:
        run = CorrelationContext.new_root("run")
        with correlation(run, actor="here"):
            asked = await spell.events.publish("run.wanted")
        headers = json.dumps(to_headers(run, causation_id=asked.id))
        workers = [
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", WORKER, server.url, namespace, name, headers, str(EACH)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": package},
                limit=1 << 20,
            )
            for name in ("a", "b", "c")
        ]
        try:
            for worker in workers:
                assert worker.stdout is not None
                assert await worker.stdout.readline() == b"done\n"
            seen = [await worker.communicate(b"\n") for worker in workers]
        finally:
            for worker in workers:
                if worker.returncode is None:
                    worker.kill()
                    await worker.wait()
        timeline = await spell.correlation.timeline("run")
    assert [json.loads(out) for out, _ in seen] == [ids(timeline)] * 3
    said = timeline.statistics
    assert said.by_kind == {"event": 1 + 3 * EACH, "change": 3 * EACH}
    assert said.by_source == {"here": 1, "a": 2 * EACH, "b": 2 * EACH, "c": 2 * EACH}
    assert (said.unresolved, said.left_out, said.max_depth) == (0, {}, 2)
    assert {one.depth for one in timeline if one.kind is EntryKind.CHANGE} == {1}
    assert ids(timeline.roots) == [asked.id]


@pytest.mark.needs("acl")
async def test_a_right_that_is_missing_loses_the_note_and_not_the_commit(
    server: Server, namespace: str
) -> None:
    """Of the commands that only remembering needs."""
    from llmspell_dist.keys import KeySpace
    from llmspell_dist.revision import Revision

    log = KeySpace(namespace).correlation_log("0", "run")
    server.call("RPUSH", log, *[Revision(1, number).packed for number in range(10_000)])
    server.call("ACL", "SETUSER", "default", "-ltrim")
    try:
        async with llmspell_dist.connect(server.url, namespace=namespace) as spell:
            with correlation("run"):
                revision = await spell.state.set("agent:a", "k", 1)
            record = await spell.state.get_record("agent:a", "k")
            assert record is not None
            assert record.revision == revision
    finally:
        server.call("ACL", "SETUSER", "default", "+ltrim")
    assert server.call("LLEN", log) == 10_001
