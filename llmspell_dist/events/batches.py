"""Batches of events: what leaves in one call, who waits for it, and what failing halfway means."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NoReturn

from llmspell_dist.errors import StoreUnavailableError
from llmspell_dist.events.errors import PublishBlockedError, PublishError
from llmspell_dist.scope import decode_part

if TYPE_CHECKING:
    from llmspell_dist.events.steps import Packed, Refusal

__all__ = ["BATCH", "BATCH_BYTES", "Batch", "batches_of", "in_parts", "raise_partly"]

BATCH: Final = 256
BATCH_BYTES: Final = 48 * 1024
"""A batch stays below what goes over the bulk lane; an event that is larger goes there alone, with
nothing else under way, so that the order is kept."""


class Batch:
    """Events that leave in one script call, and again as long as a full queue lets them wait."""

    __slots__ = (
        "events",
        "future",
        "futures",
        "happened",
        "limits",
        "names",
        "number",
        "since",
        "size",
        "wait",
    )

    def __init__(self, events: list[Packed], size: int) -> None:
        self.events = events
        self.size = size
        self.number = 0
        """Its place among all of the publisher."""
        self.happened = False
        """Whether some of it is stored, or may be."""
        self.wait: list[int] = list(range(len(events)))
        """The places of events that are not stored yet."""
        self.names: dict[int, str] = {}
        """The full queue that each one waits for."""
        self.since: float | None = None
        """When they began to wait, or when some of them were stored last."""
        self.futures: list[asyncio.Future[Refusal | None]] = []
        """One for each event, where different callers wait."""
        self.future: asyncio.Future[list[Refusal]] | None = None
        """For all of them, where one does."""
        self.limits: list[float] = []
        """How long each event may wait, in seconds, or all of them."""

    def settle(self, refusals: list[Refusal], now: float) -> int:
        """Tell those who wait what the server said of those it was sent; how many were stored."""
        sent, found = self.wait, {self.wait[refusal.place]: refusal for refusal in refusals}
        rejected = [refusal for refusal in found.values() if refusal.code != "FULL"]
        full = [place for place in sent if place in found and found[place].code == "FULL"]
        self.names = {place: found[place].subscription for place in full}
        stored = len(sent) - len(found)
        self.happened = self.happened or stored > 0
        if self.since is None or (self.future is not None and stored):
            self.since = now
        if self.future is None:
            self.wait = full
            for place in sent:
                if place not in self.names and not self.futures[place].done():
                    self.futures[place].set_result(found.get(place))
        elif rejected or not full:
            self.wait = []
            if not self.future.done():
                self.future.set_result([one._replace(place=sent[one.place]) for one in rejected])
        else:
            self.wait = full
        self.left()
        return stored

    def left(self) -> list[int]:
        """Return the places of events that somebody waits for still."""
        if self.future is not None:
            if self.future.done():
                self.wait = []
        else:
            self.wait = [place for place in self.wait if not self.futures[place].done()]
        return self.wait

    def deadline(self) -> float:
        """Return when the first of those that wait has waited long enough."""
        limits = self.limits if self.future is not None else [self.limits[n] for n in self.wait]
        return (self.since or 0.0) + min(limits, default=0.0)

    def expire(self, now: float) -> int:
        """Tell those who have waited long enough; return how many events that is."""
        waited = now - (self.since or 0.0)
        if self.future is not None:
            late = self.wait if waited >= self.limits[0] else []
            futures: list[asyncio.Future[list[Refusal]] | asyncio.Future[Refusal | None]]
            futures = [self.future] if late else []
        else:
            late = [place for place in self.wait if waited >= self.limits[place]]
            futures = [self.futures[place] for place in late]
        for place, future in zip(late, futures, strict=False):
            if not future.done():
                event = self.events[place].event
                name = decode_part(self.names[place])
                future.set_exception(PublishBlockedError(event.id, event.type, name, waited))
        self.left()
        return len(late)

    def fail(self, error: BaseException) -> None:
        """Tell those who wait that nobody knows, or that nothing was sent."""
        self.happened = self.happened or getattr(error, "may_have_happened", False)
        for future in self.futures if self.future is None else (self.future,):
            if future.done():
                continue
            if isinstance(error, asyncio.CancelledError):
                future.cancel()
            else:
                future.set_exception(error)
        self.wait = []


def batches_of(events: Iterable[Packed]) -> Iterator[Batch]:
    """Yield events in their order, as many together as one call may take."""
    batch: list[Packed] = []
    size = 0
    for packed in events:
        length = len(packed.envelope) + len(packed.correlation) + len(packed.event.type)
        if batch and (len(batch) >= BATCH or size + length > BATCH_BYTES):
            yield Batch(batch, size)
            batch, size = [], 0
        batch.append(packed)
        size += length
    if batch:
        yield Batch(batch, size)


@contextmanager
def in_parts() -> Iterator[list[int]]:
    """Yield where to note how many each part has stored; an error behind some says that."""
    stored: list[int] = []
    try:
        yield stored
    except (StoreUnavailableError, PublishError) as error:
        if any(stored):
            raise_partly(error)
        raise


def raise_partly(error: StoreUnavailableError | PublishError) -> NoReturn:
    """Raise an error as that of several events, of which some are stored."""
    told = error.partly()
    if told is error:
        raise told
    raise told from error
