"""Publishing: events of one turn of the event loop leave in one script call."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import count, islice
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.backoff import Backoff
from llmspell_dist.errors import ClosedError, SpellError, StoreUnavailableError
from llmspell_dist.events.batches import BATCH_BYTES, Batch, batches_of, raise_partly
from llmspell_dist.events.errors import PublishError, PublishRejectedError
from llmspell_dist.fork import keep_forever
from llmspell_dist.scope import decode_part

if TYPE_CHECKING:
    from llmspell_dist.events.steps import EventSteps, Packed, Refusal
    from llmspell_dist.redis.commands import ScriptCall

__all__ = ["Publisher", "PublisherStats"]

logger = logging.getLogger("llmspell_dist.events")

MOST_CALLS: Final = 64
"""So many operations may be under way: the server knows the last 256 of each client."""


@dataclass(slots=True)
class PublisherStats:
    """What became of the events that this client published, since it was opened."""

    published: int = 0
    """Acknowledged by the server."""
    rejected: int = 0
    """Refused, by a queue that rejects or by the rate limit."""
    blocked: int = 0
    """Refused after waiting for room in a queue."""
    waits: int = 0
    """How often an event had to wait for room in a queue."""
    dropped: int = 0
    """Left out by the rate limit's strategy."""
    limited: int = 0
    """How often an event had to wait for the rate limit."""
    live_refused: int = 0
    """Script calls in which the server refused to tell live subscribers: a right is missing."""


class Publisher:
    """Sends events, in the order in which they were given to it, a batch in a script call.

    The order holds in every queue, also where events wait for room. When a queue is full, the
    server notes it for this publisher, and refuses whatever else of it means that queue, of the
    same call and of those under way, until what waits is sent again, as the first of a call with
    nothing else under way.
    """

    def __init__(self, steps: EventSteps, execute: Callable[[ScriptCall], Awaitable[Any]]) -> None:
        self._steps = steps
        self._execute = execute
        self.stats = PublisherStats()
        self._begin()

    def _begin(self) -> None:
        self._turn: list[tuple[Packed, asyncio.Future[Refusal | None], float]] = []
        self._ready: deque[Batch] = deque()
        self._calls: dict[asyncio.Task[None], Batch] = {}
        self._line: list[Batch] = []
        self._standing: asyncio.Task[None] | None = None
        self._numbers = count()
        self._noted = False
        self._held_back = False
        self._closed = False
        self._alone = False

    async def publish(self, packed: Packed, timeout_s: float) -> None:
        """Send one event, and wait for room where a queue is full and blocks."""
        refusal = await self._submit(packed, timeout_s)
        if refusal is not None:
            self._reject(packed, refusal)

    def begin(self, events: Sequence[Packed], timeout_s: float) -> list[Batch]:
        """Hand events over, to be sent in this turn of the event loop; `finish` waits for them."""
        if self._closed:
            raise ClosedError("the client is closed")
        self._flush()  # what others published before stays before
        loop = asyncio.get_running_loop()
        batches = []
        for batch in batches_of(events):
            batch.future = loop.create_future()
            batch.limits = [timeout_s]
            batch.number = next(self._numbers)
            batches.append(batch)
        self._ready.extend(batches)
        self._start()
        return batches

    async def finish(self, begun: list[Batch]) -> None:
        """Wait until all are stored; they stay in their order, also where they have to wait.

        What is said of one is raised as that of all of them, if any of them is stored.
        """
        try:
            for batch in begun:
                assert batch.future is not None  # noqa: S101 - made by `begin`
                for refusal in await batch.future:
                    self._reject(batch.events[refusal.place], refusal)
        except (StoreUnavailableError, PublishError) as error:
            _drop(begun)
            under_way = [task for task, batch in self._calls.items() if batch in begun]
            if under_way:
                await asyncio.wait(under_way)
            if any(batch.happened for batch in begun):
                raise_partly(error)
            raise
        finally:
            _drop(begun)

    def _reject(self, packed: Packed, refusal: Refusal) -> None:
        event = packed.event
        raise PublishRejectedError(event.id, event.type, decode_part(refusal.subscription))

    # --- batches

    def _submit(self, packed: Packed, timeout_s: float) -> asyncio.Future[Refusal | None]:
        """Send an event with the others of this turn; the future gives why it was refused."""
        if self._closed:
            raise ClosedError("the client is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Refusal | None] = loop.create_future()
        if not self._turn:
            loop.call_soon(self._flush)
        self._turn.append((packed, future, timeout_s))
        return future

    def _flush(self) -> None:
        turn, self._turn = self._turn, []
        callers = iter(turn)
        for batch in batches_of([packed for packed, _, _ in turn]):
            mine = list(islice(callers, len(batch.events)))
            batch.futures = [future for _, future, _ in mine]
            batch.limits = [timeout_s for _, _, timeout_s in mine]
            batch.number = next(self._numbers)
            self._ready.append(batch)
        self._start()

    def _start(self) -> None:
        while self._ready and len(self._calls) < MOST_CALLS and not self._held_back:
            alone = self._ready[0].size > BATCH_BYTES
            if self._calls and (alone or self._alone):
                return
            self._alone = alone
            batch = self._ready.popleft()
            events = [batch.events[place] for place in batch.left()]
            if not events:
                continue  # whoever published them was cancelled
            # Nothing of this publisher waits before it, so what the server noted is over.
            first = self._noted and not self._calls and not self._line
            if first:
                self._noted = False
            # Here and not in the task, which would begin only after its caller's next step.
            try:
                waiting = self._execute(self._steps.publish_call(events, first=first))
            except SpellError as error:
                batch.fail(error)
                continue
            task = asyncio.get_running_loop().create_task(self._call(batch, waiting))
            self._calls[task] = batch
            task.add_done_callback(self._called)

    def _called(self, task: asyncio.Task[None]) -> None:
        del self._calls[task]
        self._start()

    async def _call(self, batch: Batch, waiting: Awaitable[Any]) -> None:
        try:
            reply = await waiting
            refusals = self._steps.read_published(reply)
        except (SpellError, asyncio.CancelledError) as error:
            batch.fail(error)
            return
        if reply[1]:
            if not self.stats.live_refused:
                logger.warning("live subscribers are not told: %s", reply[1].decode())
            self.stats.live_refused += 1
        self.stats.published += batch.settle(refusals, monotonic())
        if not refusals:
            return
        full = sum(refusal.code == "FULL" for refusal in refusals)
        self.stats.rejected += len(refusals) - full
        self._noted = self._noted or full > 0
        if not batch.wait:
            return
        if self._closed:
            batch.fail(ClosedError("the client is closed"))
            return
        self.stats.waits += 1
        self._line.append(batch)
        if self._standing is None:
            self._standing = asyncio.get_running_loop().create_task(self._stand())

    # --- waiting for room

    async def _stand(self) -> None:
        """Send what was refused until it is stored, in order, and as long as it may take."""
        backoff = Backoff(first_s=0.005, max_s=0.25)
        try:
            while self._waiting():
                soonest = min(batch.deadline() for batch in self._line)
                await asyncio.sleep(max(0.0, min(backoff.next_s(), soonest - monotonic())))
                if not self._waiting():
                    break
                # Nothing else may be under way: it would be stored before what waits.
                self._held_back = True
                while self._calls:
                    await asyncio.wait(tuple(self._calls))
                line = sorted(self._line, key=_number)
                before = sum(len(batch.wait) for batch in line)
                self._line = []
                self._ready.extendleft(reversed(line))
                self._held_back = False
                self._start()
                while self._calls and not {*line}.isdisjoint({*self._ready, *self._calls.values()}):
                    await asyncio.wait(tuple(self._calls), return_when=asyncio.FIRST_COMPLETED)
                if sum(len(batch.wait) for batch in line) < before:
                    backoff.reset()
        finally:
            self._held_back = False
            self._standing = None
            self._start()

    def _waiting(self) -> bool:
        """Return whether anything waits still; what waited long enough is told so."""
        now = monotonic()
        for batch in self._line:
            if batch.left():
                self.stats.blocked += batch.expire(now)
        self._line = [batch for batch in self._line if batch.wait]
        return bool(self._line)

    # --- the end

    async def close(self) -> None:
        """Refuse new events, and wait for those that are under way."""
        self._closed = True
        if self._standing is not None:
            self._standing.cancel()
            await asyncio.gather(self._standing, return_exceptions=True)
        self._flush()
        while self._calls:
            await asyncio.wait(tuple(self._calls))
        for batch in self._line:
            batch.fail(ClosedError("the client is closed"))

    def forget(self) -> None:
        """In a forked child: what is under way is the parent's."""
        keep_forever(self._calls, self._ready, self._turn, self._line, self._standing)
        closed = self._closed
        self._begin()
        self._closed = closed


def _drop(begun: list[Batch]) -> None:
    """Send nothing more of them, and ask for no error."""
    for batch in begun:
        future = batch.future
        if future is not None and not future.cancel() and not future.cancelled():
            future.exception()  # the first one is raised, nobody asks for the others


def _number(batch: Batch) -> int:
    return batch.number
