"""Durable events over a stream: handed out while the client answers for them, kept while it lives.

What was handed out and not answered for is renewed as long as the stream lasts, and given back for
others at its end. If this process dies, it comes to others after the claim time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Final

from llmspell_dist.errors import SpellError
from llmspell_dist.events.pulling import Delivery, Puller, Waiting

if TYPE_CHECKING:
    from llmspell_dist.events.terms import DurableTerms
    from llmspell_dist.sidecar.services import Services

__all__ = ["Deliveries", "Handed"]

logger = logging.getLogger("llmspell_dist.sidecar")
_AT_ONCE: Final = 64
_RENEWED_AT_ONCE: Final = 500
_LOOK_S: Final = 20.0


class Deliveries:
    """Everything of one sidecar that was handed out over streams, and the way to take answers."""

    def __init__(self, services: Services) -> None:
        self.puller = Puller(services.spell.events)
        self._out: dict[tuple[str, str], Handed] = {}
        self._waiting: dict[tuple[str, str], set[Waiting]] = {}
        services.ending.append(self.puller.close)

    def settled(self, name: str, receipts: Iterable[str]) -> None:
        """Take note that somebody has answered for these of a queue.

        An event is in several queues under one id: its receipts there are the same text.
        """
        for receipt in receipts:
            handed = self._out.pop((name, receipt), None)
            if handed is not None:
                handed.settled(receipt)

    @contextmanager
    def waiting(self, name: str, consumer: str | None) -> Iterator[Waiting]:
        """Let a consumer wait inside the block, until it says that it leaves."""
        waiting, place = Waiting(), (name, consumer or "")
        self._waiting.setdefault(place, set()).add(waiting)
        try:
            yield waiting
        finally:
            self._waiting[place].discard(waiting)
            if not self._waiting[place]:
                del self._waiting[place]

    def leave(self, name: str, consumer: str) -> None:
        """End the waiting of a consumer: it takes no events any more that it would not handle."""
        for waiting in self._waiting.get((name, consumer), ()):
            waiting.end()

    @asynccontextmanager
    async def handing(self, name: str, terms: DurableTerms) -> AsyncIterator[Handed]:
        """Hand out events of a durable subscription inside the block."""
        handed = Handed(self.puller, self._out, name, terms)
        renewing = asyncio.get_running_loop().create_task(handed.renew())
        try:
            yield handed
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            await handed.release()


class Handed:
    """What one stream has handed out."""

    def __init__(
        self,
        puller: Puller,
        out: dict[tuple[str, str], Handed],
        name: str,
        terms: DurableTerms,
    ) -> None:
        self._puller = puller
        self._out = out
        self._name = name
        self._terms = terms
        self._open: set[str] = set()
        self._room = asyncio.Event()

    def settled(self, receipt: str) -> None:
        """Take note of an answer: there is room for another event."""
        self._open.discard(receipt)
        self._room.set()

    async def portions(self) -> AsyncIterator[list[Delivery]]:
        """Yield what comes, never more than `max_unacked` without an answer."""
        while True:
            room = self._terms.max_unacked - len(self._open)
            if room <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            found = await self._puller.pull(
                self._name, most=min(room, _AT_ONCE), wait_s=_LOOK_S, terms=self._terms
            )
            for one in found:
                self._open.add(one.receipt)
                self._out[self._name, one.receipt] = self
            if found:
                yield found

    async def renew(self) -> None:
        """Say again and again that the client works on what it has; learn of answers elsewhere."""
        while True:
            await asyncio.sleep(self._terms.claim_idle / 3)
            await self.renew_once()

    async def renew_once(self) -> None:
        """Say it once."""
        for some in batched(sorted(self._open), _RENEWED_AT_ONCE):
            try:
                lost = await self._puller.renew(self._name, some)
            except SpellError as error:
                logger.debug("deliveries of %r were not renewed: %s", self._name, error)
                return
            for receipt in lost:
                self._out.pop((self._name, receipt), None)
                self.settled(receipt)

    async def release(self) -> None:
        """Give back what was not answered for."""
        left, self._open = self._open, set()
        for receipt in left:
            self._out.pop((self._name, receipt), None)
        with suppress(SpellError):  # others take it after the claim time
            await self._puller.release(self._name, sorted(left), handled=True)


def batched(items: list[str], size: int) -> Iterator[list[str]]:
    """Yield a list in parts."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
