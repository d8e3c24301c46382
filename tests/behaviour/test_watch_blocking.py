"""Watching and the near cache for threads: the same changes, values and errors."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fix_forks import ended_well, in_a_fork
from fix_watch import BEGINNING, told

from llmspell_dist import (
    ClosedError,
    InvalidArgumentError,
    NearCache,
    Options,
    WaitTimeoutError,
    blocking,
)
from llmspell_dist.blocking.near import NearReads
from llmspell_dist.blocking.watching import Watch as BlockingWatch
from llmspell_dist.cache.near import Near
from llmspell_dist.watch.watch import Watch

pytestmark = pytest.mark.integration

ALICE = "agent:alice"
WITHIN_S = 10.0
Clients = Callable[..., blocking.Spell]


@pytest.fixture
def clients(url: str, namespace: str) -> Iterator[Clients]:
    """A function that opens a blocking client; all are closed at the end."""
    opened: list[blocking.Spell] = []

    def start(**options: Any) -> blocking.Spell:
        settings = Options(namespace=namespace, housekeeping=False, **options)
        opened.append(blocking.connect(url, options=settings))
        return opened[-1]

    yield start
    for spell in opened:
        spell.close()


def test_changes_come_in_order(clients: Clients) -> None:
    """Live, and from an earlier revision; the place moves with each."""
    spell = clients()
    with spell.state.watch(ALICE) as watch:
        revisions = [spell.state.set(ALICE, "k", number) for number in range(250)]
        for number, revision in enumerate(revisions):
            change = watch.next(WITHIN_S)
            assert change is not None
            assert (change.value, change.revision, watch.revision) == (number, revision, revision)
        assert watch.next(0.01) is None
    with spell.state.watch(ALICE, since=revisions[99]) as watch:
        assert [next(watch).value for _ in range(150)] == list(range(100, 250))
    seen = []
    for change in spell.state.watch(ALICE, since=BEGINNING):
        seen.append(change.value)
        if change.value == 249:
            break
    assert seen == list(range(250))


def test_a_watch_waits_for_another_thread(clients: Clients) -> None:
    """The thread that iterates sleeps until something comes; closing the watch ends its loop."""
    spell, other = clients(), clients()
    seen: list[Any] = []
    begun = threading.Event()

    def follow() -> None:
        with spell.state.watch(ALICE) as watch:
            watches.append(watch)
            begun.set()
            for change in watch:
                seen.append((change.op, change.key, change.value))
                if change.key == "end":
                    return

    watches: list[BlockingWatch] = []
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(follow)
        assert begun.wait(WITHIN_S)
        other.state.set_many(ALICE, {"a": 1})
        other.state.set(ALICE, "end", True)
        following.result(WITHIN_S)
    assert seen == [("set", "a", 1), ("set", "end", True)]
    with pytest.raises(StopIteration):
        next(watches[0])


@pytest.mark.parametrize("timeout", [0, 0.0001])
def test_a_poll_leaves_the_reading_under_way(clients: Clients, timeout: float) -> None:
    """However short it is, the changes come with one of the next polls, each once."""
    spell = clients()
    begun = spell.state.set(ALICE, "k", 0)
    for number in range(1, 6):
        spell.state.set(ALICE, "k", number)
    with spell.state.watch(ALICE, since=begun) as watch:
        for wanted in range(1, 6):
            until = time.monotonic() + WITHIN_S
            while (change := watch.next(timeout)) is None:
                assert time.monotonic() < until
            assert change.value == wanted
            assert watch.revision == change.revision
        assert watch.next(timeout) is None
        spell.state.set(ALICE, "k", 6)
        assert told([next(watch)]) == [("set", "k", 6)]
        assert watch.next(timeout) is None  # and is closed, or dropped, while it is looked for
    unclosed = spell.state.watch(ALICE)
    assert unclosed.next(timeout) is None
    del unclosed
    with spell.state.watch(ALICE) as watch:
        assert watch.next(timeout) is None

        def step() -> None:
            with pytest.raises(ClosedError, match="belongs to the parent process"):
                next(watch)

        assert ended_well(in_a_fork(step))
        assert watch.next(timeout) is None
        spell.close()
        with pytest.raises(ClosedError):
            watch.next(timeout)


def test_one_thread_at_a_time_iterates(clients: Clients) -> None:
    """The second is told; the first goes on."""
    spell = clients()
    with spell.state.watch(ALICE) as watch, ThreadPoolExecutor(1) as pool:
        first = pool.submit(watch.next, WITHIN_S)
        until = time.monotonic() + WITHIN_S
        refused = None
        while refused is None:
            assert time.monotonic() < until
            try:
                watch.next(0)
            except InvalidArgumentError as error:
                refused = error
        assert "one thread at a time" in str(refused)
        spell.state.set(ALICE, "k", 1)
        change = first.result(WITHIN_S)
        assert change is not None
        assert change.value == 1


def test_waiting_for_a_value(clients: Clients) -> None:
    """The predicate runs in the calling thread; a coroutine function is refused."""
    spell, other = clients(), clients()
    spell.state.set(ALICE, "status", "new")
    threads: set[int] = set()

    def done(value: Any) -> bool:
        threads.add(threading.get_ident())
        if value == "new":
            other.state.set(ALICE, "status", "done")
        return bool(value == "done")

    assert spell.state.wait_for(ALICE, "status", done, timeout=WITHIN_S) == "done"
    assert threads == {threading.get_ident()}
    started = time.monotonic()
    with pytest.raises(WaitTimeoutError):
        spell.state.wait_for(ALICE, "status", lambda value: value == "never", timeout=0.05)
    assert time.monotonic() - started < WITHIN_S

    async def later(value: Any) -> bool:
        return bool(value)

    with pytest.raises(InvalidArgumentError, match="a plain function"):
        spell.state.wait_for(ALICE, "status", later)


def test_the_end_of_the_client_ends_its_watches(clients: Clients) -> None:
    """With an error that says so."""
    spell = clients()
    watch = spell.state.watch(ALICE)
    with watch:
        spell.state.set(ALICE, "k", 1)
        assert told([next(watch)]) == [("set", "k", 1)]
        spell.close()
        with pytest.raises(ClosedError):
            next(watch)


def test_a_fork_leaves_the_watch_to_the_parent(clients: Clients) -> None:
    """The child is told so, and can watch anew."""
    spell = clients()
    with spell.state.watch(ALICE) as watch:

        def step() -> None:
            with pytest.raises(ClosedError, match="belongs to the parent process"):
                next(watch)

        assert ended_well(in_a_fork(step))
        spell.state.set(ALICE, "k", 1)
        assert told([next(watch)]) == [("set", "k", 1)]


@pytest.mark.parametrize(("one", "two"), [(Watch, BlockingWatch), (Near, NearReads)])
def test_both_surfaces_have_the_same_methods(one: type, two: type) -> None:
    """But for what a thread needs instead of a coroutine."""
    here = {name for name in dir(one) if not name.startswith("_")}
    there = {name for name in dir(two) if not name.startswith("_")}
    inner = {"ended", "lost", "missed", "next_page", "rang", "resumed", "start", "told"}
    assert (here - inner - {"aclose"}) == (there - {"close", "next"}) | (here & {"clear"})
    for name in here & there:
        found = [getattr(cls, name) for cls in (one, two)]
        if callable(found[0]):
            here_takes, there_takes = (list(inspect.signature(one).parameters) for one in found)
            assert here_takes == there_takes


# --- the near cache -------------------------------------------------------------------------------


def test_a_near_cache_serves_threads(clients: Clients) -> None:
    """Own writes are seen at once by the thread that made them; what others write comes soon."""
    spell, other = clients(near_cache=NearCache()), clients()
    near = spell.near_cache
    assert near is not None
    near.warm(ALICE)
    for number in range(50):
        spell.state.set(ALICE, "k", number)
        assert spell.state.get(ALICE, "k") == number
    deadline = time.monotonic() + WITHIN_S
    hits = near.stats().hits
    while near.stats().hits == hits:
        assert spell.state.get(ALICE, "k") == 49
        assert time.monotonic() < deadline
    other.state.set(ALICE, "k", "other")
    while spell.state.get(ALICE, "k") != "other":
        assert time.monotonic() < deadline


def test_many_threads_never_go_back(clients: Clients) -> None:
    """Each reader sees a number that only grows, also its own writes."""
    spell, other = clients(near_cache=NearCache()), clients()
    near = spell.near_cache
    assert near is not None
    near.warm(ALICE)

    def read(_: int) -> int:
        last = 0
        for turn in range(300):
            if turn % 10 == 0:
                last = max(last, int(spell.state.increment(ALICE, "n")))
            seen = spell.state.get(ALICE, "n", 0)
            assert seen >= last, "a reader went back"
            last = seen
        return last

    def write(_: int) -> int:
        for _ in range(100):
            other.state.increment(ALICE, "n")
        return 0

    with ThreadPoolExecutor(5) as pool:
        work = [pool.submit(read, 0) for _ in range(4)] + [pool.submit(write, 0)]
        for one in work:
            one.result(60)
    assert near.stats().hits > 0
    assert spell.state.get(ALICE, "n") == 4 * 30 + 100


def test_a_near_cache_begins_anew_in_a_forked_child(clients: Clients) -> None:
    """What the parent held is not served there."""
    spell, other = clients(near_cache=NearCache()), clients()
    near = spell.near_cache
    assert near is not None
    near.warm(ALICE)
    spell.state.set(ALICE, "k", "old")
    spell.state.get(ALICE, "k")

    def check() -> None:
        assert near.stats().entries == 0
        other.state.set(ALICE, "k", "new")
        assert spell.state.get(ALICE, "k") == "new"
        spell.close()
        other.close()

    assert ended_well(in_a_fork(check))
