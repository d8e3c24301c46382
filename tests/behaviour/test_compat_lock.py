"""redis-py's locks and ours: the same tests over both, and what ours does not share with them."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.asyncio.lock
import redis.lock
from fix_leases import LeaseStore
from fix_proxy import FaultProxy
from fix_servers import Server
from fix_state import Raw, until

from llmspell_dist import blocking, compat
from llmspell_dist.client import Spell
from llmspell_dist.compat import LockError, LockNotOwnedError
from llmspell_dist.compat.names import lock_scope
from llmspell_dist.config import NAMESPACE_VARIABLE
from llmspell_dist.errors import (
    InvalidArgumentError,
    InvalidTTLError,
    StaleFencingTokenError,
    StoreUnavailableError,
)

pytestmark = pytest.mark.integration

THEIRS: dict[str, Any] = {
    "redis-py": redis.lock.Lock,
    "redis-py-async": redis.asyncio.lock.Lock,
}
OURS: dict[str, Any] = {"ours": compat.Lock, "ours-async": compat.AsyncLock}


def _plain(address: str | tuple[str, int], *, is_async: bool, **options: Any) -> Any:
    """Return a client of redis-py to a server."""
    kind = redis.asyncio.Redis if is_async else redis.Redis
    if isinstance(address, str):
        return kind(unix_socket_path=address, **options)
    return kind(host=address[0], port=address[1], **options)


class Locks:
    """One of the four lock classes over one client, called the same way whichever it is."""

    def __init__(self, kind: str, server: Server, store: LeaseStore) -> None:
        self.is_async = kind.endswith("async")
        self.ours = kind in OURS
        self.cls: Any = (OURS | THEIRS)[kind]
        self.raw: Raw = store.raw
        self.address = server.address
        self._store = store
        self._clients: list[Any] = []
        self.client = self.connect()

    def connect(self, address: str | tuple[str, int] | None = None, **options: Any) -> Any:
        """Return another client of redis-py, closed with the test."""
        client = _plain(address or self.address, is_async=self.is_async, **options)
        self._clients.append(client)
        return client

    def __call__(self, name: Any = "job", *, client: Any = None, **options: Any) -> Any:
        return self.cls(client or self.client, name, **options)

    async def do(self, result: Any) -> Any:
        """Return the result of a call, whether it has to be awaited or not."""
        return await result if inspect.isawaitable(result) else result

    def start(self, work: Callable[[], Any]) -> asyncio.Task[Any]:
        """Let somebody else do it: another thread or another task."""
        if self.is_async:
            return asyncio.create_task(work())
        return asyncio.create_task(asyncio.to_thread(work))

    async def in_line(self, work: Callable[[], Any], name: str = "job") -> asyncio.Task[Any]:
        """Let somebody else do it, and return when they wait in line for one of our locks."""
        scope = lock_scope(name).text
        before = self._store.waiting(scope)
        task = self.start(work)
        await until(lambda: task.done() or self._store.waiting(scope) > before)
        assert not task.done()
        return task

    def expire(self, name: str = "job") -> None:
        """Let the time of a lock be over."""
        if self.ours:
            self._store.expire(lock_scope(name).text)
        else:
            self.raw("DEL", name)

    def hasten(self, lock: Any) -> None:
        """Let the client look at once whether the lease of one of our locks wants a renewal."""
        desk, grant = lock.lease._desk, lock.lease.grant
        if self.is_async:
            desk.keeper._look(grant, time.monotonic())
        else:
            desk._backstage.call(lambda: desk._keeper._look(grant, time.monotonic()))

    def end_ms(self, name: str = "job") -> int:
        """Return when the time of one of our locks is over by the server's clock."""
        holder = self._store.holder(lock_scope(name).text)
        assert holder is not None
        return int.from_bytes(holder[8:14], "big")

    def put_left_s(self, seconds: float, name: str = "job") -> None:
        """Let one of our locks be held for so long from now."""
        at_ms = self.raw.now_ms() + round(1000 * seconds)
        self._store.put_expiry(at_ms, lock_scope(name).text)

    def left_s(self, name: str = "job") -> float:
        """Return for how many seconds a lock is held from now by the server's clock."""
        if not self.ours:
            return float(self.raw("PTTL", name)) / 1000
        return (self.end_ms(name) - self.raw.now_ms()) / 1000

    def nothing_left(self, name: str = "job") -> bool:
        """Whether nobody holds a lock or waits for it."""
        if self.ours:
            return self._store.left_over(lock_scope(name).text) == []
        return bool(self.raw("EXISTS", name) == 0)

    async def close(self) -> None:
        for client in self._clients:
            if self.is_async:
                await compat.aclose(client)
                await client.aclose()
            else:
                compat.close(client)
                client.close()


@pytest.fixture(autouse=True)
def in_the_namespace(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that are made for clients of redis-py take the namespace of the environment."""
    monkeypatch.setenv(NAMESPACE_VARIABLE, namespace)


Make = Callable[[str], Locks]


@pytest.fixture
async def make(server: Server, lease_store: LeaseStore) -> AsyncIterator[Make]:
    """A factory of lock classes by name; their clients are closed with the test."""
    made: list[Locks] = []

    def make(kind: str) -> Locks:
        made.append(Locks(kind, server, lease_store))
        return made[-1]

    yield make
    for locks in made:
        await locks.close()


@pytest.fixture(params=[*THEIRS, *OURS])
def locks(request: pytest.FixtureRequest, make: Make) -> Locks:
    """All four classes, one after the other."""
    return make(request.param)


@pytest.fixture(params=list(OURS))
def ours(request: pytest.FixtureRequest, make: Make) -> Locks:
    """Our two classes."""
    return make(request.param)


# --- where redis-py is right ----------------------------------------------------------------------


async def test_a_lock_is_taken_and_given_back(locks: Locks) -> None:
    """Everybody sees that it is locked, its holder that it is its own."""
    mine, other = locks(), locks()
    assert [await locks.do(mine.locked()), await locks.do(mine.owned())] == [False, False]
    assert mine.local.token is None
    assert await locks.do(mine.acquire()) is True
    assert isinstance(mine.local.token, bytes)
    assert [await locks.do(mine.locked()), await locks.do(mine.owned())] == [True, True]
    assert [await locks.do(other.locked()), await locks.do(other.owned())] == [True, False]
    await locks.do(mine.release())
    assert [await locks.do(mine.locked()), await locks.do(mine.owned())] == [False, False]
    assert mine.local.token is None
    assert locks.nothing_left()


async def test_a_taken_lock_is_not_given_twice(locks: Locks) -> None:
    """Tried once or for a while, by the constructor's word or the call's."""
    assert await locks.do(locks().acquire())
    assert await locks.do(locks(blocking=False).acquire()) is False
    assert await locks.do(locks().acquire(blocking=False)) is False
    assert await locks.do(locks(blocking_timeout=0).acquire()) is False
    for waits_by in ("constructor", "call"):
        began = time.monotonic()
        if waits_by == "call":
            assert not await locks.do(locks(sleep=0.02).acquire(blocking_timeout=0.1))
        else:
            assert not await locks.do(locks(sleep=0.02, blocking_timeout=0.1).acquire())
        assert 0.07 < time.monotonic() - began < 5


async def test_a_call_overrides_the_constructor(locks: Locks) -> None:
    """``blocking=True`` with a bound, though the lock was made not to block."""
    assert await locks.do(locks().acquire())
    began = time.monotonic()
    lock = locks(blocking=False, sleep=0.02)
    assert not await locks.do(lock.acquire(blocking=True, blocking_timeout=0.1))
    assert time.monotonic() - began > 0.07


async def test_a_lock_is_not_re_entrant(locks: Locks) -> None:
    """Its holder cannot take it again, and still holds it."""
    lock = locks(timeout=10)
    assert await locks.do(lock.acquire())
    token = lock.local.token
    assert not await locks.do(lock.acquire(blocking=False))
    assert lock.local.token == token
    assert await locks.do(lock.owned())
    await locks.do(lock.release())
    assert locks.nothing_left()


async def test_one_who_waits_gets_it_when_it_is_given_back(locks: Locks) -> None:
    """And only then."""
    mine = locks(timeout=10)
    assert await locks.do(mine.acquire())
    task = locks.start(locks(timeout=10, sleep=0.01).acquire)
    await asyncio.sleep(0)
    assert not task.done()
    await locks.do(mine.release())
    assert await asyncio.wait_for(task, 5) is True
    assert await locks.do(locks().locked())


async def test_with_holds_it_for_the_block(locks: Locks) -> None:
    """Errors of the block are seen, and it is given back."""

    async def work(lock: Any) -> None:
        if locks.is_async:
            async with lock as held:
                assert held is lock
                assert await lock.owned()
                raise KeyError("mine")
        with lock as held:
            assert held is lock
            assert lock.owned()
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await work(locks(timeout=10))
    assert locks.nothing_left()


async def _enter(locks: Locks, lock: Any) -> None:
    await locks.do(lock.__aenter__() if locks.is_async else lock.__enter__())


async def _leave(locks: Locks, lock: Any) -> None:
    leave = lock.__aexit__ if locks.is_async else lock.__exit__
    await locks.do(leave(None, None, None))


async def test_with_raises_if_it_cannot_be_had(locks: Locks) -> None:
    """Its block is never entered without it."""
    assert await locks.do(locks().acquire())
    for lock in (locks(blocking=False), locks(blocking_timeout=0.05, sleep=0.02)):
        with pytest.raises(redis.exceptions.LockError):
            await _enter(locks, lock)
        assert lock.local.token is None


@pytest.mark.parametrize("raises", [True, False])
async def test_with_tells_at_its_end_that_it_was_lost(
    locks: Locks, raises: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """By an error, or by a warning in the log if the lock was made so."""
    lock = locks(timeout=10, raise_on_release_error=raises)
    await _enter(locks, lock)
    locks.expire()
    with caplog.at_level(logging.WARNING):
        if raises:
            with pytest.raises(redis.exceptions.LockNotOwnedError):
                await _leave(locks, lock)
        else:
            await _leave(locks, lock)
            assert caplog.records
    assert lock.local.token is None


async def test_what_is_not_held_cannot_be_given_back(locks: Locks) -> None:
    """Never taken, or given back before."""
    lock = locks()
    for _ in range(2):
        with pytest.raises(redis.exceptions.LockError) as caught:
            await locks.do(lock.release())
        assert not isinstance(caught.value, redis.exceptions.LockNotOwnedError)
        assert await locks.do(lock.acquire())
        await locks.do(lock.release())


async def test_what_was_lost_cannot_be_given_back_and_others_keep_it(locks: Locks) -> None:
    """The one who has it now goes on having it."""
    late, other = locks(timeout=10), locks(timeout=10)
    assert await locks.do(late.acquire())
    locks.expire()
    assert not await locks.do(late.owned())
    assert await locks.do(other.acquire(blocking=False))
    assert not await locks.do(late.owned())
    with pytest.raises(redis.exceptions.LockNotOwnedError):
        await locks.do(late.release())
    with pytest.raises(redis.exceptions.LockError) as caught:
        await locks.do(late.release())
    assert not isinstance(caught.value, redis.exceptions.LockNotOwnedError)
    assert await locks.do(other.owned())


async def test_a_timeout_is_how_long_it_is_held(locks: Locks) -> None:
    """And nothing makes it longer but who holds it."""
    lock = locks(timeout=0.2)
    assert await locks.do(lock.acquire())
    assert locks.left_s() <= 0.2

    async def free() -> bool:
        return not await locks.do(lock.locked())

    await until(free)
    assert not await locks.do(lock.owned())
    assert await locks.do(locks().acquire(blocking=False))


async def test_extend_adds_to_the_time_that_is_left_or_replaces_it(locks: Locks) -> None:
    """Seconds, whole or not; to less than there was too."""
    lock = locks(timeout=10)
    assert await locks.do(lock.acquire())
    assert await locks.do(lock.extend(20)) is True
    assert 25 < locks.left_s() <= 30.1
    assert await locks.do(lock.extend(0.5)) is True
    assert 25 < locks.left_s() <= 30.6
    assert await locks.do(lock.extend(7.5, replace_ttl=True)) is True
    assert 3 < locks.left_s() <= 7.5
    await locks.do(lock.release())


async def test_reacquire_gives_the_whole_timeout_again(locks: Locks) -> None:
    """Whatever was left."""
    lock = locks(timeout=10)
    assert await locks.do(lock.acquire())
    await locks.do(lock.extend(60, replace_ttl=True))
    assert await locks.do(lock.reacquire()) is True
    assert 5 < locks.left_s() <= 10
    lock.timeout = 20
    await locks.do(lock.reacquire())
    assert 15 < locks.left_s() <= 20


async def test_only_a_held_lock_with_a_timeout_can_be_extended(locks: Locks) -> None:
    """Three ways of not being that, each an error."""
    never, unbounded, late = locks(timeout=10), locks("other"), locks("late", timeout=10)
    assert await locks.do(unbounded.acquire())
    assert await locks.do(late.acquire())
    locks.expire("late")
    expected: list[tuple[Any, type[Exception]]] = [
        (never, redis.exceptions.LockError),
        (unbounded, redis.exceptions.LockError),
        (late, redis.exceptions.LockNotOwnedError),
    ]
    for lock, kind in expected:
        with pytest.raises(kind) as extended:
            await locks.do(lock.extend(5))
        with pytest.raises(kind) as reacquired:
            await locks.do(lock.reacquire())
        for caught in (extended, reacquired):
            assert type(caught.value).__name__ == kind.__name__
    assert await locks.do(unbounded.owned())


@pytest.mark.parametrize("token", ["worker-1", b"\xff\x00raw", "x" * 300, "ü #1"])
async def test_a_token_can_be_given(locks: Locks, token: str | bytes) -> None:
    """It is what `local.token` is then, as bytes."""
    lock = locks(timeout=10)
    assert await locks.do(lock.acquire(token=token))
    assert lock.local.token == (token.encode() if isinstance(token, str) else token)
    assert await locks.do(lock.owned())
    await locks.do(lock.release())
    assert locks.nothing_left()


async def test_a_token_that_is_used_already_is_no_way_in(locks: Locks) -> None:
    """Who comes again with the same token waits as everybody does."""
    first, second = locks(timeout=10), locks(timeout=10)
    assert await locks.do(first.acquire(token="w1"))
    assert not await locks.do(second.acquire(token="w1", blocking=False))
    assert not await locks.do(second.acquire(token="w1", blocking_timeout=0.05))
    assert await locks.do(first.owned())


async def test_who_knows_the_token_can_take_over(locks: Locks) -> None:
    """Another lock object, as in another process: it owns it, keeps it and gives it back."""
    first, second = locks(timeout=10), locks(timeout=20)
    assert await locks.do(first.acquire())
    second.local.token = first.local.token
    assert await locks.do(second.owned())
    await locks.do(second.extend(20))
    assert 25 < locks.left_s() <= 30.1
    await locks.do(second.extend(5, replace_ttl=True))
    assert 1 < locks.left_s() <= 5
    await locks.do(second.reacquire())
    assert 15 < locks.left_s() <= 20
    await locks.do(second.release())
    assert locks.nothing_left()
    with pytest.raises(redis.exceptions.LockNotOwnedError):
        await locks.do(first.release())


async def test_what_others_who_know_the_token_did_counts(locks: Locks) -> None:
    """More time is added to what is left now, not to what it was at the holder's last call."""
    first, second = locks(timeout=10), locks(timeout=10)
    assert await locks.do(first.acquire())
    second.local.token = first.local.token
    await locks.do(second.extend(60))
    await locks.do(first.extend(10))
    assert 75 < locks.left_s() <= 80.1
    await locks.do(second.extend(5, replace_ttl=True))
    await locks.do(first.extend(10))
    assert 10 < locks.left_s() <= 15.1


async def test_a_wrong_token_takes_nothing_over(locks: Locks) -> None:
    """It neither owns, extends nor releases."""
    first, second = locks(timeout=10), locks(timeout=10)
    assert await locks.do(first.acquire())
    for forget in (False, True):
        second.local.token = b"guessed"
        assert not await locks.do(second.owned())
        with pytest.raises(redis.exceptions.LockNotOwnedError):
            await locks.do(second.release() if forget else second.extend(5))
    assert await locks.do(first.owned())


async def test_names_are_apart_and_bytes_are_text(locks: Locks) -> None:
    """Any name; the same name as bytes is the same lock."""
    names = ["a", "A", "a:b", "a b", "{a}", "a*", "ü", "x" * 2000]
    for name in names:
        assert await locks.do(locks(name).acquire(blocking=False))
    for name in names:
        assert not await locks.do(locks(name.encode()).acquire(blocking=False))


async def test_a_client_that_decodes_makes_no_difference(locks: Locks) -> None:
    """Its replies are texts where others are bytes."""
    client = locks.connect(decode_responses=True, encoding="utf-8")
    lock = locks(client=client, timeout=10)
    assert await locks.do(lock.acquire())
    assert await locks.do(lock.owned())
    assert not await locks.do(locks().acquire(blocking=False))
    await locks.do(lock.extend(1))
    await locks.do(lock.release())
    assert locks.nothing_left()


async def test_a_client_makes_locks_of_a_class(locks: Locks) -> None:
    """``client.lock(…, lock_class=…)`` passes everything on."""
    lock = locks.client.lock("job", timeout=10, blocking_timeout=1, lock_class=locks.cls)
    assert type(lock) is locks.cls
    assert (lock.timeout, lock.blocking_timeout) == (10, 1)
    assert await locks.do(lock.acquire())
    await locks.do(lock.release())


async def test_no_increment_is_lost_under_a_lock(locks: Locks) -> None:
    """Twelve at once, who read, wait for one another and write."""
    count = 0

    def add() -> None:
        nonlocal count
        lock = locks(timeout=10, sleep=0.002)
        for _ in range(5):
            with lock:
                seen = count
                locks_raw_ping()
                count = seen + 1

    async def add_async() -> None:
        nonlocal count
        lock = locks(timeout=10, sleep=0.002)
        for _ in range(5):
            async with lock:
                seen = count
                await locks.client.ping()
                count = seen + 1

    def locks_raw_ping() -> None:
        locks.client.ping()

    work: Callable[[], Any] = add_async if locks.is_async else add
    await asyncio.gather(*[locks.start(work) for _ in range(12)])
    assert count == 60
    assert locks.nothing_left()


@pytest.mark.parametrize("cls", [redis.lock.Lock, compat.Lock])
def test_threads_that_share_a_lock_share_its_hold_if_it_was_made_so(
    cls: Any, server: Server
) -> None:
    """``thread_local=False``: another thread can give it back."""
    with _plain(server.address, is_async=False) as client:
        lock = cls(client, "job", timeout=10, thread_local=False)
        assert lock.acquire()
        _in_thread(lock.release)
        assert not lock.locked()
        compat.close(client)


def _in_thread(work: Callable[[], Any]) -> Any:
    """Return what a function gives in a thread of its own; what it raises is raised here."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append((work(), None))
        except Exception as error:
            found.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    result, error = found[0]
    if error is not None:
        raise error
    return result


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kinds", [("redis-py", "ours"), ("redis-py-async", "ours-async")])
async def test_any_sequence_of_calls_gives_what_redis_py_gives(
    kinds: tuple[str, str], seed: int, make: Make
) -> None:
    """Three lock objects of one name in both worlds: each step has the same result or error."""
    random = Random(seed)
    worlds = [make(kind) for kind in kinds]
    objects = [
        [locks(timeout=3000), locks(timeout=6000, blocking=False), locks(blocking=False)]
        for locks in worlds
    ]
    steps: list[str] = []
    for number in range(60):
        step, one, two = random.choice(_STEPS), random.randrange(3), random.randrange(3)
        if step == "take over" and two == 2:
            two = 0  # redis-py calls it not owned if one that has no time is given more
        steps.append(f"{step} {one} {two}")
        found = [
            await _step(locks, step, three[one], three[two], f"w{number}")
            for locks, three in zip(worlds, objects, strict=True)
        ]
        assert found[0] == found[1], steps
        left = [locks.left_s() if found[0][1] else 0.0 for locks in worlds]
        # Without a timeout ours is renewed: what redis-py says about its time (none) is another.
        assert left[0] < 0 or abs(left[0] - left[1]) < 100, steps


_STEPS = [
    *("acquire", "acquire", "acquire with a token", "release", "extend", "extend to"),
    *("reacquire", "expire", "take over", "enter", "leave"),
]


async def _step(locks: Locks, step: str, lock: Any, other: Any, token: str) -> tuple[Any, ...]:
    """Do one thing; what came of it, whether it is locked, and which two own it."""
    outcome: Any = None
    try:
        if step == "expire":
            locks.expire()
        elif step == "take over":
            lock.local.token = other.local.token
        elif step == "enter":
            if not await locks.do(lock.locked()):
                await _enter(locks, lock)
        elif step == "leave":
            await _leave(locks, lock)
        else:
            arguments: tuple[Any, ...] = {
                "acquire": (None, False),
                "acquire with a token": (None, False, None, token),
                "extend": (1000,),
                "extend to": (500, True),
            }.get(step, ())
            if locks.is_async and step.startswith("acquire"):
                arguments = arguments[1:]
            outcome = await locks.do(getattr(lock, step.partition(" ")[0])(*arguments))
    except redis.exceptions.LockError as error:
        outcome = type(error).__name__
    return (
        outcome,
        await locks.do(lock.locked()),
        await locks.do(lock.owned()),
        await locks.do(other.owned()),
        lock.local.token is None,
    )


# --- faults that ours does not share --------------------------------------------------------------


async def test_reacquire_with_timeout_0_does_not_lose_the_lock(ours: Locks) -> None:
    """redis-py issue 4279: the lock was deleted, and True returned. 0 is as None: an error."""
    lock = ours(timeout=0)
    assert await ours.do(lock.acquire())
    for keep in (lock.reacquire, lambda: lock.extend(5), lambda: lock.extend(0, replace_ttl=True)):
        with pytest.raises(LockError, match="no timeout") as caught:
            await ours.do(keep())
        assert not isinstance(caught.value, LockNotOwnedError)
        assert await ours.do(lock.owned())
        assert lock.lease.held
    assert not await ours.do(ours().acquire(blocking=False))


@pytest.mark.parametrize(("time_s", "replace"), [(0, True), (-5, True), (-60, False), (0.01, True)])
async def test_extend_to_no_time_does_not_lose_the_lock(
    ours: Locks, time_s: float, replace: bool
) -> None:
    """The same fault by another way: in redis-py such a time deletes the lock and says True."""
    lock = ours(timeout=10)
    assert await ours.do(lock.acquire())
    with pytest.raises(InvalidTTLError, match="additional_time"):
        await ours.do(lock.extend(time_s, replace_ttl=replace))
    assert await ours.do(lock.owned())
    assert 5 < ours.left_s() <= 10


@pytest.mark.parametrize("replace", [True, False])
async def test_a_lock_is_not_held_for_more_than_a_day(ours: Locks, replace: bool) -> None:
    """Neither extended to it nor by its timeout; it stays as it was."""
    lock = ours(timeout=10)
    assert await ours.do(lock.acquire())
    with pytest.raises(InvalidTTLError, match="a day"):
        await ours.do(lock.extend(86_400 if not replace else 86_401, replace_ttl=replace))
    lock.timeout = 100_000
    with pytest.raises(InvalidTTLError, match="timeout"):
        await ours.do(lock.reacquire())
    assert 5 < ours.left_s() <= 10


async def test_a_release_that_is_cancelled_gives_the_lock_back(make: Make) -> None:
    """redis-py issue 3847: it stayed locked for ever. Ours is free, and may be released again."""
    locks = make("ours-async")
    lock = locks()
    assert await lock.acquire()
    task = asyncio.create_task(lock.release())
    await until(lambda: lock.lease is None or lock.lease.grant.ended)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(locks.nothing_left)
    if lock.local.token is not None:
        await lock.release()
    with pytest.raises(LockError):
        await lock.release()
    assert await locks().acquire(blocking=False)


@pytest.mark.needs("kill")
async def test_a_release_whose_answer_was_lost_can_be_tried_again(
    ours: Locks, fault_proxy: Callable[..., FaultProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """redis-py issue 4258: the token was gone, so nobody could release it any more."""
    proxy = fault_proxy(ours.address)
    client = ours.connect(proxy.address, socket_timeout=5)
    lock = ours(client=client, timeout=30)
    assert await ours.do(lock.acquire())
    leases = await ours.do(lock._leases())
    real = leases.execute

    def fail(call: Any) -> Any:
        raise StoreUnavailableError("server", "it is down")

    monkeypatch.setattr(leases, "execute", fail)
    with pytest.raises(redis.exceptions.ConnectionError, match="it is down"):
        await ours.do(lock.release())
    assert lock.local.token is not None
    monkeypatch.setattr(leases, "execute", real)
    proxy.drop_reply()
    await ours.do(lock.release())
    assert lock.local.token is None
    assert ours.nothing_left()


async def test_a_task_that_is_late_does_not_give_back_another_tasks_lock(make: Make) -> None:
    """redis-py's asyncio lock keeps one token for all tasks that share it."""
    locks = make("ours-async")
    lock = locks(timeout=10)
    late_holds, late_goes_on = asyncio.Event(), asyncio.Event()

    async def late() -> None:
        await lock.acquire()
        late_holds.set()
        await late_goes_on.wait()
        await lock.release()

    task = asyncio.create_task(late())
    await late_holds.wait()
    locks.expire()
    assert await lock.acquire(blocking=False)
    late_goes_on.set()
    with pytest.raises(LockNotOwnedError) as caught:
        await task
    assert caught.value.current is not None
    assert await lock.owned()
    await lock.release()
    assert locks.nothing_left()


async def test_another_task_can_give_back_what_a_task_took(make: Make) -> None:
    """As in redis-py, if it has taken nothing itself by the same lock object."""
    locks = make("ours-async")
    lock = locks()
    assert await lock.acquire()
    await asyncio.create_task(lock.release())
    assert locks.nothing_left()
    with pytest.raises(LockError):
        await lock.release()


async def test_a_thread_that_is_late_does_not_give_back_another_threads_lock(make: Make) -> None:
    """redis-py's with ``thread_local=False`` does, and its documentation warns of it."""
    locks = make("ours")
    lock = locks(timeout=10, thread_local=False)
    assert lock.acquire()
    locks.expire()
    go_on, taken = threading.Event(), threading.Event()

    def other() -> bool:
        lock.acquire()
        taken.set()
        go_on.wait(5)
        owned: bool = lock.owned()
        lock.release()
        return owned

    task = locks.start(other)
    await until(taken.is_set)
    with pytest.raises(LockNotOwnedError):
        lock.release()
    go_on.set()
    assert await task is True


async def test_a_thread_that_holds_nothing_is_told_so(make: Make) -> None:
    """redis-py issue 656: a lock made in another thread raised an AttributeError."""
    locks = make("ours")
    lock = locks(timeout=10)
    assert lock.acquire()
    with pytest.raises(LockError, match="not held here"):
        _in_thread(lock.release)
    with pytest.raises(LockError, match="not held here"):
        _in_thread(lambda: lock.extend(5))
    assert _in_thread(lock.owned) is False
    assert _in_thread(lambda: lock.local.token) is None
    assert _in_thread(lock.locked) is True
    assert lock.owned()


async def test_a_token_that_is_used_again_does_not_bring_an_old_hold_back(ours: Locks) -> None:
    """In redis-py whoever was late gives back the lock that the same token has taken since."""
    late, other = ours(timeout=10), ours(timeout=10)
    assert await ours.do(late.acquire(token="worker-1"))
    ours.expire()
    assert await ours.do(other.acquire(token="worker-1"))
    assert not await ours.do(late.owned())
    with pytest.raises(LockNotOwnedError):
        await ours.do(late.extend(5))
    with pytest.raises(LockNotOwnedError):
        await ours.do(late.release())
    assert await ours.do(other.owned())


async def test_a_waiter_is_woken_and_does_not_sleep(ours: Locks) -> None:
    """redis-py's looks again after `sleep` seconds, however early the lock comes free."""
    holder = ours()
    assert await ours.do(holder.acquire())
    waiter = ours(sleep=1000)
    task = await ours.in_line(waiter.acquire)
    await ours.do(holder.release())
    assert await asyncio.wait_for(task, 5) is True


async def test_all_of_the_blocking_timeout_is_waited(ours: Locks) -> None:
    """redis-py's gives up at once if `sleep` is longer than what is left."""
    holder = ours()
    assert await ours.do(holder.acquire())
    waiter = ours(sleep=1000, blocking_timeout=60)
    task = await ours.in_line(waiter.acquire)
    await ours.do(holder.release())
    assert await asyncio.wait_for(task, 5) is True


async def test_waiters_have_their_turn_as_they_came(ours: Locks) -> None:
    """redis-py's is given to whoever happens to look first."""
    served: list[int] = []
    holder = ours()
    assert await ours.do(holder.acquire())

    def work(number: int) -> Callable[[], Any]:
        lock = ours(timeout=30)

        async def turn_async() -> None:
            async with lock:
                served.append(number)

        def turn() -> None:
            with lock:
                served.append(number)

        return turn_async if ours.is_async else turn

    tasks = [await ours.in_line(work(number)) for number in range(6)]
    await ours.do(holder.release())
    await asyncio.wait_for(asyncio.gather(*tasks), 10)
    assert served == list(range(6))
    assert ours.nothing_left()


async def test_one_who_gives_up_waiting_leaves_nothing_behind(ours: Locks) -> None:
    """The next one is not held up by it."""
    holder = ours()
    assert await ours.do(holder.acquire())
    assert not await ours.do(ours().acquire(blocking_timeout=0.1))
    await ours.do(holder.release())
    assert ours.nothing_left()


async def test_a_lock_without_timeout_is_kept_up_while_it_is_held(
    ours: Locks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a lease that is renewed; one with a timeout is not."""
    monkeypatch.setattr("llmspell_dist.compat.base.DEFAULT_TTL_S", 60.0)
    kept, bounded = ours("kept"), ours("bounded", timeout=60)
    assert await ours.do(kept.acquire())
    assert await ours.do(bounded.acquire())
    first_end = ours.end_ms("bounded")

    def renewed() -> bool:
        ours.hasten(bounded)
        ours.hasten(kept)
        return ours.left_s("kept") > 40

    for _ in range(3):
        ours.put_left_s(20, "kept")
        await until(renewed, every_s=0.02)
    assert ours.end_ms("bounded") == first_end
    ours.expire("bounded")
    bounded.lease.grant.sent_at -= 60  # its time is over here too
    assert await ours.do(kept.owned())
    assert kept.lease.held
    assert not await ours.do(bounded.locked())
    assert not bounded.lease.held
    with pytest.raises(LockNotOwnedError, match="time was over"):
        await ours.do(bounded.release())
    await ours.do(kept.release())
    assert ours.nothing_left("kept")


async def test_a_lock_without_timeout_does_not_outlive_its_holder_for_long(ours: Locks) -> None:
    """redis-py's stays for ever when its holder dies."""
    lock = ours()
    assert await ours.do(lock.acquire())
    assert 5 < ours.left_s() <= 10


async def test_the_fence_refuses_a_stale_holders_write(ours: Locks) -> None:
    """What a user gains: who has lost the lock cannot write through its lease."""
    stale, holder = ours(timeout=10), ours(timeout=10)
    assert await ours.do(stale.acquire())
    lease = stale.lease
    await ours.do(lease.state.set("agent:alice", "step", 1))
    ours.expire()
    assert await ours.do(holder.acquire())
    assert holder.lease.token > lease.token
    with pytest.raises(StaleFencingTokenError):
        await ours.do(lease.state.set("agent:alice", "step", 2))
    await ours.do(holder.lease.state.set("agent:alice", "step", 3))
    assert await ours.do(holder.lease.state.get("agent:alice", "step")) == 3
    await ours.do(holder.release())
    assert holder.lease is None


async def test_people_see_who_holds_a_lock(ours: Locks, spell: Spell) -> None:
    """As any lease: the name, the process, the thread or task."""
    lock = ours("nightly report")
    assert await ours.do(lock.acquire())
    (info,) = await spell.leases.list()
    assert info.scope == "custom:nightly%20report"
    (holder,) = info.holders
    assert holder.pid == os.getpid()
    assert holder.label
    assert holder.token == lock.lease.token


async def test_a_lock_that_was_broken_is_lost(ours: Locks, spell: Spell) -> None:
    """By force, with a reason; its holder is told so."""
    lock = ours()
    assert await ours.do(lock.acquire())
    await spell.leases.break_lease(lock.scope, reason="stuck")
    assert not await ours.do(lock.owned())
    with pytest.raises(LockNotOwnedError) as caught:
        await ours.do(lock.release())
    assert caught.value.lock_name == "job"
    assert caught.value.operation == "release"


@pytest.mark.parametrize("how", ["extend", "reacquire"])
async def test_a_lock_near_its_end_can_still_be_kept(ours: Locks, how: str) -> None:
    """Its lease counts as lost here a little before the server's time is over."""
    lock = ours(timeout=10)
    assert await ours.do(lock.acquire())
    lease = lock.lease
    lease.grant.lose("it was not renewed in time")
    assert await ours.do(lock.owned())
    assert await ours.do(lock.extend(20) if how == "extend" else lock.reacquire()) is True
    assert lock.lease is not lease
    assert lock.lease.held
    assert lock.lease.token == lease.token
    assert ours.left_s() > (25 if how == "extend" else 5)
    assert await ours.do(lock.owned())
    await ours.do(lock.lease.state.set("global", "k", 1))
    await ours.do(lock.extend(5, replace_ttl=True))
    assert ours.left_s() <= 5
    await ours.do(lock.release())
    assert ours.nothing_left()


async def test_a_lock_near_its_end_can_still_be_given_back(ours: Locks) -> None:
    """As long as the server counts it as held."""
    lock = ours(timeout=10)
    assert await ours.do(lock.acquire())
    lock.lease.grant.lose("it was not renewed in time")
    await ours.do(lock.release())
    assert ours.nothing_left()


@pytest.mark.parametrize("taken", [True, False], ids=["taken", "free"])
async def test_a_lock_that_is_lost_while_it_is_kept_is_not_taken_anew(
    ours: Locks, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two requests that keep a lock near its end its time is over, or it is broken."""
    lock, other = ours(timeout=10), ours(timeout=10)
    assert await ours.do(lock.acquire())
    token = lock.lease.token
    lock.lease.grant.lose("it was not renewed in time")
    leases = await ours.do(lock._leases())
    real = leases.renew

    async def renew_async(*args: Any, **kwargs: Any) -> None:
        await real(*args, **kwargs)
        ours.expire()
        assert not taken or await other.acquire(blocking=False)

    def renew(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        ours.expire()
        assert not taken or other.acquire(blocking=False)

    monkeypatch.setattr(leases, "renew", renew_async if ours.is_async else renew)
    with pytest.raises(LockNotOwnedError):
        await ours.do(lock.extend(20))
    if taken:
        assert await ours.do(other.owned())
        assert other.lease.token > token
    else:
        assert ours.nothing_left()


async def test_a_forked_child_does_not_give_back_its_parents_lock(make: Make) -> None:
    """redis-py's does: the child leaves the same ``with`` block. Only set on purpose a token does.

    The child tells by its exit code what happened to it.
    """
    locks = make("ours")
    lock = locks(timeout=30)
    assert lock.acquire()
    pid = os.fork()
    if pid == 0:  # nothing but this runs in the child
        code = 1
        try:
            code = 2 if lock.owned() else 3
            lock.release()
        except LockNotOwnedError as error:
            code = 0 if code == 3 and "forked" in str(error) else 4
        finally:
            os._exit(code)
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert lock.owned()
    lock.release()
    assert locks.nothing_left()


# --- clients --------------------------------------------------------------------------------------


def _ours_on_the_server(raw: Raw) -> int:
    """Return how many connections our clients have that were made in this test."""
    listed = raw("CLIENT", "LIST").decode()
    return sum("name=compat-test" in line for line in listed.splitlines())


async def test_locks_of_one_pool_share_one_client(ours: Locks) -> None:
    """Of two clients of redis-py over one pool too; another pool has another one."""
    pool = ours.client.connection_pool
    twin = type(ours.client)(connection_pool=pool)
    first, second, third = ours(), ours(client=twin), ours(client=ours.connect())
    found = [await ours.do(lock._leases()) for lock in (first, second, third)]
    assert found[0] is found[1]
    assert found[0] is not found[2]


async def test_a_closed_client_gives_back_what_it_held_and_is_made_again(ours: Locks) -> None:
    """`close` ends ours, not redis-py's."""
    lock = ours()
    assert await ours.do(lock.acquire())
    await ours.do((compat.aclose if ours.is_async else compat.close)(ours.client))
    assert ours.nothing_left()
    assert await ours.do(ours.client.ping())
    assert not await ours.do(lock.owned())
    other = ours()
    assert await ours.do(other.acquire())
    await ours.do(lock.release())  # which was done before, and is known
    assert await ours.do(other.owned())


@pytest.mark.needs("info")
def test_a_client_ends_with_the_pool_that_it_was_made_for(server: Server, raw: Raw) -> None:
    """When neither the client of redis-py nor a lock is left; what was held is given back."""
    client = _plain(server.address, is_async=False, client_name="compat-test")
    lock = compat.Lock(client, "job")
    assert lock.acquire()
    pool = weakref.ref(client.connection_pool)
    client.close()
    del client
    gc.collect()
    assert pool() is not None  # the lock has it
    assert lock.owned()
    assert _ours_on_the_server(raw) > 0
    del lock
    gc.collect()
    assert pool() is None
    asyncio.run(until(lambda: _ours_on_the_server(raw) == 0))
    asyncio.run(until(_no_closing_thread))
    with _plain(server.address, is_async=False) as other:
        assert compat.Lock(other, "job").acquire(blocking=False)
        compat.close(other)


def _no_closing_thread() -> bool:
    return all(thread.name != "llmspell-compat-close" for thread in threading.enumerate())


@pytest.mark.needs("info")
def test_an_asynchronous_client_ends_with_its_event_loop(server: Server, raw: Raw) -> None:
    """Nobody closes it; what was held is given back, and the next loop has a client of its own."""
    client = _plain(server.address, is_async=True, client_name="compat-test")
    lock = compat.AsyncLock(client, "job")

    async def work() -> None:
        assert await lock.acquire(blocking=False)
        assert await lock.owned()
        assert _ours_on_the_server(raw) > 0
        await client.aclose()

    for _ in range(2):
        asyncio.run(work())
        asyncio.run(until(lambda: _ours_on_the_server(raw) == 0))


@pytest.mark.needs("info")
async def test_an_asynchronous_client_ends_with_its_pool(server: Server, raw: Raw) -> None:
    """When neither the client of redis-py nor a lock is left."""
    client = _plain(server.address, is_async=True, client_name="compat-test")
    lock = compat.AsyncLock(client, "job")
    assert await lock.acquire()
    await client.aclose()
    assert _ours_on_the_server(raw) > 0
    del client, lock
    gc.collect()
    await until(lambda: _ours_on_the_server(raw) == 0)


async def test_many_who_begin_at_once_make_one_client(make: Make) -> None:
    """One that is cancelled while it connects leaves it to the others."""
    locks = make("ours-async")
    tasks = [asyncio.create_task(locks(str(number)).acquire()) for number in range(10)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert found[1:] == [True] * 9


async def test_a_client_of_ours_can_be_passed(spell: Spell, url: str, namespace: str) -> None:
    """It stays open; blocking and asynchronous locks are one lock."""
    lock = compat.AsyncLock(spell, "job", timeout=10)
    with blocking.connect(url, namespace=namespace) as other:
        blocked = compat.Lock(other, "job", timeout=10)
        async with lock:
            assert await lock.owned()
            assert blocked.locked()
            assert not blocked.acquire(blocking=False)
        with blocked:
            assert blocked.lease is not None
            assert await lock.locked()
            assert not await lock.acquire(blocking=False)
        with pytest.raises(InvalidArgumentError, match="AsyncLock"):
            compat.Lock(spell, "job")
        with pytest.raises(InvalidArgumentError, match="asynchronous client"):
            compat.AsyncLock(other, "job")
    assert await spell.ping() > 0


async def test_who_holds_it_is_said_when_it_cannot_be_had(ours: Locks) -> None:
    """In the error of ``with``, which has the facts."""
    assert await ours.do(ours().acquire())
    with pytest.raises(LockError, match=f"process {os.getpid()}") as caught:
        await _enter(ours, ours(blocking=False))
    assert caught.value.operation == "acquire"
    assert caught.value.lock_name == "job"
    assert caught.value.scope == "custom:job"
