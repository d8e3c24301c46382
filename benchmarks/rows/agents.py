"""Agents: a message more, however many there are; a long conversation as a whole."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import msgpack

from benchmarks.harness import Arm, Bench, Pair, Row, Samples, concurrently, one_by_one
from benchmarks.layout import WORKERS
from benchmarks.ours import NAMESPACE, OURS, open_ours
from benchmarks.payloads import MAIN, value
from benchmarks.peers import REDIS_PY, open_redis_py
from llmspell_dist import Agent, AgentState, Message, Role, Spell

__all__ = ["ROWS"]

_ROLES = (Role.USER, Role.ASSISTANT, Role.TOOL)
_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
_SAVED_AT_ONCE = 1_000
_ALL = f"{OURS}, every message looked at"


def _message(number: int) -> Message:
    return Message(
        _ROLES[number % len(_ROLES)],
        value(MAIN),
        timestamp=_BEGAN + timedelta(seconds=number, microseconds=number),
    )


async def _agent(spell: Spell, agent_id: str, messages: int) -> Agent:
    """Save an agent with so many messages, and return a handle to it."""
    await spell.agents.save(AgentState.new(agent_id, "bench"))
    agent = spell.agents.agent(agent_id)
    for start in range(0, messages, _SAVED_AT_ONCE):
        stop = min(start + _SAVED_AT_ONCE, messages)
        await agent.add_messages(*[_message(number) for number in range(start, stop)])
    return agent


async def _append(bench: Bench) -> Samples:
    length = bench.scale(100_000, 2_000)
    async with AsyncExitStack() as stack:
        spell = await stack.enter_async_context(open_ours(bench.server))
        long = await _agent(spell, "long", length)
        short: list[Agent] = []
        content, added = value(MAIN), [0]

        async def to_long(count: int) -> None:
            await one_by_one(count, lambda _, __: long.add_message(Role.USER, content))
            added[0] += count

        async def renew_short(count: int) -> None:
            while len(short) < count:
                short.append(await _agent(spell, f"short-{len(short)}", 0))

            def renew(worker: int, turn: int) -> Awaitable[object]:
                return _to_ten(spell, short[worker + turn * WORKERS])

            await concurrently(WORKERS, count // WORKERS * WORKERS, renew)

        async def to_short(count: int) -> None:
            await one_by_one(count, lambda _, turn: short[turn].add_message(Role.USER, content))

        samples = await bench.interleave(
            [
                Arm("100,000 messages", to_long, step=WORKERS),
                Arm("10 messages", to_short, renew_short, step=WORKERS),
            ]
        )
        found = await spell.agents.load("long")
        assert len(found.conversation) == length + added[0]
        assert found.conversation[-1].content == content
        return samples


async def _to_ten(spell: Spell, agent: Agent) -> None:
    """Let a short agent have ten messages again."""
    await spell.state.delete(f"agent:{agent.agent_id}", "agent.conversation")
    await agent.add_messages(*[_message(number) for number in range(10)])


async def _load(bench: Bench) -> Samples:
    length = bench.scale(10_000, 500)
    async with AsyncExitStack() as stack:
        spell = await stack.enter_async_context(open_ours(bench.server))
        plain = await stack.enter_async_context(open_redis_py(bench.server))
        await _agent(spell, "talker", length)
        (elements,) = [
            key
            async for key in plain.scan_iter(f"{NAMESPACE}:*:agent:talker:p:*", _type="list")
            if await plain.llen(key) == length
        ]

        async def ours(count: int) -> None:
            for _ in range(count):
                state = await spell.agents.load("talker")
                assert len(state.conversation) == length

        async def ours_all(count: int) -> None:
            for _ in range(count):
                state = await spell.agents.load("talker")
                assert sum(message.role is Role.USER for message in state.conversation)

        async def peer(count: int) -> None:
            for _ in range(count):
                parts: list[Any] = await plain.lrange(elements, 0, -1)
                header = b"\xdd" + len(parts).to_bytes(4, "big")
                decoded = msgpack.unpackb(header + b"".join(parts), strict_map_key=False)
                assert len(decoded) == length

        return await bench.interleave([Arm(OURS, ours), Arm(_ALL, ours_all), Arm(REDIS_PY, peer)])


ROWS = (
    Row(
        "agent_append",
        _append,
        (Pair("agent_append", "100,000 messages", "10 messages"),),
    ),
    Row(
        "agent_load",
        _load,
        (
            Pair("agent_load", OURS, REDIS_PY, "ms"),
            Pair("agent_load: every message looked at", _ALL, REDIS_PY, "ms"),
        ),
    ),
)
