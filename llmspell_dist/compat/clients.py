"""The blocking client behind a client of redis-py: one for each pool, made at its first use."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable
from typing import Any

from llmspell_dist.blocking import Spell, connect
from llmspell_dist.blocking.leases import Leases
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.fork import on_fork
from llmspell_dist.redis.foreign_client import is_foreign, pool_of, url_of

__all__ = ["close", "leases_of"]


class _PoolClient:
    """Our client to the server of one pool."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._spell: Spell | None = None
        self._lock = threading.Lock()
        on_fork(self)

    def leases(self) -> Leases:
        """Return the leases of the client; connects if need be."""
        spell = self._spell
        if spell is None:
            with self._lock:
                if self._spell is None:
                    self._spell = connect(self._url)
                spell = self._spell
        return spell.leases

    def close(self) -> None:
        """Close the client; the next use makes another."""
        with self._lock:
            spell, self._spell = self._spell, None
        if spell is not None:
            spell.close()

    def retire(self) -> None:
        """Close it for good, from wherever the garbage collector runs."""
        if self._spell is not None:
            # Not here: this may be a thread that closing has to wait for.
            threading.Thread(target=self.close, name="llmspell-compat-close").start()

    def forget(self) -> None:
        """In a forked child: the lock may have been held by a thread that did not come along."""
        self._lock = threading.Lock()


class _Registry:
    """The clients by pool; a pool that is gone takes its client along."""

    def __init__(self) -> None:
        self._clients: weakref.WeakKeyDictionary[Any, _PoolClient] = weakref.WeakKeyDictionary()
        self._lock = threading.RLock()
        on_fork(self)

    def get(self, redis: object) -> _PoolClient:
        """Return the client for a client of redis-py."""
        pool = pool_of(redis)
        with self._lock:
            client = self._clients.get(pool)
            if client is None:
                client = self._clients[pool] = _PoolClient(url_of(redis))
                weakref.finalize(pool, client.retire).atexit = False
            return client

    def find(self, redis: object) -> _PoolClient | None:
        """Return the client for a client of redis-py, if there is one."""
        with self._lock:
            return self._clients.get(pool_of(redis))

    def close(self) -> None:
        """Close all clients."""
        with self._lock:
            clients = list(self._clients.values())
        for client in clients:
            client.close()

    def forget(self) -> None:
        """In a forked child: as for a client."""
        self._lock = threading.RLock()


_registry = _Registry()
# Held locks are given back at the end of the process.
atexit.register(_registry.close)


def leases_of(redis: object) -> Callable[[], Leases]:
    """Return a function that gives the leases on the server of a client, ours or redis-py's."""
    if isinstance(redis, Spell):
        leases = redis.leases
        return lambda: leases
    if not is_foreign(redis) and hasattr(redis, "leases"):
        raise InvalidArgumentError("redis", redis, "must be a blocking client; see AsyncLock")
    return _registry.get(redis).leases


def close(redis: object) -> None:
    """Close the client that was made for a client of redis-py; its locks are given back.

    The client of redis-py itself stays open. Nothing happens if there is none. A lock that is used
    afterwards makes another one.
    """
    client = _registry.find(redis)
    if client is not None:
        client.close()
