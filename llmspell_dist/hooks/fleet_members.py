"""Who is in the fleet: a heartbeat that says so, and a map that is renewed at every change."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from contextvars import Context
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.errors import SpellError
from llmspell_dist.hooks.fleet_model import FleetHook, FleetMap, pack_process, unpack_process
from llmspell_dist.redis.commands import ScriptCall
from llmspell_dist.redis.scripts import load_script

if TYPE_CHECKING:
    from llmspell_dist.redis.hub import Hub
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.driver import AsyncDriver
    from llmspell_dist.state.steps import Steps

__all__ = ["Members"]

logger = logging.getLogger("llmspell_dist.hooks")

SHARD: Final = "0"
HEARTBEAT_S: Final = 5.0
SILENT_AFTER_S: Final = 15.0


class Members:
    """This process's place in the fleet, and what it knows of the others.

    `changed` is called after each change of the map. A process that is heard of no more for 15
    seconds is forgotten by whoever notices.
    """

    def __init__(
        self,
        driver: AsyncDriver,
        hub: Hub,
        process: str,
        changed: Callable[[FleetMap], None],
        *,
        heartbeat_s: float = HEARTBEAT_S,
        silent_after_s: float = SILENT_AFTER_S,
    ) -> None:
        self._driver = driver
        self._hub = hub
        self.process = process
        self._changed = changed
        self._heartbeat_s = heartbeat_s
        self._silent_ms = round(silent_after_s * 1000)
        # The client's own name, whatever actor the context says where this is made.
        self.client = Context().run(driver.core.actor) or process
        """What people know this process by."""
        self.labels: Mapping[str, str] = {}
        self.hooks: dict[tuple[str, str], FleetHook] = {}
        self.map = FleetMap()
        self._generation = b""
        self._ahead_ms: float | None = None
        self._bell = asyncio.Event()
        self._beating: asyncio.Task[None] | None = None

    @property
    def joined(self) -> bool:
        """Whether this process is in the fleet."""
        return self._beating is not None and not self._beating.done()

    def now_ms(self) -> float:
        """Return the server's time, as it was told with the last heartbeat."""
        if self._ahead_ms is None:
            return time() * 1000
        return monotonic() * 1000 + self._ahead_ms

    async def join(self) -> None:
        """Enter the fleet; when it returns the others are known."""
        if self.joined:
            return
        await self._hub.subscribe(self._channel, lambda _: self._bell.set(), resumed=self._bell.set)
        try:
            await self.say()
        except BaseException:
            await self._hub.unsubscribe(self._channel)
            raise
        self._beating = asyncio.create_task(self._beat(), name="llmspell-hook-fleet")

    async def say(self) -> None:
        """Tell the others what this process has, and learn what they have."""
        await self._driver.run(
            self._tell(pack_process(self.labels, self.hooks.values(), self.client))
        )

    def say_soon(self) -> None:
        """Tell the others in the background, once the server takes it."""
        self._bell.set()

    async def leave(self) -> None:
        """Leave the fleet; the others learn of it at once."""
        beating, self._beating = self._beating, None
        if beating is None:
            return
        beating.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await beating
        with contextlib.suppress(SpellError):  # they forget it soon anyway
            await self._driver.run(self._tell(b""))
            await self._hub.unsubscribe(self._channel)

    @property
    def _core(self) -> Core:
        return self._driver.core

    @property
    def _channel(self) -> bytes:
        return self._core.keyspace.hook_bell(SHARD)

    def _tell(self, said: bytes) -> Steps[None]:
        key = self._core.keyspace.hook_fleet(SHARD)
        arguments = (
            *(self.process.encode(), said, b"%d" % self._silent_ms),
            *(self._channel, self._generation if said else b""),
        )
        reply = yield ScriptCall(load_script("hooks_fleet"), (key,), arguments)
        at_ms, generation, flat = reply
        # As if the answer had taken no time: never ahead of the server.
        self._ahead_ms = int(at_ms) - monotonic() * 1000 if said else self._ahead_ms
        if flat is not None and said:
            self._generation = generation
            self._take(flat)

    def _take(self, flat: Any) -> None:
        pairs: Iterable[tuple[bytes, bytes]] = zip(flat[::2], flat[1::2], strict=True)
        found = []
        for field, value in pairs:
            if field.startswith(b"$"):
                continue
            process = unpack_process(field.decode(), value[15:])
            if process is not None:
                found.append(process)
        self.map = FleetMap(found)
        self._changed(self.map)

    async def _beat(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_s):
                    await self._bell.wait()
            self._bell.clear()
            try:
                await self.say()
            except SpellError as error:
                logger.debug("the fleet of hooks was not reached: %s", error)
                await asyncio.sleep(0.1)
            except Exception:  # a heartbeat that ends takes this process out of the fleet
                logger.exception("the fleet of hooks")
                await asyncio.sleep(1)
