"""A process that ships a log to an archive, until it is killed, or kills itself at a counted step.

Run by the tests of the archive as ``archive_process.py URL NAMESPACE TARGET STEPS``. A step is
anything that a death could fall beside: before and after each object is stored, before and after
each move of the position. At step `STEPS` it gets SIGKILL; 0 is never. A line is printed when it
begins, and whenever a segment is done.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

import llmspell_dist
from llmspell_dist import Options
from llmspell_dist.backup.archive import Shipper
from llmspell_dist.backup.repository import Repository
from llmspell_dist.backup.targets import open_target


class Counted:
    """A target that counts, and dies in time."""

    def __init__(self, target: Any, steps: int) -> None:
        self._target = target
        self._left = steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def step(self) -> None:
        """Take note of a step."""
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)

    def put(self, name: str, data: Any, *, only_new: bool = False) -> bool:
        """Store an object."""
        self.step()
        done: bool = self._target.put(name, data, only_new=only_new)
        self.step()
        return done


async def main(url: str, namespace: str, place: str, steps: str) -> None:
    """Ship until the end."""
    target = Counted(open_target(place), int(steps))
    options = Options(namespace=namespace, housekeeping=False)
    async with llmspell_dist.connect(url, options=options) as spell:
        there: Any = target
        repository = Repository(there, namespace)
        shipper = Shipper(spell.state._driver, repository, interval_s=0.001, segment_bytes=1024)
        moved = shipper._where.moved

        async def counted(*arguments: Any, **more: Any) -> int:
            target.step()
            done = await moved(*arguments, **more)
            target.step()
            sys.stdout.write("moved\n")
            sys.stdout.flush()
            return done

        where: Any = shipper._where
        where.moved = counted
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await shipper.run(asyncio.Event())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:5]))
