"""The asynchronous client behind a client of redis-py: one for each pool and event loop."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from llmspell_dist.client import Spell, connect
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.leases.manager import Leases
from llmspell_dist.redis.foreign_client import is_foreign, pool_of, url_of

__all__ = ["aclose", "async_leases_of"]

Loop = asyncio.AbstractEventLoop


class _LoopClient:
    """Our client of one event loop to the server of one pool."""

    def __init__(self) -> None:
        self.spell: Spell | None = None
        self.opening: asyncio.Task[Spell] | None = None
        self.lifetime: AsyncGenerator[None, None] | None = None


class _PoolClients:
    """Our clients to the server of one pool."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._clients: weakref.WeakKeyDictionary[Loop, _LoopClient] = weakref.WeakKeyDictionary()

    async def leases(self) -> Leases:
        """Return the leases of this event loop's client; connects if need be."""
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            client = self._clients[loop] = _LoopClient()
        if client.spell is not None:
            return client.spell.leases
        if client.opening is None:
            client.opening = loop.create_task(self._open(client, loop))
            client.opening.add_done_callback(_note)
        # Others may wait for the same client: one who is cancelled leaves it to them.
        return (await asyncio.shield(client.opening)).leases

    async def _open(self, client: _LoopClient, loop: Loop) -> Spell:
        try:
            spell = await connect(self._url)
        finally:
            client.opening = None
        client.lifetime = _lifetime(spell, weakref.ref(self), loop)
        await anext(client.lifetime)
        client.spell = spell
        return spell

    def forget(self, loop: Loop) -> None:
        """Drop the client of an event loop."""
        self._clients.pop(loop, None)

    async def close(self) -> None:
        """Close the client of this event loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is None:
            return
        if client.opening is not None:
            client.opening.cancel()
            await asyncio.gather(client.opening, return_exceptions=True)
        if client.lifetime is not None:
            await client.lifetime.aclose()


def _note(opening: asyncio.Task[Spell]) -> None:
    # All who waited may have been cancelled: nobody is left to hear of a failure.
    if not opening.cancelled():
        opening.exception()


async def _lifetime(
    spell: Spell, clients: weakref.ref[_PoolClients], loop: Loop
) -> AsyncGenerator[None, None]:
    """Keep a client open until this generator is closed.

    The event loop closes generators that nobody refers to any more, and all that are left when it
    shuts down (`asyncio.run` does both): that is when a client is to be closed, and there is no
    other hook for it.
    """
    try:
        yield
    finally:
        mine = clients()
        if mine is not None:
            mine.forget(loop)
        await spell.close()


_clients: weakref.WeakKeyDictionary[Any, _PoolClients] = weakref.WeakKeyDictionary()


def async_leases_of(redis: object) -> Callable[[], Awaitable[Leases]]:
    """Return a function that gives the leases on the server of a client, ours or redis-py's."""
    if isinstance(redis, Spell):
        leases = redis.leases

        async def given() -> Leases:
            return leases

        return given
    if not is_foreign(redis) and hasattr(redis, "leases"):
        raise InvalidArgumentError("redis", redis, "must be an asynchronous client; see Lock")
    pool = pool_of(redis)
    clients = _clients.get(pool)
    if clients is None:
        clients = _clients[pool] = _PoolClients(url_of(redis))
    return clients.leases


async def aclose(redis: object) -> None:
    """Close the client that was made in this event loop for a client of redis-py.

    Its locks are given back; the client of redis-py itself stays open. Nothing happens if there is
    none. A lock that is used afterwards makes another one.
    """
    clients = _clients.get(pool_of(redis))
    if clients is not None:
        await clients.close()
