"""One agent, two processes: the second goes on where the first one died, and shuts it out.

``python agent_process.py [URL]``; without a URL everything happens inside this process.
"""

from __future__ import annotations

import asyncio
import sys

import llmspell_dist
from llmspell_dist.agents import AgentState
from llmspell_dist.errors import LeaseLostError, StaleFencingTokenError

AGENT = "example-researcher"


async def first_process(spell: llmspell_dist.Spell, working: asyncio.Event) -> None:
    """Work until the lease is gone; then everything it still writes is refused."""
    new = AgentState.new(AGENT, "researcher", capabilities=["search"], tags=["example"])
    async with spell.agents.run(AGENT, label="first", create=new) as agent:
        await agent.transition("processing", "asked by a user")
        await agent.add_message("user", "How many moons has Mars?")
        await agent.record_tool_usage("search", 231.5, True)
        await agent.set_context(question="moons of Mars", found=["Phobos"])
        working.set()
        try:
            await asyncio.Event().wait()  # it hangs, and somebody takes its lease away
        except asyncio.CancelledError:
            try:
                await agent.add_message("assistant", "One.")
            except StaleFencingTokenError as error:
                print(f"the first process is shut out: {error}")
            raise


async def main(url: str) -> None:
    """Show the hand-over."""
    async with llmspell_dist.connect(url, namespace="example-agents") as spell:
        await spell.agents.delete(AGENT)
        working = asyncio.Event()
        first = asyncio.create_task(first_process(spell, working))
        await working.wait()
        await spell.leases.break_lease(f"agent:{AGENT}", reason="it hangs")

        async with spell.agents.run(AGENT, label="second") as agent:
            found = agent.state.context["found"]
            print(f"the second process finds {agent.state!r}"[:72] + "…")
            assert agent.state.tool_usage.total == 1
            await agent.set_context(found=[*found, "Deimos"])
            await agent.add_message("assistant", "Two: Phobos and Deimos.")
            await agent.transition("completed")

        try:
            await first
        except LeaseLostError as error:
            print(f"the first process ended with: {error}")

        summary = await spell.agents.metadata(AGENT)
        state = await spell.agents.load_fast(AGENT, tail=1)
        print(f"{summary.agent_id}: {summary.status}, {summary.messages} messages; last one:")
        print(f"  {state.conversation[-1].content}")
        assert (summary.status, summary.messages) == ("completed", 2)

        fork = await spell.agents.fork(AGENT, "example-critic")
        assert list((await spell.agents.load("example-critic")).conversation) == fork.conversation
        for agent_id in (AGENT, "example-critic"):
            await spell.agents.delete(agent_id)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory://example"))
