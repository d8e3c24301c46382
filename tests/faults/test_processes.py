"""Many processes, threads and forks on the same keys: the results are exact."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from fix_faults import SCOPE, SWEPT, blocking_client, client, environment
from fix_forks import ended_well, in_a_fork
from fix_servers import Server
from fix_state import Store

from llmspell_dist.errors import WrongEventLoopError

pytestmark = [pytest.mark.integration, pytest.mark.needs("process"), pytest.mark.one_server]

AGENT = Path(__file__).parent / "agent_process.py"
SHARED = "agent:shared"


@pytest.mark.parametrize(
    ("processes", "rounds"), [(4, 40), pytest.param(8, 500, marks=pytest.mark.slow)]
)
@pytest.mark.timeout(600)
def test_processes_on_the_same_keys_give_exact_results(
    server: Server, namespace: str, store: Store, processes: int, rounds: int
) -> None:
    """Sums, lists, compare-and-set and transfers of several processes, async and blocking."""
    with blocking_client(server, namespace) as spell:
        spell.state.set_many(SHARED, {f"account{i}": 100 for i in range(5)} | {"compared": 0})
        agents = [
            subprocess.Popen(
                [
                    *(sys.executable, AGENT, server.url, namespace, str(me), str(rounds)),
                    "async" if me % 2 else "blocking",
                ],
                stdout=subprocess.PIPE,
                env=environment(),
            )
            for me in range(processes)
        ]
        outs = [agent.communicate(timeout=500)[0] for agent in agents]
        assert [agent.returncode for agent in agents] == [0] * processes
        told = [json.loads(out) for out in outs]
        state = spell.state
        total = processes * rounds
        assert sorted(n for one in told for n in one["sums"]) == list(range(1, total + 1))
        items = state.get(SHARED, "list")
        assert sorted(items) == sorted([me, i] for me in range(processes) for i in range(rounds))
        for me in range(0, processes, 2):  # one thread's own appends are in its order
            assert [i for who, i in items if who == me] == list(range(rounds))
        assert state.get(SHARED, "compared") == total == sum(one["sets"] for one in told)
        accounts = state.get_many(SHARED, [f"account{i}" for i in range(5)])
        assert sum(accounts.values()) == 500
        assert not any(one["wrong"] for one in told), "a sum of accounts was seen torn"
        operations = [e.operation for e in store.log() if e.operation != SWEPT]
        assert len(operations) == len(set(operations))
    store.check()


@pytest.mark.parametrize("each", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_sixteen_threads_share_a_blocking_client(
    server: Server, namespace: str, store: Store, each: int
) -> None:
    """Every increment counts once, and every thread hears its own sums, growing."""
    with blocking_client(server, namespace) as spell:
        told: list[list[Any]] = [[] for _ in range(16)]

        def work(mine: list[Any]) -> None:
            mine += [spell.state.increment(SCOPE, "n") for _ in range(each)]

        threads = [threading.Thread(target=work, args=(mine,)) for mine in told]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
        assert sorted(n for mine in told for n in mine) == list(range(1, 16 * each + 1))
        assert all(mine == sorted(mine) for mine in told)
    store.check()


# --- forks ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_blocking_client_works_on_both_sides_of_a_fork(
    server: Server, namespace: str, store: Store
) -> None:
    """As in a prefork server: four children and the parent, no reply goes astray."""
    with blocking_client(server, namespace) as spell:
        assert spell.state.increment(SCOPE, "n") == 1

        def work() -> None:
            own = [spell.state.increment(SCOPE, f"n{os.getpid()}") for _ in range(50)]
            assert own == list(range(1, 51))
            for _ in range(50):
                spell.state.increment(SCOPE, "n")
            spell.close()

        pids = [in_a_fork(work) for _ in range(4)]
        for _ in range(50):
            spell.state.increment(SCOPE, "n")
        ends = [ended_well(pid) for pid in pids]  # wait for each of them
        assert all(ends)
        assert spell.state.get(SCOPE, "n") == 251
        operations = [entry.operation for entry in store.log()]
        assert len(operations) == len(set(operations)) == 451
    store.check()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
async def test_an_async_client_works_on_both_sides_of_a_fork(
    server: Server, namespace: str, store: Store
) -> None:
    """The child uses it in a loop of its own and closes it; the parent's calls in flight go on."""
    async with client(server, namespace) as spell:
        await spell.state.increment(SCOPE, "n")
        waiting = [asyncio.ensure_future(spell.state.increment(SCOPE, "n")) for _ in range(50)]
        await asyncio.sleep(0)

        async def child() -> None:
            told = await asyncio.gather(*[spell.state.increment(SCOPE, "child") for _ in range(50)])
            assert sorted(told) == list(range(1, 51))
            await spell.close()

        def work() -> None:
            asyncio.events._set_running_loop(None)
            asyncio.run(child())

        pid = in_a_fork(work)
        assert await asyncio.to_thread(ended_well, pid)
        assert sorted(await asyncio.gather(*waiting)) == list(range(2, 52))
        assert await spell.state.get_many(SCOPE, ["n", "child"]) == {"n": 51, "child": 50}
    store.check()


async def test_a_client_that_keeps_house_can_be_closed_after_a_fork(
    server: Server, namespace: str
) -> None:
    """The task of the parent's loop is none of the child's business."""
    import llmspell_dist

    async with llmspell_dist.connect(server.url, namespace=namespace) as spell:

        async def child() -> None:
            await spell.state.increment(SCOPE, "n")
            await spell.close()

        def work() -> None:
            asyncio.events._set_running_loop(None)
            asyncio.run(child())

        assert await asyncio.to_thread(ended_well, in_a_fork(work))
        assert await spell.state.increment(SCOPE, "n") == 2


# --- the wrong place ------------------------------------------------------------------------------


async def test_another_event_loop_is_told_so(server: Server, namespace: str) -> None:
    """A client that is used from another loop raises before anything is sent, and works on."""
    async with client(server, namespace) as spell:
        await spell.state.set(SCOPE, "a", 1)
        for call in ("get", "increment", "exists"):

            def elsewhere(call: str = call) -> None:
                asyncio.run(getattr(spell.state, call)(SCOPE, "a"))

            with pytest.raises(WrongEventLoopError, match="event loop"):
                await asyncio.to_thread(elsewhere)
        with pytest.raises(WrongEventLoopError):
            await asyncio.to_thread(lambda: asyncio.run(spell.close()))
        assert await spell.state.get(SCOPE, "a") == 1


async def test_the_blocking_surface_works_inside_a_running_loop(
    server: Server, namespace: str
) -> None:
    """As in a notebook: it blocks, and that is all."""
    with blocking_client(server, namespace) as spell:
        assert spell.state.increment(SCOPE, "n") == 1
        with contextlib.closing(blocking_client(server, namespace)) as other:
            assert other.state.get(SCOPE, "n") == 1
