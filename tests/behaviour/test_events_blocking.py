"""Events for threads: the same surface and the same promises, through the background."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fix_events import EventStore

from llmspell_dist import blocking, context
from llmspell_dist.blocking.events import DurableSubscription, Events, LiveSubscription
from llmspell_dist.errors import ClosedError, InvalidArgumentError
from llmspell_dist.events import DurableSubscription as AsyncDurable
from llmspell_dist.events import Event, RateLimit, RateLimitedError
from llmspell_dist.events import Events as AsyncEvents
from llmspell_dist.events import LiveSubscription as AsyncLive

pytestmark = pytest.mark.integration

WITHIN_S = 10.0


@pytest.fixture
def client(url: str, namespace: str) -> Iterator[blocking.Spell]:
    """An open blocking client."""
    with blocking.connect(url, namespace=namespace) as spell:
        yield spell


def surface(cls: type) -> dict[str, list[str]]:
    """The public methods of a class with the names of their parameters."""
    return {
        name: list(inspect.signature(member).parameters)
        for name, member in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_")
    }


OWN = {"forget", "disown", "abandon", "take", "take_one", "gap", "close", "failed", "next"}


@pytest.mark.parametrize(
    ("threads", "tasks"),
    [(Events, AsyncEvents), (LiveSubscription, AsyncLive), (DurableSubscription, AsyncDurable)],
)
def test_the_surfaces_are_equal(threads: type, tasks: type) -> None:
    """Every method of the one is one of the other, with the same parameters."""
    one, other = surface(threads), surface(tasks)
    for name in OWN:
        one.pop(name, None)
        other.pop(name, None)
    assert one == other


def test_a_handler_may_be_a_coroutine_function(client: blocking.Spell) -> None:
    """It is waited for before its event is acknowledged; what it raises is a failure."""
    handled: list[tuple[str, int]] = []
    stop = threading.Event()

    async def handle(event: Event) -> None:
        handled.append((threading.current_thread().name, event.data))
        if len(handled) == 1:
            raise ValueError("not yet")
        stop.set()

    with client.events.subscribe("job.*", durable="jobs"):
        pass
    client.events.publish("job.new", 7)
    client.events.consume("jobs", "job.*", handle, retry_delay=0.01, stop=stop)
    assert handled == [("llmspell-background", 7)] * 2
    (queue,) = client.events.subscriptions()
    assert (queue.lag, queue.pending, queue.dead) == (0, 0, 0)


def test_live_and_durable_events_reach_threads(
    client: blocking.Spell, event_store: EventStore
) -> None:
    """Published in one thread, heard in order in another; acknowledged they are gone."""
    events = client.events
    with (
        events.subscribe("a.*") as live,
        events.subscribe("a.*", durable="q", retry_delay=0.001) as durable,
    ):
        assert live.next(timeout=0.01) is None
        assert events.publish_many(Event("a.b", number) for number in range(1500)) == 1500
        heard = [live.next(timeout=WITHIN_S) for _ in range(1500)]
        assert [event.data for event in heard if event] == list(range(1500))
        first = durable.next(timeout=WITHIN_S)
        assert first is not None
        assert durable.deliveries(first) == 1
        durable.nack(first, "again", delay=0)
        seen = set()
        for event in durable:
            seen.add(event.data)
            durable.ack(event)
            if len(seen) == 1500:
                break
        durable.flush()
        assert event_store.queue("q") == 0
        assert (live.stats().delivered, durable.stats().failed) == (1500, 1)


def test_the_callers_context_is_the_events(client: blocking.Spell) -> None:
    """Though it is sent by another thread."""
    with context("planner", correlation_id="run"):
        event = client.events.publish("a")
    assert (event.source, event.correlation_id) == ("planner", "run")


@pytest.mark.parametrize("concurrency", [1, 4])
def test_handlers_run_in_threads(
    client: blocking.Spell, event_store: EventStore, concurrency: int
) -> None:
    """Until they are told to stop; a failure comes again, then is a dead letter."""
    stop, lock = threading.Event(), threading.Lock()
    seen: list[int] = []

    def handle(event: Event) -> None:
        with lock:
            seen.append(event.data)
            if len(seen) == 21:
                stop.set()
        if event.data == 7:
            raise ValueError("seven")

    with client.events.subscribe(durable="q"):
        pass
    client.events.publish_many([Event("a", number) for number in range(20)])
    client.events.consume(
        "q",
        "*",
        handle,
        concurrency=concurrency,
        max_deliveries=2,
        retry_delay=0.001,
        stop=stop,
    )
    assert sorted(seen) == sorted([*range(20), 7])
    (letter,) = client.events.dead_letters("q")
    assert letter.error == "ValueError: seven"
    assert client.events.replay("q", letter.id) == 1
    (info,) = client.events.subscriptions()
    assert (info.lag, info.dead) == (1, 0)
    assert client.events.remove("q")
    assert event_store.queue("q") == 0


def test_a_busy_handler_leaves_the_others_what_it_cannot_begin(client: blocking.Spell) -> None:
    """With `max_unacked`, however long it takes."""
    with client.events.subscribe(durable="q"):
        pass
    client.events.publish_many([Event("a", number) for number in range(20)])
    stop, begun, done = threading.Event(), threading.Event(), threading.Event()

    def slow(event: Event) -> None:
        begun.set()
        assert done.wait(WITHIN_S)

    with ThreadPoolExecutor(1) as pool:
        one = pool.submit(client.events.consume, "q", "*", slow, max_unacked=1, stop=stop)
        try:
            assert begun.wait(WITHIN_S)
            with client.events.subscribe(durable="q") as other:
                for number in range(1, 20):
                    event = other.next(timeout=WITHIN_S)
                    assert event is not None
                    assert event.data == number
                    other.ack(event)
        finally:
            stop.set()
            done.set()
        one.result()


def test_many_threads_share_one_client(client: blocking.Spell) -> None:
    """Nothing is lost or mixed."""
    with client.events.subscribe("*", buffer=5000) as live:

        def publish(who: int) -> None:
            for number in range(50):
                client.events.publish(f"t.{who}", number)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(publish, range(8)))
        heard: dict[str, list[int]] = {}
        for _ in range(400):
            event = live.next(timeout=WITHIN_S)
            assert event is not None
            heard.setdefault(event.type, []).append(event.data)
    assert heard == {f"t.{who}": list(range(50)) for who in range(8)}


def test_errors_are_raised_in_the_callers_thread(client: blocking.Spell) -> None:
    """Those about arguments and those about flow."""
    with pytest.raises(InvalidArgumentError, match="pattern"):
        client.events.subscribe("a.*b")
    with pytest.raises(InvalidArgumentError, match="concurrency"):
        client.events.consume("q", "*", print, concurrency=0)
    with pytest.raises(InvalidArgumentError, match="handler"):
        client.events.consume("q", "*", None)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="handler must take one argument, the event"):
        client.events.consume("q", "*", lambda: None)  # type: ignore[arg-type,misc]
    client.events.limit_rate(RateLimit(0.001, 1, overflow="reject"))
    client.events.publish("a")
    with pytest.raises(RateLimitedError):
        client.events.publish("a")
    assert client.events.stats().rejected == 1


def test_closing_ends_who_waits(url: str, namespace: str) -> None:
    """An iteration in another thread stops."""
    spell = blocking.connect(url, namespace=namespace)
    sub: Any = spell.events.subscribe("a").__enter__()
    ended = threading.Event()

    def listen() -> None:
        assert list(sub) == []
        ended.set()

    thread = threading.Thread(target=listen)
    thread.start()
    spell.close()
    assert ended.wait(WITHIN_S)
    thread.join()
    with pytest.raises(ClosedError):
        spell.events.publish("a")


@pytest.mark.needs("process")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_publishes_and_hears_on_its_own(
    client: blocking.Spell, event_store: EventStore
) -> None:
    """Its subscriptions are its own; the parent's go on."""
    with client.events.subscribe("a") as live:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with client.events.subscribe("b") as own:
                    client.events.publish("b", "mine")
                    event = own.next(timeout=WITHIN_S)
                    client.events.publish("a", event and event.data)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        event = live.next(timeout=WITHIN_S)
        assert event is not None
        assert (event.data, event.sequence) == ("mine", 2)
