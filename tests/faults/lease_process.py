"""One of several real processes around one lease: it holds, waits and writes, and tells of it.

Run by the tests of leases as ``lease_process.py URL NAMESPACE SCOPE CLOCK``, through
`fix_lease_faults.LeaseProcess`. Commands come as JSON, one a line, to standard input; events leave
the same way. With CLOCK ``wrong`` everything that Python says about the time of day is off by what
``jump`` says, from before the package is imported. The monotonic clock is always right, and one
for all processes of a machine: events carry it.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import sys
import time
import traceback
from collections import Counter
from typing import Any

_off_s = [0.0]


def _have_a_wrong_clock() -> None:
    right, right_ns = time.time, time.time_ns

    class WrongDatetime(dt.datetime):
        __slots__ = ()

        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> WrongDatetime:
            return super().now(tz) + dt.timedelta(seconds=_off_s[0])

        @classmethod
        def utcnow(cls) -> WrongDatetime:
            return cls.now(dt.UTC).replace(tzinfo=None)

    time.time = lambda: right() + _off_s[0]
    time.time_ns = lambda: right_ns() + round(_off_s[0] * 1e9)
    dt.datetime = WrongDatetime  # type: ignore[misc]


if len(sys.argv) > 4 and sys.argv[4] == "wrong":
    _have_a_wrong_clock()

from time import monotonic

from fix_state import Raw

import llmspell_dist
from llmspell_dist.config import Options
from llmspell_dist.errors import (
    LeaseLostError,
    LeaseUnavailableError,
    OutcomeUnknownError,
    StaleFencingTokenError,
)
from llmspell_dist.leases.holding import Lease

COUNTED = "counted"
"""The key that is read, added to and written, without any help of the store."""
PATIENCE: dict[str, Any] = {"call_timeout": 2.0, "retry_budget": 20.0, "connect_timeout": 2.0}


def say(event: str, **facts: Any) -> None:
    """Tell the test what happened."""
    sys.stdout.write(json.dumps({"event": event, "at": monotonic(), **facts}) + "\n")
    sys.stdout.flush()


class Worker:
    """Carries commands out, each in a task of its own."""

    def __init__(self, spell: Any, scope: str) -> None:
        self.spell = spell
        self.scope = scope
        self.lease: Lease | None = None
        self._let_go = asyncio.Event()
        self._over = asyncio.Event()
        self._done = 0
        self._still: int | None = None
        self._refused: Counter[str] = Counter()

    # --- holding

    async def hold(
        self,
        *,
        ttl: float,
        wait: float | None = None,
        writers: int = 0,
        fenced: bool = True,
        reach: int = 0,
        label: str | None = None,
        renew: bool = True,
    ) -> None:
        """Hold the lease until `release`, while writers write that never look whether it is held.

        They go on after the lease is lost: only the store can stop them. ``reached`` is said when
        they have made `reach` writes.
        """
        self._let_go.clear()
        self._done, self._still = 0, None
        self._refused.clear()
        pounding: list[asyncio.Task[None]] = []
        asked_at, said = monotonic(), "released"
        facts: dict[str, Any] = {}
        held: Lease | None = None
        try:
            async with self.spell.leases.acquire(
                self.scope, ttl=ttl, wait=wait, label=label, renew=renew
            ) as lease:
                self.lease = held = lease
                waited_s = monotonic() - asked_at
                say("granted", token=lease.token, waited_s=waited_s, asked_at=asked_at)
                state = lease.state if fenced else self.spell.state
                pounding = [
                    asyncio.create_task(self._pound(state, lease.token, reach))
                    for _ in range(writers)
                ]
                await self._let_go.wait()
                await self._enough(pounding, 0)
        except LeaseLostError as error:
            said, facts = "lost", {"reason": error.reason, "token": error.token}
            facts["cancelling"] = asyncio.current_task().cancelling()  # type: ignore[union-attr]
        except LeaseUnavailableError as error:
            said, facts = "unavailable", {"waited_s": error.waited_s}
        until = {} if held is None else {"deadline": held.grant.deadline}
        say("told", outcome=said, **facts, **until)  # the writers may have to wait for the server
        await self._enough(pounding, 20)
        say(said, **facts, written=self._done, refused=dict(self._refused))

    async def _pound(self, state: Any, token: int, reach: int) -> None:
        while self._still is None or self._still > 0:
            if self._still is not None:
                self._still -= 1
            try:
                await state.set(self.scope, "written", f"{token}:{self._done}")
            except StaleFencingTokenError as error:
                self._refused[error.why] += 1
                continue
            except OutcomeUnknownError:
                # The server has lost its memory of what was under way: so it is not done again.
                self._refused["unknown"] += 1
                continue
            self._done += 1
            if self._done == reach:
                say("reached")

    async def _enough(self, pounding: list[asyncio.Task[None]], still: int) -> None:
        self._still = still
        await asyncio.gather(*pounding)

    async def release(self) -> None:
        """Let go of what `hold` holds."""
        self._let_go.set()

    async def renew(self) -> None:
        """Renew what is held now, and not first at a third of its time; nothing is said of it."""
        for grant in self.spell.leases._grants.values():
            self.spell.leases.keeper._look(grant, monotonic())

    async def write(self, *, count: int, value: str = "written") -> None:
        """Write so often with the lease that was granted last, whatever has become of it."""
        assert self.lease is not None
        accepted, refused = 0, Counter[str]()
        for _ in range(count):
            try:
                await self.lease.state.set(self.scope, "written", f"{self.lease.token}:{value}")
            except StaleFencingTokenError as error:
                refused[error.why] += 1
            else:
                accepted += 1
        say("wrote", accepted=accepted, refused=dict(refused), held=self.lease.held)

    # --- many at once

    async def fight(self, *, begin: float, end: float, ttl: float, leased: bool) -> None:
        """Add one, by a read and a write, as often as possible between two moments."""
        grants, waits = 0, []
        await asyncio.sleep(begin - monotonic())
        while monotonic() < end:
            asked_at = monotonic()
            if leased:
                async with self.spell.leases.acquire(self.scope, ttl=ttl):
                    waits.append(monotonic() - asked_at)
                    await self._add_one()
            else:
                await self._add_one()
            grants += 1
        longest = max(waits, default=0.0)
        say("fought", grants=grants, waited_s=sum(waits), longest_wait_s=longest)

    async def _add_one(self) -> None:
        state = self.spell.state
        await state.set(self.scope, COUNTED, await state.get(self.scope, COUNTED, 0) + 1)

    async def occupy(self, *, direct: str, key: str, ttl: float, leased: bool) -> None:
        """Be where only one may be, again and again until `stop`; counted past any proxy."""
        raw = Raw(direct)
        together = rounds = 0
        self._over.clear()
        while not self._over.is_set():
            if leased:
                async with self.spell.leases.acquire(self.scope, ttl=ttl) as lease:
                    together += await self._inside(raw, key, lease.state)
            else:
                together += await self._inside(raw, key, self.spell.state)
            rounds += 1
            raw("HINCRBY", f"{key}:rounds", os.getpid(), 1)
        raw.close()
        say("occupied", rounds=rounds, together=together)

    async def _inside(self, raw: Raw, key: str, state: Any) -> int:
        others = int(raw("INCR", key)) - 1
        try:
            await state.increment(self.scope, COUNTED)
        finally:
            raw("DECR", key)
        return int(others > 0)

    async def stop(self) -> None:
        """End `occupy` after the round that it is in."""
        self._over.set()

    # --- clocks

    async def clock(self) -> None:
        """Say what this process takes the time of day for."""
        say("clock", time_s=time.time(), datetime_s=dt.datetime.now(dt.UTC).timestamp())

    async def jump(self, *, seconds: float) -> None:
        """Let Python's time of day be off by so much."""
        _off_s[0] = seconds
        say("jumped")

    # --- commands

    async def obey(self, command: dict[str, Any]) -> None:
        """Carry a command out; whatever goes wrong is said."""
        try:
            await getattr(self, command.pop("do"))(**command)
        except BaseException:
            say("error", text=traceback.format_exc())
            raise


async def commands() -> asyncio.StreamReader:
    """Return standard input as a stream."""
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    return reader


async def main(url: str, namespace: str, scope: str) -> None:
    """Obey until the end of standard input, or until nothing but the end is left."""
    options = Options(namespace=namespace, housekeeping=False, **PATIENCE)
    async with llmspell_dist.connect(url, options=options) as spell:
        worker, lines, tasks = Worker(spell, scope), await commands(), set()
        say("ready", pid=os.getpid())
        while line := await lines.readline():
            command = json.loads(line)
            if command["do"] == "end":
                break
            task = asyncio.create_task(worker.obey(command))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await worker.stop()
        await worker.release()
        if tasks:
            await asyncio.wait(tasks, timeout=10)
    say("ended")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
