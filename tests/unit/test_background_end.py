"""The background thread of a blocking client ends, also when what is to run last does not."""

from __future__ import annotations

import asyncio
import threading

import pytest

from llmspell_dist.blocking.background import Background
from llmspell_dist.errors import ClosedError


def test_the_thread_ends_when_the_last_coroutine_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing goes on: what is closed behind it must not stay open."""
    monkeypatch.setattr("llmspell_dist.blocking.background._JOIN_WITHIN_S", 0.2)
    background = Background()
    background.run(asyncio.sleep(0))
    thread = background._thread
    assert isinstance(thread, threading.Thread)
    background.close(lambda: asyncio.sleep(60))
    assert not thread.is_alive()


def test_whoever_waits_is_told_that_it_was_closed() -> None:
    """And does not wait for ever for a loop that is gone."""
    background = Background()
    told: list[BaseException] = []
    begun = threading.Event()

    async def never() -> None:
        begun.set()
        await asyncio.Event().wait()

    def wait() -> None:
        try:
            background.run(never())
        except ClosedError as error:
            told.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert begun.wait(10)
    background.close(lambda: asyncio.sleep(0))
    waiting.join(10)
    assert [str(error) for error in told] == ["the client was closed meanwhile"]
