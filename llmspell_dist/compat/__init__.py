"""redis-py's locks over our leases: change one import and gain a fence.

::

    from llmspell_dist.compat import Lock  # was: from redis.lock import Lock

    with Lock(client, "invoice-7", timeout=30) as lock:
        lock.lease.state.set("agent:alice", "invoice", 7)  # refused once the lock is lost

`AsyncLock` is that of ``redis.asyncio.lock``. ``client.lock(name, lock_class=Lock)`` works too.

With a client of redis-py the locks use connections of their own. One client of ours is made for
each pool (and event loop) when a lock is used first, in the namespace of the environment. It is
closed, and gives back what it holds, when the pool is garbage (a lock keeps its `redis`, and so the
pool), at the end of the process or of the event loop as `asyncio.run` ends it, or by `close` and
`aclose`. A client of ours that was passed in is never closed.
"""

from __future__ import annotations

from llmspell_dist.compat.async_clients import aclose
from llmspell_dist.compat.async_lock import AsyncLock
from llmspell_dist.compat.clients import close
from llmspell_dist.compat.lock import Lock
from llmspell_dist.redis.lock_errors import (
    LockError,
    LockNotOwnedError,
    LockStoreError,
    LockTimeoutError,
)

__all__ = [
    "AsyncLock",
    "Lock",
    "LockError",
    "LockNotOwnedError",
    "LockStoreError",
    "LockTimeoutError",
    "aclose",
    "close",
]
