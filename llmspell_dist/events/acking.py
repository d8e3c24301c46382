"""Acknowledgements of one consumer: sent together, in the background, until they are taken."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from llmspell_dist.backoff import Backoff
from llmspell_dist.errors import SpellError
from llmspell_dist.fork import keep_forever

__all__ = ["AckSender"]

logger = logging.getLogger("llmspell_dist.events")

T = TypeVar("T")
R = TypeVar("R")


class AckSender(Generic[T]):
    """Sends what was handled; `send` takes up to `most` at once, and may be called twice with them.

    `who` stands in the log.
    """

    def __init__(
        self, send: Callable[[list[T]], Awaitable[Any]], *, most: int, who: object
    ) -> None:
        self._send = send
        self._most = most
        self._who = who
        self.waiting: list[T] = []
        """Handled, and not acknowledged by the server yet."""
        self.closing = False
        """What cannot be taken now is not tried again."""
        self._sending: asyncio.Task[SpellError | None] | None = None

    def add(self, handled: T) -> None:
        """Send it with the others of this turn."""
        self.waiting.append(handled)
        self._begin()

    async def flush(self) -> None:
        """Wait until the server has all of them; raises why it does not take them."""
        while self.waiting or self._sending is not None:
            error = await asyncio.shield(self._begin())
            if error is not None:
                raise error

    async def surely(self, send: Callable[[], Awaitable[R]]) -> R:
        """Do what may be done twice until the server has it; raises what no waiting heals."""
        backoff = Backoff(first_s=0.05, max_s=2.0)
        while True:
            try:
                return await send()
            except SpellError as error:
                if not error.retryable or self.closing:
                    raise
                if not backoff.failures:
                    logger.warning("%r: goes on when the server does: %s", self._who, error)
            await asyncio.sleep(backoff.next_s())

    def disown(self) -> None:
        """In a forked child: it is the parent's."""
        keep_forever(self._sending)
        self.closing = True
        self.waiting, self._sending = [], None

    def _begin(self) -> asyncio.Task[SpellError | None]:
        if self._sending is None:
            self._sending = asyncio.get_running_loop().create_task(self._send_all())
        return self._sending

    async def _send_all(self) -> SpellError | None:
        """Send all that there are; what is refused is sent again with the next, or by `flush`."""
        try:
            await asyncio.sleep(0)  # for the others of this turn
            while self.waiting:
                some = self.waiting[: self._most]
                await self.surely(lambda: self._send(some))  # noqa: B023 - awaited at once
                del self.waiting[: len(some)]
        except SpellError as error:
            logger.warning("%r: acknowledgements were not taken: %s", self._who, error)
            return error
        finally:
            self._sending = None
        return None
