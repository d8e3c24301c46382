"""Processes that work on backups, and kill themselves at a counted step.

Run by the tests of backups as ``backup_process.py URL NAMESPACE PLACE BASE``. Each line of its
input, ``OPERATION STEPS ARGUMENT``, makes a process that carries the operation out. A step is
anything that a death could fall beside: before and after each call of the target, before and after
each request to the server. At step `STEPS` it gets SIGKILL; 0 is never. It says ``begun``, and
``done`` with the number of steps if it comes so far; ``ended`` is said when it is gone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import timedelta
from threading import Lock
from typing import Any

import llmspell_dist
from llmspell_dist import Options
from llmspell_dist.backup import running
from llmspell_dist.backup.restoring import batches, staging
from llmspell_dist.backup.targets import open_target


def say(what: str) -> None:
    """Tell the test."""
    sys.stdout.write(what + "\n")
    sys.stdout.flush()


class Steps:
    """Counts, and dies in time."""

    def __init__(self, until: int) -> None:
        self.count = 0
        self._until = until
        self._lock = Lock()

    def step(self) -> None:
        """Take note of a step."""
        with self._lock:
            self.count += 1
            if self.count == self._until:
                os.kill(os.getpid(), signal.SIGKILL)


class Counted:
    """A target whose calls are steps."""

    def __init__(self, target: Any, steps: Steps) -> None:
        self._target = target
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **more: Any) -> Any:
            self._steps.step()
            done = found(*arguments, **more)
            self._steps.step()
            return done

        return call


def count_requests(driver: Any, steps: Steps) -> None:
    """Let each request of a driver be a step."""
    execute = driver.execute

    def counted(*arguments: Any, **more: Any) -> Any:
        steps.step()
        asked = execute(*arguments, **more)
        asked.add_done_callback(lambda _: steps.step())
        return asked

    driver.execute = counted


async def main(url: str, namespace: str, folders: list[str], command: list[str]) -> None:
    """Carry one operation out."""
    operation, until, argument = command
    steps = Steps(int(until))
    options = Options(namespace=namespace, housekeeping=False)
    async with llmspell_dist.connect(url, options=options) as spell:
        await spell.state.get("agent:none", "none")
        places: list[Any] = [Counted(open_target(folder), steps) for folder in folders]
        main, base = (spell.backups.to(place) for place in places)
        count_requests(spell.backups._driver, steps)
        say("begun")
        match operation:
            case "full" | "incremental":
                await main.create(type=operation)
            case "archive":
                await main.archive().once()
            case "restore":
                await base.restore(argument, scopes=["custom:r1", "custom:r2"])
            case "prune":
                await main.prune(argument, confirm=True)
            case "gc":
                await main.gc(confirm=True, grace=timedelta(seconds=1))
            case "verify":
                await main.verify(level="full")
            case _:
                raise AssertionError(operation)
        say(f"done {steps.count}")


if __name__ == "__main__":
    for module, name, value in (
        (batches, "BATCH_CHANGES", 4),
        (staging, "BATCH_RECORDS", 20),
        (staging, "TOGETHER", 2),
        (running, "_TTL_S", 2.0),
    ):
        assert hasattr(module, name)
        setattr(module, name, value)
    url, namespace, *folders = sys.argv[1:]
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                asyncio.run(main(url, namespace, folders, line.split()))
            except BaseException as error:
                say(f"failed {type(error).__name__}: {error}")
            os._exit(0)
        os.waitpid(child, 0)
        say("ended")
