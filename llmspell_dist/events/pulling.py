"""Taking events of a durable subscription in portions, for callers that cannot be a consumer.

Whoever asks over HTTP keeps no connection: it is given events, handles them, and says so later,
perhaps to another process. So nothing is kept here. The server's own list of what was handed out
says who owes an answer, and after `claim_idle` without one the events go to whoever asks next. All
who ask this way are one consumer for the server, so that any process can take any answer.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.events.errors import UnreadableEventError
from llmspell_dist.events.steps import SHARD, check_name, read_definition
from llmspell_dist.patterns import Pattern
from llmspell_dist.revision import Revision

if TYPE_CHECKING:
    from llmspell_dist.events.manager import Events
    from llmspell_dist.events.model import Event
    from llmspell_dist.events.steps import Definition
    from llmspell_dist.events.terms import DurableTerms

__all__ = ["CONSUMER", "Delivery", "Puller", "Waiting"]

CONSUMER: Final = "pull"
"""The consumer that all of them are."""
MOST: Final = 1000
_ME: Final = CONSUMER.encode()
_BYTES: Final = 4 << 20
_NOTHING_BEFORE: Final = b"18446744073709551615-18446744073709551615"
"""Where to go on from if nothing is to come again that was in a lost answer: it comes by itself."""
_LOOK_AFTER_S: Final = 2.0
"""How often a caller that waits looks for what others left lying; a bell rings for what is new."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event that was handed out and is to be answered for."""

    receipt: str
    """Names this delivery: what `Puller.ack` and `Puller.nack` take."""
    event: Event
    deliveries: int
    """How often it was delivered, this time included."""


class _Receipt(NamedTuple):
    entry: bytes
    deliveries: int

    def __str__(self) -> str:
        return f"{self.entry.decode()}.{self.deliveries}"


class Waiting:
    """One who waits for events, and can be told to wait no longer."""

    def __init__(self) -> None:
        self.rung = asyncio.Event()
        self.over = False

    def end(self) -> None:
        """Let the one who waits go on with what is there: mostly nothing."""
        self.over = True
        self.rung.set()


class Puller:
    """Hands out events of durable subscriptions at least once, and takes the answers."""

    def __init__(self, events: Events) -> None:
        self._steps = events._steps  # noqa: SLF001 - of the same package
        self._execute = events._driver.execute  # noqa: SLF001
        self._bells = events._bells  # noqa: SLF001
        self._again: set[asyncio.TimerHandle] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def open(
        self, name: str, pattern: str, *, capacity: int | None = None, overflow: str | None = None
    ) -> Definition:
        """Make a durable subscription, or find it; see `Events.subscribe`."""
        meant = Pattern(pattern)
        check_name(name)
        reply = await self._execute(self._steps.subscribe_call(name, meant, capacity, overflow))
        return self._steps.read_subscribed(name, meant, reply)

    async def definition(self, name: str) -> Definition | None:
        """Return what a durable subscription means and how it is kept; None if there is none."""
        keys = self._steps.keys
        encoded = keys.event_queue(SHARD, check_name(name)).rpartition(b":")[2]
        stored = await self._execute(self._steps.command("HGET", keys.events(SHARD), encoded))
        return None if stored is None else read_definition(stored)

    # --- handing out

    async def pull(
        self,
        name: str,
        *,
        most: int = 1,
        wait_s: float = 0.0,
        terms: DurableTerms,
        waiting: Waiting | None = None,
    ) -> list[Delivery]:
        """Return up to `most` events; if there are none, wait for some.

        What nobody answered for within `terms.claim_idle` seconds comes first. `waiting` can end
        the waiting.
        """
        check_name(name)
        if type(most) is not int or not 1 <= most <= MOST:
            raise InvalidArgumentError("most", most, f"must be an int from 1 to {MOST:,}")
        found = await self._portion(name, most, terms)
        if found or wait_s <= 0:
            return found
        waiting = waiting or Waiting()
        rung = waiting.rung

        def ring(_: bytes) -> None:
            rung.set()

        await self._bells.add(name, ring)
        try:
            return await self._waited(name, most, wait_s, terms, waiting)
        finally:
            await self._bells.remove(name, ring)

    async def _waited(
        self, name: str, most: int, wait_s: float, terms: DurableTerms, waiting: Waiting
    ) -> list[Delivery]:
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while not waiting.over:
            waiting.rung.clear()
            found = await self._portion(name, most, terms)
            left = until - loop.time()
            if found or left <= 0:
                return found
            if waiting.over:
                break
            try:
                async with asyncio.timeout(min(left, _LOOK_AFTER_S, terms.claim_idle / 3)):
                    await waiting.rung.wait()
            except TimeoutError:
                pass
        return []

    async def _portion(self, name: str, most: int, terms: DurableTerms) -> list[Delivery]:
        steps = self._steps
        idle_ms = int(terms.claim_idle * 1000)
        claim = steps.claim_call(name, _ME, idle_ms, min(most, 100))
        left = steps.existing(name, await self._execute(claim))
        found = await self._deliveries(name, left[1:], terms, again=True)
        if len(found) < most:
            fetch = steps.fetch_call(name, _ME, _NOTHING_BEFORE, most - len(found), _BYTES)
            fresh = steps.existing(name, await self._execute(fetch))
            found += await self._deliveries(name, fresh[1:], terms, again=False)
        return found

    async def _deliveries(
        self, name: str, flat: list[Any], terms: DurableTerms, *, again: bool
    ) -> list[Delivery]:
        found, expired = [], []
        burials: dict[tuple[str, str], list[_Receipt]] = {}
        for entry, said, envelope in zip(flat[::3], map(int, flat[1::3]), flat[2::3], strict=True):
            receipt = _Receipt(entry, said)
            if again and said >= max(2, terms.max_deliveries):
                # What lay in the buffer of a process that died counts as delivered once.
                error = "its consumers died, or did not settle it"
                burials.setdefault(("failed", error), []).append(receipt)
                continue
            try:
                event = self._steps.read_event(envelope)
            except UnreadableEventError as unreadable:
                burials.setdefault(("unreadable", str(unreadable)), []).append(receipt)
                continue
            if event.is_expired():
                expired.append(receipt)
                continue
            deliveries = said + again
            if again and not await self._execute(
                self._steps.deliver_call(name, _ME, entry, deliveries)
            ):
                continue  # another has it now
            handed = _Receipt(entry, deliveries)
            found.append(Delivery(str(handed), event, deliveries))
        for burial, held in burials.items():
            await self._answer(name, "bury", held, burial=burial)
        await self._answer(name, "ack", expired)
        return found

    # --- the answers

    async def ack(self, name: str, receipts: Iterable[str]) -> int:
        """Say that events were handled: they leave the queue; return how many receipts counted.

        One of an earlier delivery does not: whoever has the event now answers for it.
        """
        held = _read_all(receipts)
        return len(held) - len(await self._answer(name, "ack", held))

    async def nack(
        self,
        name: str,
        receipts: Iterable[str],
        *,
        error: str = "",
        delay_s: float | None = None,
        terms: DurableTerms,
    ) -> list[str]:
        """Say that events could not be handled; return the receipts that no longer count.

        They come again after `delay_s`, by default a delay that grows, or after `claim_idle` if
        that is less. Those that were delivered `max_deliveries` times go to the dead letters.
        """
        failed, later = [], defaultdict[float, list[_Receipt]](list)
        for receipt in _read_all(receipts):
            if receipt.deliveries >= terms.max_deliveries:
                failed.append(receipt)
            else:
                pause_s = terms.pause_s(receipt.deliveries) if delay_s is None else delay_s
                later[max(0.0, pause_s)].append(receipt)
        lost = await self._answer(name, "bury", failed, burial=("failed", error))
        for pause_s, held in later.items():
            gone = await self._answer(name, "renew" if pause_s else "release", held)
            lost += gone
            if pause_s:
                self._give_back(name, [one for one in held if one not in gone], pause_s)
        return [str(one) for one in lost]

    async def release(self, name: str, receipts: Iterable[str], *, handled: bool = False) -> None:
        """Give events back for others to take at once.

        `handled`: somebody has tried, so that the delivery counts. Without any, the server is told
        to forget the consumer if it holds nothing.
        """
        held = _read_all(receipts)
        if held:
            await self._answer(name, "release", held, counts=handled)
        else:
            await self._execute(self._steps.release_call(check_name(name), _ME, ()))

    async def renew(self, name: str, receipts: Iterable[str]) -> list[str]:
        """Say that events are worked on still; return the receipts that no longer count."""
        return [str(one) for one in await self._answer(name, "renew", _read_all(receipts))]

    async def _answer(
        self, name: str, what: str, held: list[_Receipt], **more: Any
    ) -> list[_Receipt]:
        """Answer for deliveries in one step of the server; return those that no longer count."""
        check_name(name)
        if not held:
            return []
        call = self._steps.answer_call(name, _ME, what, held, **more)
        return [held[place] for place in await self._execute(call)]

    def _give_back(self, name: str, held: list[_Receipt], delay_s: float) -> None:
        def due() -> None:
            self._again.discard(timer)
            release = self._answer(name, "release", held)
            task = asyncio.get_running_loop().create_task(release)
            self._tasks.add(task)
            task.add_done_callback(self._ended)

        # If this process dies before: the event comes when it was not answered for long enough.
        timer = asyncio.get_running_loop().call_later(delay_s, due)
        self._again.add(timer)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # not given back: it comes when nobody answered for long enough

    async def close(self) -> None:
        """Give nothing back any more: what is due comes by itself."""
        for timer in self._again:
            timer.cancel()
        self._again.clear()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _read_all(receipts: Iterable[object]) -> list[_Receipt]:
    return [_read(one) for one in receipts]


def _read(receipt: object) -> _Receipt:
    if type(receipt) is str:
        entry, _, deliveries = receipt.partition(".")
        if deliveries.isascii() and deliveries.isdigit() and len(deliveries) < 10:
            try:
                return _Receipt(str(Revision.parse(entry)).encode(), int(deliveries))
            except InvalidArgumentError:
                pass
    raise InvalidArgumentError("receipts", receipt, "must be receipts of deliveries")
