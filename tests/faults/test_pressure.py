"""More work than fits waits in line, in bounded memory, and large values keep out of the way."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest
from fix_faults import SCOPE, Writers, client, ends
from fix_servers import Server
from fix_state import Raw, Store, until

from llmspell_dist.ack import replicated
from llmspell_dist.errors import AckNotReachedError
from llmspell_dist.redis.ring import WINDOW

pytestmark = [pytest.mark.integration, pytest.mark.needs("process")]


@pytest.mark.parametrize("tasks", [3000, pytest.param(20_000, marks=pytest.mark.slow)])
async def test_thousands_of_tasks_at_once_all_end_in_bounded_memory(
    server: Server, namespace: str, store: Store, tasks: int
) -> None:
    """No call is refused; in flight are never more than the ring and the options allow."""
    writers = Writers(store)
    async with client(server, namespace, max_in_flight=1000) as spell:
        await writers.prepare(spell.state)
        lane = spell._lanes.fast
        most = 0
        send = lane._drain

        def drain() -> None:
            nonlocal most
            send()
            most = max(most, lane.in_flight)

        lane._drain = drain
        tracemalloc.start()
        running = writers.burst(spell.state, tasks)
        await ends(running)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        counts = await writers.check(spell.state)
        assert counts["acknowledged"] == tasks
        assert most <= 1000
        assert lane.ring._next > 1
    assert peak / tasks < 16_000, f"{peak / tasks:.0f} bytes a call"


async def test_a_full_ring_makes_writers_wait_and_not_fail(
    server: Server, namespace: str, store: Store
) -> None:
    """While nothing is answered no more than the window is sent; then all of it is."""
    async with client(server, namespace) as spell:
        await spell.state.set(SCOPE, "n", 0)
        raw = Raw(server.address)
        raw("CLIENT", "PAUSE", 60_000, "WRITE")
        calls = [asyncio.ensure_future(spell.state.increment(SCOPE, "n")) for _ in range(3000)]
        lane = spell._lanes.fast
        await until(lambda: bool(lane.backlog) and lane.in_flight > 0)
        assert lane.ring._next <= WINDOW + 2
        raw("CLIENT", "UNPAUSE")
        raw.close()
        assert sorted(await asyncio.gather(*calls)) == list(range(1, 3001))
    store.check()


def _connections(raw: Raw) -> dict[int, dict[str, str]]:
    found = {}
    for line in raw("CLIENT", "LIST", "TYPE", "normal").decode().splitlines():
        fields = dict(part.split("=", 1) for part in line.split(" ") if "=" in part)
        found[int(fields["id"])] = fields
    return found


async def test_large_values_and_waits_stay_out_of_the_fast_lane(
    server: Server, namespace: str
) -> None:
    """10 MB values travel on the bulk lane and a hanging WAIT on the durable one; reads pass."""
    async with client(server, namespace) as spell:
        state, lanes = spell.state, spell._lanes
        await state.set(SCOPE, "small", 1)
        written = {"fast": 0, "bulk": 0, "durable": 0}
        biggest = dict(written)

        def watch(lane: object, name: str) -> None:
            wire = lane._wire  # type: ignore[attr-defined]
            write = wire.write

            def counted(data: bytes, count: int, now: float) -> None:
                written[name] += len(data)
                biggest[name] = max(biggest[name], len(data))
                write(data, count, now)

            lane._wire = _Watched(wire, counted)  # type: ignore[attr-defined]

        await state.set(SCOPE, "warm", b"x" * 100_000)
        with pytest.raises(AckNotReachedError):
            await state.set(SCOPE, "warm2", 1, ack=replicated(1))
        watch(lanes.fast, "fast")
        watch(lanes.bulk, "bulk")
        watch(lanes.durable, "durable")
        value = b"y" * 9_900_000
        hanging = asyncio.ensure_future(_acked(state))
        writing = asyncio.ensure_future(state.set(SCOPE, "large", value))
        reads = 0
        while not writing.done():
            assert await state.get(SCOPE, "small") == 1
            reads += 1
        await writing
        assert await state.get(SCOPE, "large") == value
        assert isinstance(await hanging, AckNotReachedError)
        assert reads > 3
        assert biggest["fast"] < 64 * 1024
        assert written["bulk"] > len(value)
        assert 0 < written["durable"] < 64 * 1024
        assert written["fast"] < 64 * 1024 + 200 * reads


async def _acked(state: object) -> object:
    try:
        return await state.set(SCOPE, "acked", 1, ack=replicated(1))  # type: ignore[attr-defined]
    except AckNotReachedError as error:
        return error


class _Watched:
    """A wire whose writes are counted."""

    def __init__(self, wire: object, write: object) -> None:
        self.__dict__["_wire"] = wire
        self.__dict__["write"] = write

    def __getattr__(self, name: str) -> object:
        return getattr(self._wire, name)
