"""One of several real processes with hooks: run as ``hook_process.py URL NAMESPACE``.

Commands come as JSON, one a line, to standard input; events leave the same way, through
`fix_lease_faults.LeaseProcess`, whose protocol this is.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import traceback
from datetime import timedelta
from typing import Any

import llmspell_dist
from llmspell_dist.context import context
from llmspell_dist.hooks.context import HookContext
from llmspell_dist.hooks.results import Cancel, Modified
from llmspell_dist.schedule import Every

POINT = "BeforeStateWrite"
S = "agent:hooked"


def say(event: str, **facts: Any) -> None:
    """Tell the test what happened, in one write: several tasks speak."""
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


def stamp(ctx: HookContext) -> Any:
    """Depend on the clock, on chance and on an id."""
    value = [ctx.data["value"], ctx.now(), ctx.new_id(), ctx.random()]
    return Cancel("odd") if ctx.data["value"] == "odd" else Modified({"value": value})


class Worker:
    """Carries commands out."""

    def __init__(self, spell: Any) -> None:
        self.spell = spell

    async def record(self, *, count: int, correlation: str, big: int = 0) -> None:
        """Have a replayable hook run so often; 0: for ever."""
        self.spell.hooks.register(POINT, stamp, replayable=True)
        number = 0
        with context(correlation_id=correlation):
            while number < count or count == 0:
                await self.spell.state.set(S, "k", f"{number}{'x' * big}")
                number += 1
                if number == 100:
                    say("hundred")
        say("recorded", count=number)

    async def flush(self) -> None:
        """Have all of it written."""
        await self.spell.hooks.history.flush()
        say("flushed", written=self.spell.hooks.history.stats.written)

    async def replay(self, *, correlation: str) -> None:
        """Replay everything of a correlation with the hook of this process."""
        if self.spell.hooks.find("stamp", POINT) is None:
            self.spell.hooks.register(POINT, stamp)
        report = await self.spell.replay.batch(correlation_id=correlation)
        said = {"total": report.total, "identical": report.identical}
        say("replayed", **said, first=report.first_difference)

    async def fleet(
        self,
        *,
        point: str,
        run: str = "every",
        labels: dict[str, str] | None = None,
        veto: str | None = None,
        stalls: bool = False,
        **how: Any,
    ) -> None:
        """Have a hook for the fleet that tells where it ran."""

        async def told(ctx: HookContext) -> Any:
            say("ran", pid=os.getpid(), key=ctx.data["key"], correlation=ctx.correlation_id)
            if stalls:
                await asyncio.Event().wait()
            return None if veto is None else Cancel(veto)

        await self.spell.hooks.fleet(point, told, name="told", run=run, labels=labels, **how)
        say("has")

    async def join(self, *, labels: dict[str, str]) -> None:
        """Take part."""
        await self.spell.hooks.fleet.join(labels=labels)
        say("joined", id=self.spell.hooks.fleet.process)

    async def knows(self, *, processes: int, asks: int) -> None:
        """Wait until so many processes and hooks of others are known."""
        fleet = self.spell.hooks.fleet
        while len(fleet.processes()) != processes or _asked(self.spell) != asks:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        say("known")

    async def set(self, *, key: str) -> None:
        """Write, and tell how it went."""
        try:
            with context(correlation_id=f"by-{os.getpid()}"):
                await self.spell.state.set(S, key, 1)
        except llmspell_dist.SpellError as error:
            say("refused", error=str(error))
        else:
            say("set")

    async def serve(self, *, ttl: float) -> None:
        """Run schedules, with a lease that is soon over."""
        schedules = self.spell.replay.schedules
        schedules._lease_ttl = ttl
        run = schedules._run

        async def told(made: Any, due: Any) -> Any:
            say("began", due=due.isoformat())
            return await run(made, due)

        write, said = schedules._write, [""]

        async def noted(lease: Any, made: Any, progress: Any) -> bool:
            # A run has ended when that is written: who is killed before runs it again.
            written: bool = await write(lease, made, progress)
            due = "" if progress.last_due is None else progress.last_due.isoformat()
            if progress.attempts == 0 and due not in said:
                said[0] = due
                identical, total = progress.last_identical, progress.last_total
                say("ended", due=due, identical=identical, total=total)
            return written

        schedules._run, schedules._write = told, noted
        if self.spell.hooks.find("stamp", POINT) is None:
            self.spell.hooks.register(POINT, stamp)
        schedules.serve()
        say("serving")

    async def schedule(self, *, every_s: float, correlation: str) -> None:
        """Have a correlation replayed at intervals."""
        every = Every(timedelta(seconds=every_s))
        await self.spell.replay.schedules.add("check", every, correlation_id=correlation)
        say("scheduled")


def _asked(spell: Any) -> int:
    return sum(hook.name.startswith("fleet:") for hook in spell.hooks.get_hooks())


async def main(url: str, namespace: str) -> None:
    """Carry out what is said until ``end``."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tasks: set[asyncio.Task[None]] = set()
    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        worker = Worker(spell)
        say("ready")
        while line := await reader.readline():
            command = json.loads(line)
            do = command.pop("do")
            if do == "end":
                break

            async def carry_out(do: str = do, command: dict[str, Any] = command) -> None:
                try:
                    await getattr(worker, do)(**command)
                except Exception:
                    say("error", text=traceback.format_exc())

            task = asyncio.create_task(carry_out())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        for task in tasks:
            task.cancel()
    say("ended_all")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
