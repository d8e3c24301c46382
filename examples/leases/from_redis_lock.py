"""From redis-py's Lock to ours: one import changes, and a fence is gained.

``python from_redis_lock.py [URL]``. With the URL of a server the locks are made with a client of
redis-py, as in code that uses them today; without one everything happens inside this process.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import redis

from llmspell_dist import StaleFencingTokenError, blocking, compat
from llmspell_dist.compat import Lock  # was: from redis.lock import Lock

INVOICE = "agent:billing"


def two_workers(client: Any) -> None:
    """Let two threads take turns, as with redis-py; who waits is woken and does not poll."""
    done: list[str] = []
    first = Lock(client, "invoice-7", timeout=30)
    assert first.acquire()

    def second() -> None:
        with Lock(client, "invoice-7", timeout=30, blocking_timeout=20):
            done.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    assert first.extend(10)
    assert not Lock(client, "invoice-7").acquire(blocking=False)
    done.append("first")
    first.release()
    thread.join()
    assert done == ["first", "second"]
    print(f"in turn: {done}")


def the_errors(client: Any) -> None:
    """Show that code which catches redis-py's errors goes on catching them."""
    lock = Lock(client, "invoice-8", timeout=0)  # held until it is released
    try:
        lock.release()
    except redis.exceptions.LockError as error:
        print(f"caught: {error}")
    with lock:
        try:
            lock.reacquire()  # redis-py deletes the lock here and says True
        except redis.exceptions.LockError as error:
            print(f"caught: {error}")
        assert lock.owned()


def the_fence(client: Any) -> None:
    """Show what is gained: the store itself refuses who has lost the lock."""
    late, holder = Lock(client, "invoice-9", timeout=0.1), Lock(client, "invoice-9", timeout=30)
    assert late.acquire()
    lease = late.lease
    assert lease is not None
    assert holder.acquire()  # waits until the time of the first is over, and has its turn then
    assert holder.lease is not None
    holder.lease.state.set(INVOICE, "paid", value=True)
    try:
        lease.state.set(INVOICE, "paid", value=False)
    except StaleFencingTokenError as refused:
        print(f"refused: {refused}")
    else:
        raise AssertionError("a stale write went through")
    assert holder.lease.state.get(INVOICE, "paid") is True
    holder.lease.state.clear(INVOICE)
    holder.release()


def main(url: str) -> None:
    """Go through all of it with one client."""
    if not url.startswith("memory:"):
        # Our own connections are made from its settings, in the namespace of the environment.
        os.environ["LLMSPELL_NAMESPACE"] = "example-from-redis-lock"
        client: Any = redis.Redis.from_url(url)
    else:
        client = blocking.connect(url, namespace="example-from-redis-lock")
    with client:
        two_workers(client)
        the_errors(client)
        the_fence(client)
        if isinstance(client, redis.Redis):
            compat.close(client)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "memory://from-redis-lock")
