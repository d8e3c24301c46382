"""Two processes, one timeline: a planner asks, a searcher in another process answers.

``python two_processes_one_timeline.py [URL]``; without a URL a server is started for it, because
two processes need one that they can share.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import ExitStack

import llmspell_dist
from llmspell_dist.correlation import (
    CorrelationContext,
    CorrelationQuery,
    Timeline,
    correlation,
    from_headers,
    to_headers,
)
from llmspell_dist.testing import embedded_server

NAMESPACE = "example-correlation"
RUN = "example-run"
AGENT = "agent:example-planner"


async def search(url: str, headers: dict[str, str]) -> None:
    """Answer, in another process: all that it has of the run came in these headers."""
    async with llmspell_dist.connect(url, namespace=NAMESPACE) as spell:
        with correlation(from_headers(headers), actor="searcher"):
            async with spell.leases.acquire(AGENT) as lease:
                found = await lease.state.set(AGENT, "found", ["Redis", "Valkey"])
            await spell.events.publish("search.response", causation_id=str(found))


async def ask(spell: llmspell_dist.Spell, url: str, run: CorrelationContext) -> None:
    """Plan, publish what is wanted, and send another process on its way with the headers."""
    with correlation(run, actor="planner"):
        planned = await spell.state.set(AGENT, "plan", "look for servers")
        wanted = await spell.events.publish("search.request", causation_id=str(planned))
        headers = to_headers(run, causation_id=wanted.id)
        searcher = await asyncio.create_subprocess_exec(
            sys.executable, __file__, url, json.dumps(headers)
        )
        assert await searcher.wait() == 0


def show(timeline: Timeline) -> None:
    """Print who did what, and because of what."""
    for entry in timeline:
        causes = ", ".join(f"#{cause.position}" for cause in timeline.causes(entry))
        because = f" because of {causes}" if causes else ""
        print(f"#{entry.position} {entry.type} by {entry.source}{because}")


async def main(url: str) -> None:
    """Let both work, and look at what came of it."""
    async with llmspell_dist.connect(url, namespace=NAMESPACE) as spell:
        await spell.correlation.forget(RUN)
        run = CorrelationContext.new_root(RUN, metadata={"user": "ann"}, tags=["example"])
        await ask(spell, url, run)

        timeline = await spell.correlation.timeline(RUN)
        show(timeline)
        by_type = {entry.type: entry for entry in timeline}
        answer = by_type["search.response"]
        chain = [timeline[position].type for position in timeline.chains[-1].positions]
        assert answer.source == "searcher"
        assert chain == ["state.set", "search.request", "state.set", "search.response"]
        assert answer.depth == 3
        assert answer.detail.traceparent == run.traceparent, "one trace over both processes"
        assert by_type["lease.acquired"].source == "searcher"
        assert timeline.statistics.by_source == {"planner": 2, "searcher": 4}

        last = await spell.correlation.query(
            CorrelationQuery(correlation_ids=[RUN], types=["search.*"], leaf_effects_only=True)
        )
        print(f"found as the last of it: {last[0].entry.type} ({', '.join(last[0].reasons)})")
        assert [match.entry.id for match in last] == [answer.id]
        await spell.correlation.forget(RUN)
        await spell.state.clear(AGENT)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        asyncio.run(search(sys.argv[1], json.loads(sys.argv[2])))
    else:
        with ExitStack() as stack:
            given = sys.argv[1] if len(sys.argv) > 1 else ""
            asyncio.run(main(given or stack.enter_context(embedded_server()).url))
