"""Our own cancellation of a task, told apart from everybody else's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llmspell_dist.leases.cancellation import Cancellation

pytestmark = pytest.mark.unit


class ReasonError(Exception):
    """Why a task is cancelled."""


def current() -> asyncio.Task[Any]:
    """Return the present task."""
    task = asyncio.current_task()
    assert task is not None
    return task


async def test_without_a_request_nothing_is_changed() -> None:
    """Whatever the body raised is given back, a foreign cancellation too."""
    cancellation = Cancellation(current())
    for error in (None, KeyError(), asyncio.CancelledError()):
        assert await cancellation.settle(error) is error
    assert current().cancelling() == 0


async def test_our_cancellation_ends_where_it_is_settled() -> None:
    """It arrives with the reason, and afterwards the task is as it was."""
    cancellation, reason = Cancellation(current()), ReasonError("lost")
    cancellation.request(reason)
    with pytest.raises(asyncio.CancelledError) as caught:
        await asyncio.sleep(0)
    assert caught.value.args == (reason,)
    assert await cancellation.settle(caught.value) is None
    assert current().cancelling() == 0
    await asyncio.sleep(0)


async def test_one_that_has_not_arrived_does_not_arrive_later() -> None:
    """The body ended, well or not, before it ran again."""
    for error in (None, KeyError()):
        cancellation = Cancellation(current())
        cancellation.request(ReasonError())
        assert await cancellation.settle(error) is error
        assert current().cancelling() == 0
        await asyncio.sleep(0)


async def test_asking_twice_cancels_once() -> None:
    """And what was settled can be asked for anew."""
    cancellation = Cancellation(current())
    for _ in range(2):
        cancellation.request(ReasonError())
        cancellation.request(ReasonError())
        assert current().cancelling() == 1
        assert await cancellation.settle(None) is None
        assert current().cancelling() == 0


async def test_somebody_else_s_is_not_taken_back() -> None:
    """Heard or not heard yet, it goes on."""

    async def heard() -> None:
        cancellation = Cancellation(current())
        cancellation.request(ReasonError())
        current().cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await asyncio.sleep(0)
        assert await cancellation.settle(caught.value) is caught.value
        raise caught.value

    async def not_heard() -> None:
        cancellation = Cancellation(current())
        cancellation.request(ReasonError())
        current().cancel()
        await cancellation.settle(KeyError())

    for work in (heard, not_heard):
        task = asyncio.create_task(work())
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert task.cancelling() == 1


async def test_one_that_was_there_before_does_not_count() -> None:
    """A lease that is taken in a clean-up after a cancellation."""

    async def work() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancellation = Cancellation(current())
            cancellation.request(ReasonError())
            with pytest.raises(asyncio.CancelledError) as caught:
                await asyncio.sleep(0)
            assert await cancellation.settle(caught.value) is None
            assert current().cancelling() == 1
        return "cleaned up"

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    assert await task == "cleaned up"


async def test_only_the_task_itself_can_settle_it() -> None:
    """Another one that leaves the block changes nothing about that task."""
    entered, leave = asyncio.Event(), asyncio.Event()

    async def holder() -> None:
        entered.set()
        await leave.wait()

    task = asyncio.create_task(holder())
    await entered.wait()
    cancellation = Cancellation(task)
    cancellation.request(ReasonError())
    error = KeyError()
    assert await cancellation.settle(error) is error
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_task_that_has_ended_or_none_at_all_is_left_alone() -> None:
    """There is nobody to stop."""

    async def nothing() -> None:
        pass

    task = asyncio.create_task(nothing())
    await task
    for target in (task, None):
        cancellation = Cancellation(target)
        cancellation.request(ReasonError())
        assert await cancellation.settle(None) is None
    assert task.cancelling() == 0
