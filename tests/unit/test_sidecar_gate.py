"""The gate: so many of each client at once, in the order in which they came."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmspell_dist.sidecar.errors import TooManyRequestsError
from llmspell_dist.sidecar.gate import Gate

pytestmark = pytest.mark.unit


async def test_the_next_one_of_the_same_client_comes_in() -> None:
    """First come, first served; another client's line is its own."""
    gate = Gate(1, 2)
    assert gate.enter("a") is None
    first, second = gate.enter("a"), gate.enter("a")
    assert gate.enter("b") is None
    assert first is not None
    assert second is not None
    gate.leave("a")
    assert (first.done(), second.done()) == (True, False)
    gate.leave("a")
    assert second.done()
    gate.leave("a")
    gate.leave("b")
    assert gate.working == 0


async def test_a_line_has_an_end() -> None:
    """Over it a client is refused; others are not."""
    gate = Gate(1, 1)
    gate.enter("a")
    gate.enter("a")
    with pytest.raises(TooManyRequestsError):
        gate.enter("a")
    assert gate.enter("b") is None


async def test_who_is_cancelled_while_waiting_holds_no_place_in_the_line() -> None:
    """Others of the same client can take it, and the turn goes to them."""
    gate = Gate(1, 2)
    gate.enter("a")
    waiting = [gate.enter("a") for _ in range(2)]
    for future in waiting:
        assert future is not None
        task = asyncio.create_task(gate.wait(future, "a"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    behind = gate.enter("a")
    assert behind is not None
    gate.leave("a")
    assert behind.done()
    gate.leave("a")
    assert gate.working == 0


async def test_who_is_cancelled_leaves_the_line() -> None:
    """Its turn goes to the one behind it, also if it had just come."""
    gate = Gate(1, 3)
    gate.enter("a")
    futures = [gate.enter("a") for _ in range(2)]
    assert futures[0] is not None
    assert futures[1] is not None
    waiting = asyncio.create_task(gate.wait(futures[0], "a"))
    await asyncio.sleep(0)
    gate.leave("a")
    waiting.cancel()  # its turn has come, and it does not know yet
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert futures[1].done()
    gate.leave("a")
    assert gate.working == 0


async def test_stepping_aside_makes_room() -> None:
    """What waits for something counts as waiting, with a limit of its own."""
    gate = Gate(1, 1)
    gate.enter("a")
    behind = gate.enter("a")
    assert behind is not None
    gate.step_aside("a")
    assert behind.done()
    with pytest.raises(TooManyRequestsError):
        gate.step_aside("a")
    gate.leave("a")
    gate.leave_aside("a")
    assert gate.enter("a") is None
    gate.step_aside("a")
    gate.leave_aside("a")
    assert gate.working == 0


class Clients:
    """What comes and goes at a gate, and how many of each are inside."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.working: Counter[str] = Counter()
        self.lines: dict[str, list[asyncio.Future[None]]] = {"a": [], "b": []}

    def enter(self, client: str) -> None:
        try:
            future = self.gate.enter(client)
        except TooManyRequestsError:
            full = len(self.lines[client])
        else:
            full = self.gate.waiting
            if future is None:
                self.working[client] += 1
            else:
                self.lines[client].append(future)
        assert full == self.gate.waiting

    def leave(self, client: str) -> None:
        if self.working[client]:
            self.working[client] -= 1
            self.gate.leave(client)

    def settle(self) -> None:
        for client, line in self.lines.items():
            for future in [one for one in line if one.done()]:
                line.remove(future)
                self.working[client] += 1


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["enter", "enter", "leave"]))))
def test_never_more_than_so_many_work(steps: list[tuple[str, str]]) -> None:
    """Whatever comes and goes; and at the end nobody is left."""

    async def run() -> None:
        clients = Clients(Gate(2, 3))
        for client, step in steps:
            getattr(clients, step)(client)
            clients.settle()
            assert all(count <= 2 for count in clients.working.values())
            assert clients.gate.working == clients.working.total()
        for client in "ab" * (len(steps) + 1):
            clients.leave(client)
            clients.settle()
        assert clients.gate.working == 0

    asyncio.run(run())
