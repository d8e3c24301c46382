"""The events group, on every server of the table."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from fix_events import EventStore, soon, take
from fix_servers import Server
from fix_state import until

from llmspell_dist.cli.exits import Exit, exit_of
from llmspell_dist.client import Spell
from llmspell_dist.context import context
from llmspell_dist.errors import error_classes
from llmspell_dist.events import Event

pytestmark = pytest.mark.integration

COMMAND = [sys.executable, "-m", "llmspell_dist.cli"]
BROKEN = b"\x7f" + bytes(range(60))
Here = Callable[..., Any]
Ask = Callable[..., Coroutine[Any, Any, Any]]


@pytest.fixture
def ask(here: Here) -> Ask:
    """The command line in a thread of its own, so that who works here goes on working."""

    async def ask(*words: str) -> Any:
        return await asyncio.to_thread(here, *words)

    return ask


def _cells(out: str) -> list[list[str]]:
    return [line.split("\t") for line in out.splitlines()]


async def _queue(spell: Spell, name: str = "q", pattern: str = "*", **terms: Any) -> None:
    async with spell.events.subscribe(pattern, durable=name, **terms):
        pass


async def _letters(spell: Spell, *data: Any, name: str = "q") -> list[str]:
    """Publish events that fail; return their ids among the dead letters."""
    async with spell.events.subscribe(durable=name, max_deliveries=1) as queue:
        await spell.events.publish_many(Event("a.b", one) for one in data)
        for event in await take(queue, len(data), ack=False):
            await queue.nack(event, ValueError("a\tbad one"))
    return [letter.id for letter in await spell.events.dead_letters(name)]


# --- publish --------------------------------------------------------------------------------------


async def test_publish_prints_the_id_and_the_event_has_all_fields(spell: Spell, ask: Ask) -> None:
    """As they were typed; the document has them too."""
    await _queue(spell)
    fields = ("--tag", "x", "--tag", "y", "--target", "bob", "--priority", "-5", "--ttl", "1h")
    more = ("--correlation", "run-7", "--source", "me")
    done = await ask("events", "publish", "order.paid", '{"n": {"$set": [1]}}', *fields, *more)
    assert (done.code, done.err) == (0, "")
    async with spell.events.subscribe(durable="q") as queue:
        (event,) = await take(queue, 1)
    assert done.out == f"{event.id}\n"
    assert (event.type, event.data, event.tags) == ("order.paid", {"n": {1}}, ("x", "y"))
    assert (event.target, event.priority, event.ttl) == ("bob", -5, 3600.0)
    assert (event.correlation_id, event.source) == ("run-7", "me")
    said = json.loads((await ask("--json", "events", "publish", "a", "-1")).out)
    assert (said["type"], said["data"], said["ttl_s"], said["tags"]) == ("a", -1, None, [])


async def test_publish_takes_text_nothing_and_the_standard_input(
    spell: Spell, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DATA is JSON unless --text says otherwise."""
    await _queue(spell)
    assert (await ask("events", "publish", "a")).code == 0
    assert (await ask("-q", "events", "publish", "a", "--text", "{not json")).out == ""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"[1, 2]")))
    assert (await ask("events", "publish", "a", "-")).code == 0
    async with spell.events.subscribe(durable="q") as queue:
        assert [event.data for event in await take(queue, 3)] == [None, "{not json", [1, 2]]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("a..b",), "TYPE"),
        (("a", "{nope"), "DATA"),
        (("a", '{"$date": "x"}'), "DATA"),
        (("a", "--priority", "101"), "--priority"),
        (("a", "--priority", "high"), "--priority"),
        (("a", "--ttl", "soon"), "--ttl"),
        (("a", "--ttl", "0"), "--ttl"),
        (("a", "--correlation", ""), "--correlation"),
        (("a", "--tag", ""), "--tag"),
        (("a", "--target", "x" * 2000), "--target"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
async def test_publish_names_what_is_wrong(
    spell: Spell, ask: Ask, event_store: EventStore, words: tuple[str, ...], named: str
) -> None:
    """Before anything is sent; exit code 2."""
    await _queue(spell)
    done = await ask("events", "publish", *words)
    assert (done.code, done.out) == (2, "")
    assert named in done.err
    assert event_store.queue("q") == 0


async def test_publish_into_a_full_queue_is_exit_code_4(spell: Spell, ask: Ask) -> None:
    """The error says which queue; nothing was stored."""
    await _queue(spell, capacity=1, overflow="reject")
    assert (await ask("events", "publish", "a")).code == 0
    done = await ask("events", "publish", "a", "--json")
    assert done.code == 4
    error = json.loads(done.err)["error"]
    assert (error["code"], error["subscription"]) == ("PUBLISH_REJECTED", "q")


# --- tail -----------------------------------------------------------------------------------------


async def test_tail_prints_what_is_published_from_now_on(spell: Spell, ask: Ask) -> None:
    """A line each, escaped; as many as --count says, and only of the pattern."""
    tailing = asyncio.create_task(ask("events", "tail", "order.*", "--count", "2"))
    published: list[Event] = []

    async def publish() -> None:
        while not tailing.done():
            await spell.events.publish("other", "no")
            published.append(await spell.events.publish("order.paid", "a\tb", source="me"))

    await soon(asyncio.gather(tailing, publish()))
    done = tailing.result()
    assert (done.code, done.err) == (0, "")
    lines = _cells(done.out)
    known = {event.id: event for event in published}
    assert len(lines) == 2
    for time, event_type, source, correlation, event_id, data in lines:
        assert (event_type, source, correlation, data) == ("order.paid", "me", "-", '"a\\tb"')
        assert time == known[event_id].time.isoformat(timespec="milliseconds")


async def test_tail_of_a_queue_acknowledges_what_it_printed(
    spell: Spell, ask: Ask, event_store: EventStore
) -> None:
    """The rest stays for the next time; a new queue is made, and that is said."""
    made = asyncio.create_task(ask("events", "tail", "--durable", "q", "--count", "1"))
    await until(lambda: event_store.idle("q"))
    await spell.events.publish("a", 0)
    first = await soon(made)
    assert "q is new" in first.err
    with context(correlation_id="run-7"):
        await spell.events.publish_many(Event("a", number) for number in range(1, 4))
    words = ("events", "tail", "*", "--durable", "q", "--count", "2", "--json")
    done = await ask(*words)
    assert (done.code, done.err) == (0, "")
    documents = [json.loads(line) for line in done.out.splitlines()]
    assert [one["data"] for one in documents] == [1, 2]
    assert {one["correlation_id"] for one in documents} == {"run-7"}
    assert event_store.queue("q") == 1
    other = await ask("events", "tail", "a", "--durable", "q", "--count", "1", "--json")
    assert (other.code, json.loads(other.err)["error"]["code"]) == (3, "SUBSCRIPTION_EXISTS")
    for bad, named in (("a..b", "PATTERN"), ("a.**", "PATTERN")):
        refused = await ask("events", "tail", bad)
        assert refused.code == 2
        assert named in refused.err


@pytest.mark.needs("process")
async def test_tail_ends_at_ctrl_c_and_has_acknowledged(
    *,
    spell: Spell,
    server: Server,
    namespace: str,
    event_store: EventStore,
    process_environment: dict[str, str],
) -> None:
    """With exit code 130; nothing that was printed comes again."""
    await _queue(spell)
    await spell.events.publish_many(Event("a", number) for number in range(5))
    words = ["--url", server.url, "--namespace", namespace, "events", "tail", "--durable", "q"]
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, *words, "--json"), env=process_environment, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    lines = [await soon(process.stdout.readline(), 20) for _ in range(5)]
    process.send_signal(signal.SIGINT)
    assert await soon(process.wait(), 20) == 130
    assert [json.loads(line)["data"] for line in lines] == list(range(5))
    assert event_store.queue("q") == 0


# --- queues ---------------------------------------------------------------------------------------


async def test_queues_have_what_waits_what_died_and_what_was_dropped(
    spell: Spell, ask: Ask, event_store: EventStore
) -> None:
    """A row for each, by name; nothing if there is none."""
    assert (await ask("events", "queues")).out == ""
    await _queue(spell, "full", "a.b", capacity=2, overflow="drop_newest")
    await _letters(spell, 1, name="q")
    await spell.events.publish_many(Event("a.b", number) for number in range(4))
    async with spell.events.subscribe(durable="q") as queue:
        await take(queue, 1, ack=False)
        await until(lambda: event_store.pending("q") == 4)
        done = await ask("events", "queues")
        document = json.loads((await ask("events", "queues", "--json")).out)
    assert done.code == 0
    assert _cells(done.out) == [
        ["full", "a.b", "2", "0", "0", "0", "3", "2", "drop_newest"],
        ["q", "*", "4", "4", "1", "1", "0", "1000000", "block"],
    ]
    assert document["namespace"] == spell.namespace
    told = [(one["name"], one["lag"], one["holding"], one["dead"]) for one in document["queues"]]
    assert told == [("full", 2, 0, 0), ("q", 4, 1, 1)]


# --- dead letters ---------------------------------------------------------------------------------


async def test_dead_shows_why_and_the_bytes_of_what_is_no_event(
    spell: Spell, ask: Ask, event_store: EventStore
) -> None:
    """Bytes in hexadecimal: the first ones in a line, all in the document."""
    await _letters(spell, {"n": 1})
    event_store.poison("q", BROKEN)
    async with spell.events.subscribe(durable="q"):
        await until(lambda: event_store.dead("q") == 2)
    done = await ask("events", "dead", "q")
    failed, poisoned = _cells(done.out)
    assert (done.code, done.err) == (0, "")
    assert failed[2:4] == ["failed", "1"]
    (letter, _) = await spell.events.dead_letters("q")
    assert letter.event is not None
    assert failed[5:] == ["ValueError: a\\tbad one", letter.event.id, 'a.b {"n": 1}']
    assert poisoned[2] == "unreadable"
    assert "format 127" in poisoned[5]
    assert poisoned[6:] == ["-", f"61 bytes: {BROKEN[:32].hex()}…"]
    said = json.loads((await ask("--json", "events", "dead", "q")).out)
    one, two = said["letters"]
    assert (one["event"]["data"], one["bytes"]) == ({"n": 1}, None)
    assert (two["event"], two["bytes"], two["size"]) == (None, BROKEN.hex(), 61)
    assert (said["name"], said["more"]) == ("q", False)
    cut = ("events", "dead", "q", "--limit", "1", "--json")
    assert json.loads((await ask(*cut)).out)["more"] is True
    rest = await ask("events", "dead", "q", "--after", one["id"])
    assert [row[0] for row in _cells(rest.out)] == [two["id"]]


async def test_replay_puts_back_some_or_all(
    spell: Spell, ask: Ask, event_store: EventStore
) -> None:
    """Exit code 1 if an id was not there."""
    ids = await _letters(spell, *range(4))
    assert (await ask("events", "replay", "q", ids[0], ids[0])).out == "1 replayed\n"
    done = await ask("events", "replay", "q", ids[0], ids[1])
    assert (done.code, done.out) == (1, "1 replayed, 1 was not there\n")
    assert (event_store.queue("q"), event_store.dead("q")) == (2, 2)
    said = json.loads((await ask("events", "replay", "q", "--json")).out)
    assert said == {"name": "q", "replayed": 2, "missing": 0}
    async with spell.events.subscribe(durable="q") as queue:
        assert [event.data for event in await take(queue, 4)] == [0, 1, 2, 3]


async def test_forget_is_dry_without_confirm(
    spell: Spell, ask: Ask, event_store: EventStore
) -> None:
    """It says which would be deleted, exit code 1; with it they are, and no others."""
    ids = await _letters(spell, *range(3))
    dry = await ask("events", "forget", "q", *ids[:2])
    assert (dry.code, dry.out) == (1, "")
    assert f"2 dead letters of q would be deleted: {ids[0]}, {ids[1]}" in dry.err
    assert "--confirm" in dry.err
    said = json.loads((await ask("events", "forget", "q", "--all", "--json")).out)
    assert said == {"name": "q", "would_forget": ids}
    assert event_store.dead("q") == 3
    done = await ask("events", "forget", "q", ids[0], "--confirm")
    assert (done.code, done.out, done.err) == (0, "1 forgotten\n", "")
    again = await ask("events", "forget", "q", ids[0], ids[1], "--confirm", "--json")
    assert (again.code, json.loads(again.out)["missing"]) == (1, 1)
    assert [letter.id for letter in await spell.events.dead_letters("q")] == [ids[2]]
    assert (await ask("-q", "events", "forget", "q", "--all", "--yes")).out == ""
    assert event_store.dead("q") == 0


async def test_remove_is_dry_without_confirm(spell: Spell, ask: Ask) -> None:
    """It says what would go with the queue."""
    await _letters(spell, 1)
    await spell.events.publish("a")
    dry = await ask("events", "remove", "q")
    assert (dry.code, dry.out) == (1, "")
    assert "q would be removed, with 1 events and 1 dead letters" in dry.err
    said = json.loads((await ask("events", "remove", "q", "--json")).out)
    assert said["would_remove"]["lag"] == 1
    assert len(await spell.events.subscriptions()) == 1
    done = await ask("events", "remove", "q", "--confirm")
    assert (done.code, done.out) == (0, "q removed\n")
    assert await spell.events.subscriptions() == []


class _Terminal:
    """A standard input at which somebody sits."""

    def __init__(self, answer: str) -> None:
        self._answer = answer

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        return self._answer


@pytest.mark.parametrize(("answer", "code", "left"), [("y\n", 0, 0), ("\n", 1, 1), ("no\n", 1, 1)])
async def test_on_a_terminal_somebody_is_asked(
    *,
    spell: Spell,
    ask: Ask,
    event_store: EventStore,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    code: int,
    left: int,
) -> None:
    """Only a yes does it."""
    await _letters(spell, 1)
    monkeypatch.setattr(sys, "stdin", _Terminal(answer))
    done = await ask("events", "forget", "q", "--all")
    assert (done.code, event_store.dead("q")) == (code, left)
    assert done.err.endswith("Delete it? [y/N] ")
    removed = await ask("events", "remove", "q")
    assert (removed.code, len(await spell.events.subscriptions())) == (code, left)


@pytest.mark.parametrize("words", [("dead",), ("replay",), ("remove",), ("forget", "--all")])
async def test_a_queue_that_is_not_there_is_exit_code_1(ask: Ask, words: tuple[str, ...]) -> None:
    """And named."""
    verb, *more = words
    done = await ask("events", verb, "nobody", *more, "--json")
    assert (done.code, done.out) == (1, "")
    error = json.loads(done.err)["error"]
    assert (error["code"], error["name"]) == ("SUBSCRIPTION_NOT_FOUND", "nobody")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("dead", ""), "NAME"),
        (("dead", "q", "--after", "x"), "--after"),
        (("dead", "q", "--limit", "0"), "--limit"),
        (("replay", "q", "x"), "ID..."),
        (("forget", "q"), "ID..."),
        (("forget", "q", "1-0", "--all"), "ID..."),
        (("forget", "q", "x", "--confirm"), "ID..."),
        (("tail", "a", "--durable", ""), "--durable"),
        (("tail", "a", "--count", "0"), "--count"),
        (("remove", "x" * 129), "NAME"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
async def test_bad_words_are_named(ask: Ask, words: tuple[str, ...], named: str) -> None:
    """Exit code 2."""
    done = await ask("events", *words)
    assert (done.code, done.out) == (2, "")
    assert named in done.err


@pytest.mark.parametrize(
    "cls",
    [cls for cls in error_classes().values() if cls.__module__ == "llmspell_dist.events.errors"],
)
def test_every_error_of_events_has_an_exit_code(cls: Any) -> None:
    """None is taken for a bug."""
    assert exit_of(cls.__new__(cls)) is not Exit.INTERNAL
