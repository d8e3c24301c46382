"""The library under load, in a process of its own: an asyncio program, as its users write them.

Locust runs on gevent, whose patched sockets and threads would be measured instead of the library.
So Locust starts this process, tells it which users come and go (lines of JSON to its input), and
takes what they measured (lines of JSON from its output) four times a second.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from typing import Any, Final

import llmspell_dist
from loadtests.agents_shape import load_traces
from loadtests.feed_numbers import Hearing
from loadtests.histogram import Histogram
from loadtests.ledger import Ledger
from loadtests.library_calls import LibraryCalls
from loadtests.mixes import ROLES, Role, event_type, feed_scope
from loadtests.recorder import DELIVERY
from loadtests.settings import LoadSettings, load_settings

__all__ = ["main"]

_TELL_EVERY_S: Final = 0.25
_LEAVE_WITHIN_S: Final = 2.0


class _Samples:
    """What was measured since it was last told."""

    def __init__(self) -> None:
        self.names: dict[str, Histogram] = {}
        self.failures: dict[str, Counter[str]] = {}

    def took(self, name: str, ms: float, failure: Exception | None) -> None:
        self.names.setdefault(name, Histogram()).add(ms)
        if failure is not None:
            text = f"{type(failure).__name__}: {failure}"
            self.failures.setdefault(name, Counter())[text] += 1

    def tell(self) -> None:
        names, self.names = self.names, {}
        failures, self.failures = self.failures, {}
        told = {name: found.to_json() for name, found in names.items()}
        print(json.dumps({"names": told, "failures": failures}), flush=True)


class _Crowd:
    """The users of now, each a task."""

    def __init__(self, spell: llmspell_dist.Spell, settings: LoadSettings) -> None:
        self.spell = spell
        self.settings = settings
        self.traces = load_traces(settings.data)
        self.ledger = Ledger()
        self.samples = _Samples()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[str] = set()

    def start(self, role: Role, number: int, name: str) -> None:
        work = self._follow(number) if role.watches else self._work(role, number, name)
        self._tasks[name] = asyncio.create_task(work, name=name)

    def stop(self, name: str) -> None:
        """Let a user end: who does steps finishes the one that it is at."""
        self._leaving.add(name)

    async def stop_all(self) -> None:
        """Let all end, and wait for it."""
        self._leaving.update(self._tasks)
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=_LEAVE_WITHIN_S)
        for task in self._tasks.values():
            task.cancel()  # those who only listen
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _work(self, role: Role, number: int, name: str) -> None:
        calls = LibraryCalls(self.spell, self.settings.run, name, self.ledger, self.samples.took)
        pause = 1 / role.rate if role.rate else 0.0
        loop = asyncio.get_running_loop()
        await asyncio.sleep(pause * (number % 97) / 97)
        due = loop.time()
        for step in role.script(self.traces, number):
            # By the clock, or each sleep would add its delay; who is late does not catch up.
            due = max(due + pause, loop.time())
            await calls.perform(step)
            await asyncio.sleep(max(0.0, due - loop.time()))
            if name in self._leaving:
                return

    async def _follow(self, number: int) -> None:
        """Listen to a feed: the even ones watch its scope, the odd ones hear its events."""
        hearing = Hearing(self.ledger)
        scope = feed_scope(number // 2).replace("{run}", self.settings.run)
        if number % 2:
            async with self.spell.events.subscribe(event_type(scope)) as heard:
                async for event in heard:
                    self._heard(hearing.take(event.data))
        else:
            async with self.spell.state.watch(scope) as watch:
                async for change in watch:
                    self._heard(hearing.take(change.value))

    def _heard(self, late_ms: float | None) -> None:
        if late_ms is not None:
            self.samples.took(DELIVERY, late_ms, None)


async def _serve(settings: LoadSettings) -> None:
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    async with llmspell_dist.connect(settings.url, namespace=settings.namespace) as spell:
        crowd = _Crowd(spell, settings)
        telling = asyncio.create_task(_tell(crowd.samples))
        crowd.samples.tell()  # it is ready
        try:
            while line := await orders.readline():
                order: dict[str, Any] = json.loads(line)
                if order["do"] == "start":
                    crowd.start(ROLES[order["role"]], order["number"], order["name"])
                elif order["do"] == "stop":
                    crowd.stop(order["name"])
                else:
                    break
        finally:
            await crowd.stop_all()
            telling.cancel()
    crowd.samples.tell()
    print(json.dumps({"ledger": crowd.ledger.to_json()}), flush=True)


async def _tell(samples: _Samples) -> None:
    while True:
        await asyncio.sleep(_TELL_EVERY_S)
        samples.tell()


def main() -> None:
    """Serve one Locust process until its end."""
    settings = load_settings()
    try:
        import uvloop  # noqa: PLC0415 - an extra
    except ImportError:
        asyncio.run(_serve(settings))
    else:
        uvloop.run(_serve(settings))


if __name__ == "__main__":
    main()
