"""What comes to a consumer: fetched from its queue, kept while it lives, taken from the dead."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.backoff import Backoff
from llmspell_dist.errors import ClosedError, StoreUnavailableError
from llmspell_dist.events.errors import UnreadableEventError
from llmspell_dist.events.settling import MOST_IDS, Burial, Held

if TYPE_CHECKING:
    from llmspell_dist.events.settling import Settler
    from llmspell_dist.events.steps import EventSteps
    from llmspell_dist.events.terms import ConsumerStats, DurableTerms
    from llmspell_dist.redis.commands import ScriptCall

__all__ = ["Feed"]

logger = logging.getLogger("llmspell_dist.events")

FETCH: Final = 256
FETCH_BYTES: Final = 1 << 20
MOST_CLAIMED: Final = 100


class Feed:
    """Fills the buffer of one consumer from its queue.

    `came` is called with how many events were put into the buffer, `ended` once, with why it does
    not go on.
    """

    def __init__(
        self,
        steps: EventSteps,
        execute: Callable[[ScriptCall], Awaitable[Any]],
        name: str,
        consumer: bytes,
        *,
        terms: DurableTerms,
        stats: ConsumerStats,
        settler: Settler,
        came: Callable[[int], None],
        ended: Callable[[BaseException | None], None],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._steps = steps
        self._execute = execute
        self._name = name
        self._consumer = consumer
        self._terms = terms
        self._stats = stats
        self._settler = settler
        self._came = came
        self._ended = ended
        self._sleep = sleep
        self.buffer: deque[Held] = deque()
        """Fetched and not handed out yet."""
        self.out: dict[int, Held] = {}
        """Handed out and not settled, by the identity of the event, which they keep alive."""
        self.claim_now = False
        """Look for what others left lying before the next fetch."""
        self.resuming = False
        """Begin with what this consumer held when it was stopped."""
        self._after = b"0-0"
        self._rung = asyncio.Event()
        self._room = asyncio.Event()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r} consumer={self._consumer.decode()!r}>"

    def eased(self) -> None:
        """Fetch more, if there is room: an event was taken out of the buffer, or settled."""
        if len(self.buffer) < FETCH // 2:
            self._room.set()

    def ring(self, message: bytes) -> None:
        """Look again: the queue's bell."""
        if message == b"c":
            self.claim_now = True
        self._rung.set()

    def _room_for(self) -> int:
        """Return how many more events this consumer may hold; what comes again it holds too."""
        waiting = len(self.buffer)
        if waiting >= FETCH:
            return 0
        held = waiting + len(self.out) + len(self._settler.delayed)
        return min(FETCH, self._terms.max_unacked - held)

    def mine(self) -> dict[bytes, Held]:
        """Return all that this consumer holds, by its ids in the queue."""
        held = (*self.buffer, *self.out.values(), *self._settler.delayed)
        return {one.entry: one for one in held}

    # --- fetched

    async def run(self) -> None:
        """Keep the buffer filled; wait for the bell when the queue is empty."""
        backoff = Backoff(first_s=0.05, max_s=2.0)
        while True:
            try:
                if await self._filled():
                    backoff.reset()
                    continue
                backoff.reset()
                try:
                    async with asyncio.timeout(self._terms.poll):
                        await self._rung.wait()
                except TimeoutError:
                    pass  # the bell may have been lost
            except ClosedError:
                self._ended(None)
                return
            except Exception as error:  # noqa: BLE001 - whoever iterates is told, and not left waiting
                if not (isinstance(error, StoreUnavailableError) and error.retryable):
                    self._ended(error)
                    return
                level = logging.DEBUG if backoff.failures else logging.WARNING
                logger.log(level, "%r: goes on when the server does: %s", self, error)
                await asyncio.sleep(backoff.next_s())

    async def _filled(self) -> bool:
        """Wait for room and fetch once; return whether there may be more."""
        self._room.clear()
        while self._room_for() <= 0:
            await self._room.wait()
            self._room.clear()
        await self._settler.few_burials()
        self._rung.clear()
        name, own = self._name, self.resuming
        if self.claim_now and not own:
            self.claim_now = False
            await self.claim(int(self._terms.claim_idle * 1000))
        most = self._room_for()
        if most <= 0:
            return True  # others had left so much lying
        call = self._steps.fetch_call(name, self._consumer, self._after, most, FETCH_BYTES, own=own)
        reply = self._steps.existing(name, await self._execute(call))
        moved: bool = reply[0] != self._after
        self._after = reply[0]
        entries = list(zip(reply[1::3], map(int, reply[2::3]), reply[3::3], strict=True))
        if entries and self._stats.claimed:  # else what it holds lies before what comes now
            held = {*self.mine(), *self._settler.acks.waiting, *self._settler.burying}
            entries = [one for one in entries if one[0] not in held]
        self.take(entries, again=own)
        if own and not moved:
            self.resuming = False
            return True
        if len(self.buffer) >= FETCH // 2:
            await self._room.wait()
        return moved

    def take(self, entries: list[tuple[bytes, int, bytes]], *, again: bool = False) -> None:
        """Decode what was fetched, and put it into the buffer.

        `again`: some consumer had it before; it was delivered as often as is said, or once less
        than that, since what lay in the buffer of a process that died counts as delivered once.
        """
        taken = []
        for entry, deliveries, envelope in entries:
            try:
                event = self._steps.read_event(envelope)
            except UnreadableEventError as error:
                burial = Burial("unreadable", deliveries, str(error))
                self._settler.bury_later(entry, burial)
                continue
            if again and deliveries >= max(2, self._terms.max_deliveries):
                said = "its consumers died, or did not settle it"
                burial = Burial("failed", deliveries, said, said, event.id)
                self._settler.bury_later(entry, burial)
                continue
            # What came again is counted when it is handed out, so that an event that kills its
            # process does not use up the deliveries of those behind it.
            taken.append(Held(entry, event, deliveries + again, counted=not again))
        if any(held.event.priority for held in taken):
            taken.sort(key=_priority)
        self.buffer.extend(taken)
        self._came(len(taken))

    async def claim(self, idle_ms: int) -> None:
        """Take over what was left lying."""
        more = True
        while more and (room := self._room_for()) > 0:
            most = min(room, MOST_CLAIMED)
            call = self._steps.claim_call(self._name, self._consumer, idle_ms, most)
            reply = self._steps.existing(self._name, await self._execute(call))
            more = bool(reply[0])
            entries = zip(reply[1::3], map(int, reply[2::3]), reply[3::3], strict=True)
            mine = {*self.mine(), *self._settler.acks.waiting, *self._settler.burying}
            fresh = [one for one in entries if one[0] not in mine]
            self._stats.claimed += len(fresh)
            self.take(fresh, again=True)
        self.claim_now = self.claim_now or more

    # --- kept

    async def tend(self) -> None:
        """Keep what is held, and look for what others left lying, three times in `claim_idle`."""
        pause_s = self._terms.claim_idle / 3
        while True:
            await self._sleep(pause_s)
            try:
                await self.renew()
                self.claim_now = True
                self._rung.set()
            except ClosedError:
                return
            except Exception as error:  # noqa: BLE001 - what is no longer kept would go to others
                if not (isinstance(error, StoreUnavailableError) and error.retryable):
                    self._ended(error)
                    return
                logger.debug("%r: not renewed: %s", self, error)

    async def renew(self) -> None:
        """Tell the server that what is held is worked on still."""
        mine = self.mine()
        ids = [*mine, *self._settler.burying]
        for start in range(0, len(ids), MOST_IDS):
            part = ids[start : start + MOST_IDS]
            call = self._steps.renew_call(self._name, self._consumer, part)
            for entry in await self._execute(call):
                held = mine.get(entry)
                if (
                    held is not None and held in self.buffer
                ):  # another has it, so this one need not begin
                    self.buffer.remove(held)
                    self._stats.taken_over += 1
        self.eased()

    async def release(self) -> None:
        """Give back what was not settled; what was never handed out does not count as delivered."""
        held = [
            (one.entry, one.deliveries if one.handed else one.deliveries - 1)
            for one in self.mine().values()
        ]
        held += [(entry, burial.deliveries) for entry, burial in self._settler.burying.items()]
        for start in range(0, max(1, len(held)), MOST_IDS):
            part = held[start : start + MOST_IDS]
            await self._execute(self._steps.release_call(self._name, self._consumer, part))
        self.buffer.clear()
        self.out.clear()
        self._settler.delayed.clear()


def _priority(held: Held) -> int:
    return held.event.priority
