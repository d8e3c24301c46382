"""Objects on their way to the target: sealed and put by threads, a few at a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from llmspell_dist.backup.marks import marks_of

if TYPE_CHECKING:
    from llmspell_dist.backup.manifest import ObjectRef
    from llmspell_dist.backup.repository import Repository, Stored
    from llmspell_dist.backup.writing import ObjectWriter

__all__ = ["Uploads"]

TOGETHER: Final = 4
"""Objects in memory at once; with 4 MiB each the memory of a backup is bounded by them."""


class Uploads:
    """Stores objects in the background; the first failure ends everything."""

    def __init__(self, repository: Repository, stored: Stored) -> None:
        self._repository = repository
        self._stored = stored
        self._slots = asyncio.Semaphore(TOGETHER)
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: BaseException | None = None
        self._refs: list[ObjectRef | None] = []

    @property
    def refs(self) -> list[ObjectRef]:
        """What was stored, in the order in which it was given."""
        return [ref for ref in self._refs if ref is not None]

    async def take(self, writer: ObjectWriter, kind: str, shard: str) -> None:
        """Store what a writer has ready; waits while too much is on its way."""
        while writer.ready:
            await self.put(kind, writer.ready.pop(0), shard, writer.scopes.pop(0))

    async def put(
        self, kind: str, plain: bytes, shard: str, scopes: frozenset[bytes] = frozenset()
    ) -> None:
        """Store an object, which holds records of some scopes."""
        self._raise()
        await self._slots.acquire()
        place = len(self._refs)
        self._refs.append(None)
        task = asyncio.create_task(self._store(kind, plain, shard, place, scopes))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _store(
        self, kind: str, plain: bytes, shard: str, place: int, scopes: frozenset[bytes]
    ) -> None:
        try:
            ref = await asyncio.to_thread(self._repository.store, kind, plain, shard, self._stored)
            self._refs[place] = ref
            if kind == "records":
                self._stored.marks[ref.digest] = marks_of(scopes)
        except BaseException as error:  # noqa: BLE001 - raised to whoever stores the next one
            self._failed = self._failed or error
        finally:
            self._slots.release()

    async def finish(self) -> list[ObjectRef]:
        """Wait until everything is stored, and return it."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        self._raise()
        return self.refs

    async def abandon(self) -> None:
        """Wait for what is on its way; threads cannot be stopped."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    def _raise(self) -> None:
        if self._failed is not None:
            raise self._failed
