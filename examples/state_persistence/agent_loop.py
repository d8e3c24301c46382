"""An agent's loop that survives its own death: nodes take the state and return what changes.

The shape is that of a graph node (state in, partial update out), with no framework. Each node's
result, its message and the position in the graph are one commit: killed anywhere, the loop goes
on with the node that was not finished, and no node's result is there twice.

``python agent_loop.py [URL]``; without a URL everything happens inside this process.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import llmspell_dist

Facts = dict[str, Any]
RUN = "workflow:research-1"
AGENT = "agent:researcher"


class PowerCutError(Exception):
    """The machine went away in the middle of a node."""


async def plan(facts: Facts) -> Facts:
    """Decide what to look up."""
    return {"queries": [f"{facts['question']} (overview)", f"{facts['question']} (figures)"]}


async def search(facts: Facts) -> Facts:
    """Pretend to ask a search engine."""
    return {"findings": {query: f"three pages on {query}" for query in facts["queries"]}}


async def write(facts: Facts) -> Facts:
    """Pretend to ask a model for the answer."""
    return {"answer": f"{len(facts['findings'])} findings on {facts['question']}"}


NODES: list[Callable[[Facts], Awaitable[Facts]]] = [plan, search, write]


async def run(spell: llmspell_dist.Spell, *, power_cut_in: int | None = None) -> Facts:
    """Run the graph from where it stands and return all facts."""
    state = spell.state
    while (position := await state.get(RUN, "position", 0)) < len(NODES):
        node = NODES[position]
        facts = await state.get(RUN, "facts", {})
        update = await node(facts)
        if position == power_cut_in:
            raise PowerCutError(node.__name__)
        with llmspell_dist.context(actor=node.__name__, correlation_id="research-1"):
            async with state.transaction() as tx:
                # Reading the position makes the commit depend on it: two processes that run the
                # same graph cannot both finish the same node.
                assert await tx.get(RUN, "position", 0) == position
                tx.merge(RUN, "facts", update)
                tx.append(AGENT, "messages", {"role": "assistant", "content": str(update)})
                tx.set(RUN, "position", position + 1)
        print(f"{node.__name__}: {update}")
    result: Facts = await state.get(RUN, "facts")
    return result


async def main(url: str) -> None:
    """Start a run, cut the power in its second node, and let another process finish it."""
    async with llmspell_dist.connect(url, namespace="example-agent-loop") as keeper:
        for scope in (RUN, AGENT):
            await keeper.state.clear(scope)
        await keeper.state.merge(RUN, "facts", {"question": "tides"})

        try:
            async with llmspell_dist.connect(url, namespace="example-agent-loop") as first:
                await run(first, power_cut_in=1)
        except PowerCutError as cut:
            print(f"the power went out in {cut}")

        async with llmspell_dist.connect(url, namespace="example-agent-loop") as second:
            facts = await run(second)
        print(f"answer: {facts['answer']}")
        assert facts["answer"] == "2 findings on tides"
        assert len(await keeper.state.get(AGENT, "messages")) == len(NODES)
        actors = [change.actor for change in await keeper.state.history(RUN, "position", limit=3)]
        assert actors == ["write", "search", "plan"]
        for scope in (RUN, AGENT):
            await keeper.state.clear(scope)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory://agent-loop"))
