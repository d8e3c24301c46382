"""A hook decided something; replay it elsewhere, ask "what if", and find out what a change changes.

``python replay_a_decision.py [URL]``; without a URL everything happens inside this process.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import llmspell_dist
from llmspell_dist import context
from llmspell_dist.hooks.context import HookContext
from llmspell_dist.hooks.replay import ReplayConfig
from llmspell_dist.hooks.results import Cancel, HookResult, Modified
from llmspell_dist.ids import new_id

RUN = new_id()
"""What all of it belongs to: a new one each time, for history is kept."""


async def risk_of(customer: str) -> float:
    """Ask the service that judges customers; today it says so."""
    return {"alice": 0.2, "mallory": 0.9}[customer]


async def approve(ctx: HookContext) -> HookResult:
    """Refuse refunds of risky customers; stamp the others with a time and a number."""
    refund = ctx.data["value"]
    risk = await ctx.call("risk", risk_of, refund["customer"])
    if risk * refund["amount"] > 100:
        return Cancel(f"risk {risk}")
    return Modified({"value": {**refund, "approved": ctx.now(), "number": ctx.new_id()}})


async def approve_stricter(ctx: HookContext) -> HookResult:
    """Do the same with a lower limit: the next release."""
    refund = ctx.data["value"]
    risk = await ctx.call("risk", risk_of, refund["customer"])
    if risk * refund["amount"] > 50:
        return Cancel(f"risk {risk}")
    return Modified({"value": {**refund, "approved": ctx.now(), "number": ctx.new_id()}})


async def production(url: str, namespace: str) -> None:
    """Work, with the hook's runs recorded."""
    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        spell.hooks.register("BeforeStateWrite", approve, name="approve", replayable=True)
        with context(correlation_id=RUN):
            for number, (customer, amount) in enumerate([("alice", 300), ("mallory", 200)]):
                refund = {"customer": customer, "amount": amount}
                try:
                    await spell.state.set("workflow:refunds", f"r{number}", refund)
                except llmspell_dist.SpellError as refused:
                    print(f"{customer}: {refused}")


async def next_morning(url: str, namespace: str) -> dict[str, Any]:
    """Ask in another process: is it the same again, what if, and what of the next release."""
    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        spell.hooks.register("BeforeStateWrite", approve, name="approve")
        alice, mallory = await spell.hooks.history.query(correlation_id=RUN)

        same = await spell.replay.batch([alice, mallory])
        print(f"replayed: {same}")

        more = ReplayConfig({"context.data.value.amount": 600})
        what_if = await spell.replay.run(alice, mode="modified", config=more)
        print(f"alice with 600: {what_if.result}")

        stricter = await spell.replay.run(alice, mode="simulate", hook=approve_stricter)
        print(f"the next release: {stricter.first_difference}")
        return {
            "identical": same.identical,
            "what_if": what_if.result,
            "next": stricter.first_difference,
        }


async def main(url: str) -> None:
    """Record, then replay."""
    namespace = "example-replay"
    # An in-process server lives as long as a client of it does.
    async with llmspell_dist.connect(url, namespace=namespace):
        await production(url, namespace)
        found = await next_morning(url, namespace)
    assert found["identical"] == 2
    assert found["what_if"] == Cancel("risk 0.2")
    assert found["next"].startswith("input 2: recorded now(), asked for nothing")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory://replay"))
