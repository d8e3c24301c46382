"""What became of events that a consumer was given: told to the server until it has it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llmspell_dist.backoff import Backoff
from llmspell_dist.errors import SpellError, StoreUnavailableError
from llmspell_dist.events.acking import AckSender
from llmspell_dist.fork import keep_forever

if TYPE_CHECKING:
    from llmspell_dist.events.model import Event
    from llmspell_dist.events.steps import EventSteps
    from llmspell_dist.events.terms import ConsumerStats
    from llmspell_dist.redis.commands import ScriptCall

__all__ = ["MOST_IDS", "Burial", "Held", "Settler"]

logger = logging.getLogger("llmspell_dist.events")

MOST_IDS: Final = 500
"""Ids in a script call."""
MOST_BURIALS: Final = 10_000


@dataclass(slots=True, eq=False)
class Held:
    """An event that a consumer holds on the server."""

    entry: bytes
    event: Event
    deliveries: int
    """This one included, also before it is handed out."""
    counted: bool = True
    """The server has counted this delivery."""
    handed: bool = False
    """Handed out, for this delivery."""
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)


class Burial(NamedTuple):
    """Why an event goes to the dead letters."""

    why: str
    """``failed`` or ``unreadable``."""
    deliveries: int
    said: str
    """What the dead letter says."""
    shown: str = ""
    """What the log says: the type of a handler's error, whose message may have data in it."""
    event_id: str = ""
    """Empty of bytes that are no event."""


class Settler:
    """Acknowledges, delivers again and buries what one consumer holds.

    Acknowledgements leave together, in the background. `again` is given what is to be handed out
    once more; the server counts that delivery when it is (`count`).
    """

    def __init__(
        self,
        steps: EventSteps,
        execute: Callable[[ScriptCall], Awaitable[Any]],
        name: str,
        consumer: bytes,
        *,
        stats: ConsumerStats,
        again: Callable[[Held], None],
    ) -> None:
        self._steps = steps
        self._execute = execute
        self._name = name
        self._consumer = consumer
        self._stats = stats
        self._again = again
        self.acks = AckSender(self._acknowledge, most=MOST_IDS, who=self)
        self.delayed: set[Held] = set()
        """Waiting for their next delivery."""
        self.burying: dict[bytes, Burial] = {}
        """To be moved to the dead letters."""
        self._burying: asyncio.Task[None] | None = None
        self._closing = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r} consumer={self._consumer.decode()!r}>"

    # --- handled

    def done(self, held: Held) -> None:
        """Take it out of the queue, with the others of this turn."""
        self.acks.add(held.entry)

    async def _acknowledge(self, ids: list[bytes]) -> None:
        await self._execute(self._steps.ack_call(self._name, ids))

    # --- not handled

    def later(self, held: Held, delay_s: float) -> None:
        """Deliver it again after so many seconds."""
        self.delayed.add(held)
        held.timer = asyncio.get_running_loop().call_later(delay_s, self._due, held)

    def _due(self, held: Held) -> None:
        held.timer = None
        self.delayed.discard(held)
        held.deliveries += 1
        held.counted = held.handed = False
        self._again(held)

    async def count(self, held: Held) -> bool:
        """Count a delivery before the event is handed out; False if another has the event now."""
        call = self._steps.deliver_call(self._name, self._consumer, held.entry, held.deliveries)
        held.counted = bool(await self.acks.surely(lambda: self._execute(call)))
        return held.counted

    # --- the dead letters

    async def bury(self, entry: bytes, burial: Burial) -> None:
        """Move an event to the dead letters; in the background if the server cannot take it now."""
        try:
            await self._bury(entry, burial)
        except StoreUnavailableError as error:
            if not error.retryable:
                raise
            self.bury_later(entry, burial)

    def bury_later(self, entry: bytes, burial: Burial) -> None:
        """Move an event to the dead letters in the background: others are handed out meanwhile.

        A full server takes no dead letters, and only what is handled makes room.
        """
        self.burying[entry] = burial
        if self._burying is None and not self._closing:
            self._burying = asyncio.get_running_loop().create_task(self._send_burials())

    async def few_burials(self) -> None:
        """Wait while more are to be buried than this process should know of."""
        while len(self.burying) >= MOST_BURIALS and self._burying is not None:
            await asyncio.wait((self._burying,), timeout=0.1)

    async def _send_burials(self) -> None:
        backoff = Backoff(first_s=0.05, max_s=2.0)
        try:
            while self.burying:
                for entry, burial in tuple(self.burying.items()):
                    try:
                        await self._bury(entry, burial)
                    except StoreUnavailableError as error:
                        if not error.retryable:
                            logger.warning("%r: cannot write dead letters: %s", self, error)
                            self.burying.pop(entry, None)
                            continue
                        if not backoff.failures:
                            logger.warning("%r: dead letters have to wait: %s", self, error)
                        await asyncio.sleep(backoff.next_s())
                        break
                    else:
                        backoff.reset()
                    self.burying.pop(entry, None)
        except SpellError as error:
            logger.warning("%r: dead letters wait for another consumer: %s", self, error)
        finally:
            self._burying = None

    async def _bury(self, entry: bytes, burial: Burial) -> None:
        why, deliveries, said, shown, event_id = burial
        call = self._steps.bury_call(
            self._name, self._consumer, entry, why=why, deliveries=deliveries, error=said
        )
        if await self._execute(call) == b"HELD":
            self._stats.taken_over += 1
            return
        self._stats.dead += 1
        logger.warning(
            "event %s of %r went to the dead letters after %d deliveries: %s",
            event_id or entry.decode(),
            self._name,
            deliveries,
            shown or why,
        )

    # --- the end

    async def close(self) -> None:
        """Deliver nothing again, and send the acknowledgements; once more only."""
        self._closing = self.acks.closing = True
        for held in self.delayed:
            if held.timer is not None:
                held.timer.cancel()
        if self._burying is not None:
            self._burying.cancel()
            await asyncio.gather(self._burying, return_exceptions=True)
        with suppress(SpellError):  # the log has it, and the events come again
            await self.acks.flush()
        for entry, burial in tuple(self.burying.items()):
            try:
                await self._bury(entry, burial)
            except SpellError:
                break  # given back, and buried by the next
            self.burying.pop(entry, None)

    def disown(self) -> None:
        """In a forked child: it is the parent's."""
        keep_forever(self._burying)
        self.acks.disown()
        self._closing = True
        self._burying = None
