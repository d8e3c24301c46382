"""A server to which the doctor can send single requests, and the questions that it asks most."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

from llmspell_dist.assembly import Assembly, assemble, complete_options
from llmspell_dist.config import Options
from llmspell_dist.doctor.facts import whole
from llmspell_dist.errors import SpellError, StoreUnavailableError
from llmspell_dist.keys import MAX_SHARDS, KeySpace
from llmspell_dist.log import LogStat, LogSteps
from llmspell_dist.redis.lanes import Lanes
from llmspell_dist.redis.replies import is_refusal
from llmspell_dist.redis.resp import pack
from llmspell_dist.retention import Retention
from llmspell_dist.state.driver import AsyncDriver

__all__ = ["Server", "open_server"]

_PATIENCE_S: Final = 2.0
"""A diagnosis does not wait for a state to pass: it reports it."""
_CONFIG: Final = (
    "maxmemory",
    "maxmemory-policy",
    "appendonly",
    "appendfsync",
    "save",
    "min-replicas-to-write",
)


class Server:
    """A server to which single requests can be sent, whatever the state of the namespace."""

    def __init__(self, assembly: Assembly, lanes: Lanes) -> None:
        self.assembly = assembly
        self.lanes = lanes

    @property
    def keyspace(self) -> KeySpace:
        """The keys of the namespace."""
        return self.assembly.core.keyspace

    async def ask(self, *words: str | bytes | int) -> Any:
        """Return the reply to one request; None if the server refuses it, not if it is away."""
        try:
            return await self.lanes.submit(pack(*words))
        except StoreUnavailableError as error:
            if not is_refusal(error):
                raise
            return None

    async def said(self, *words: str) -> str:
        """Return what the server says to a request, as text, be it a refusal."""
        try:
            reply = await self.lanes.submit(pack(*words))
        except StoreUnavailableError as error:
            if not is_refusal(error):
                raise
            return error.said
        return reply.decode("utf-8", "replace") if isinstance(reply, bytes) else ""

    async def info(self, *sections: str) -> dict[str, str]:
        """Return the fields of INFO; empty if it is not allowed."""
        reply = await self.ask("INFO", *sections)
        if not isinstance(reply, bytes):
            return {}
        pairs = (line.partition(":") for line in reply.decode("utf-8", "replace").splitlines())
        return {name: value.strip() for name, colon, value in pairs if colon}

    async def config(self) -> dict[str, str]:
        """Return the directives that matter; empty if CONFIG is not allowed."""
        found: dict[str, str] = {}
        for name in _CONFIG:  # one by one: Redis 6.2 takes no more
            found |= {key.decode(): text.decode() for key, text in await self.pairs(name)}
        return found

    async def pairs(self, name: str) -> list[tuple[bytes, bytes]]:
        """Return what CONFIG GET says, in either protocol."""
        reply = await self.ask("CONFIG", "GET", name)
        if isinstance(reply, dict):
            return list(reply.items())
        return list(zip(reply[::2], reply[1::2], strict=True)) if reply else []

    async def settings(self) -> tuple[int | None, int | None]:
        """Return format and shard count that the namespace was made with, and go by them."""
        reply = await self.ask("HMGET", self.keyspace.ctl("0"), "format", "shards")
        found = [None if field is None else whole(field.decode()) for field in reply or ()]
        if not found:
            return None, None
        if found[1] is not None and 0 < found[1] <= MAX_SHARDS:
            self.assembly.core.use_shards(found[1])
        return found[0], found[1]

    async def retention(self) -> Retention:
        """Return what the namespace keeps of its log."""
        reply = await self.ask("HGET", self.keyspace.ctl("0"), "retention")
        return Retention.parse(reply if isinstance(reply, bytes) else None)

    async def logs(self) -> tuple[LogStat, ...] | None:
        """Return how long each shard's log is; None if that cannot be read."""
        core = self.assembly.core
        steps = LogSteps(core)
        driver = AsyncDriver(core, self.lanes)
        try:
            return tuple([await driver.run(steps.stat(shard)) for shard in core.shards()])
        except (SpellError, AttributeError, ValueError) as error:
            if isinstance(error, StoreUnavailableError) and not is_refusal(error):
                raise
            return None  # no right, or the key holds something else


@asynccontextmanager
async def open_server(
    url: str | None = None, *, namespace: str | None = None, options: Options | None = None
) -> AsyncIterator[Server]:
    """Connect without touching the namespace, so that a server that is unfit can be examined.

    Raises `InvalidURLError`, and `StoreUnavailableError` or its children.
    """
    completed = complete_options(namespace, None, options)
    assembly = await asyncio.to_thread(assemble, url, completed)
    try:
        lanes = Lanes(
            assembly.resolver,
            options=replace(assembly.lane_options, retry_budget=_PATIENCE_S),
            scripts=assembly.scripts,
            clock=assembly.core.clock,
        )
        async with lanes:
            yield Server(assembly, lanes)
    finally:
        assembly.release()
