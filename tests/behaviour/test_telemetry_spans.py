"""Traces: what is a span, what it says, and how one goes on in another process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fix_state import until
from fix_telemetry import Traced
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import SpanKind, StatusCode

from llmspell_dist import ConflictError, Options, Spell, blocking, connect
from llmspell_dist.backup import Progress
from llmspell_dist.events import Event
from llmspell_dist.telemetry import Telemetry
from llmspell_dist.telemetry.direct import DirectSpan
from llmspell_dist.telemetry.names import SPAN_ATTRIBUTES
from llmspell_dist.telemetry.traced import HOT, OPERATIONS

pytestmark = pytest.mark.integration

Client = tuple[Spell, Traced]


@pytest.fixture
async def client(url: str, namespace: str, traced: Traced) -> AsyncIterator[Client]:
    """A client whose every operation is sampled."""
    telemetry = Telemetry(tracer_provider=traced.provider)
    async with connect(url, namespace=namespace, options=Options(telemetry=telemetry)) as spell:
        yield spell, traced


async def test_an_operation_is_a_client_span_with_the_conventions_names(client: Client) -> None:
    """Which system, which operation, which kind of scope; no key, no scope, no value."""
    spell, traced = client
    await spell.state.set("agent:alice", "mood", "curious")
    assert await spell.state.get("agent:alice", "mood") == "curious"
    await spell.state.get_many("workflow:w/step:s", ["a", "b", "c"])
    put, got, many = (traced.one(f"state.{name}") for name in ("set", "get", "get_many"))
    for span in (put, got, many):
        assert span.kind is SpanKind.CLIENT
        assert span.status.status_code is StatusCode.UNSET
        assert span.attributes is not None
        assert span.attributes.keys() <= SPAN_ATTRIBUTES.keys()
        assert span.attributes["db.system.name"] in ("redis", "valkey")
        assert span.attributes["server.address"]
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.start_time <= span.end_time
        assert span.instrumentation_scope is not None
        assert span.instrumentation_scope.name == "llmspell_dist"
    assert put.attributes is not None
    assert put.attributes["db.operation.name"] == "set"
    assert put.attributes["llmspell.scope.kind"] == "agent"
    assert many.attributes is not None
    assert many.attributes["llmspell.scope.kind"] == "step"
    assert many.attributes["db.operation.batch.size"] == 3


async def test_spans_made_directly_are_as_opentelemetry_would_make_them(client: Client) -> None:
    """The quick way and the way over the API, chosen by what else wants to know of spans."""

    class Asks(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:  # noqa: ARG002
            seen.append(span.name)

    seen: list[str] = []
    spell, traced = client
    await spell.state.get("agent:a", "k")
    traced.provider.add_span_processor(Asks())
    await spell.state.get("agent:a", "k")
    assert seen == ["state.get"]
    quick, slow = traced.spans("state.get")
    assert quick.attributes == slow.attributes
    for name in ("kind", "parent", "resource", "status", "instrumentation_scope", "events"):
        one, other = getattr(quick, name), getattr(slow, name)
        if name == "status":
            one, other = one.status_code, other.status_code
        if name == "events":
            one, other = list(one), list(other)
        assert one == other, name
    assert quick.context is not None
    assert slow.context is not None
    assert quick.context.trace_flags == slow.context.trace_flags


async def test_every_method_of_shared_state_is_a_span(client: Client) -> None:
    """None is forgotten: what is no span is listed here."""
    spell, _ = client
    public = {
        name
        for name in dir(spell.state)
        if not name.startswith("_") and callable(getattr(spell.state, name))
    }
    no_span = {"transaction", "keys", "items", "scopes", "watch"}
    """A transaction's commit is one; listings are one a page; a watch lasts."""
    assert public - no_span == {*OPERATIONS, *HOT}


async def test_an_error_is_noted_by_its_code_and_never_by_its_message(client: Client) -> None:
    """The message may name keys."""
    spell, traced = client
    await spell.state.set("agent:a", "canary", 1)
    with pytest.raises(ConflictError):
        await spell.state.compare_and_set("agent:a", "canary", 2, expected=None)
    span = traced.one("state.compare_and_set")
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes["error.type"] == "CONFLICT"
    assert not span.events
    assert "canary" not in span.to_json()


async def test_a_transaction_is_one_span_at_its_commit(client: Client) -> None:
    """With how many keys it changes; one that was given up is none."""
    spell, traced = client
    async with spell.state.transaction() as tx:
        tx.set("agent:a", "one", 1)
        tx.set("agent:b", "two", 2)
    span = traced.one("state.transaction")
    assert span.attributes is not None
    assert span.attributes["db.operation.batch.size"] == 2
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with spell.state.transaction() as tx:
            tx.set("agent:a", "one", 1)
            _ = 1 / 0
    assert len(traced.spans("state.transaction")) == 1


async def test_scopes_and_keys_are_named_only_if_asked_for(
    url: str, namespace: str, traced: Traced
) -> None:
    """And values never."""
    telemetry = Telemetry(tracer_provider=traced.provider, record_scopes=True)
    async with connect(url, namespace=namespace, options=Options(telemetry=telemetry)) as spell:
        await spell.state.set("agent:alice", "mood", "canary-value")
    span = traced.one("state.set")
    assert span.attributes is not None
    assert span.attributes["llmspell.scope"] == "agent:alice"
    assert span.attributes["llmspell.key"] == "mood"
    assert "canary-value" not in span.to_json()


async def test_a_lease_is_a_span_with_its_wait(client: Client) -> None:
    """From the first question to the grant."""
    spell, traced = client
    held = await spell.leases.acquire("agent:a", owner="first")
    waiting = asyncio.ensure_future(spell.leases.acquire("agent:a", owner="second").__aenter__())
    await until(lambda: spell.leases.standing()[1] == 1)
    assert len(traced.spans("lease.acquire")) == 1
    await held.release()
    lease = await waiting
    await lease.release()
    first, second = traced.spans("lease.acquire")
    assert first.attributes is not None
    assert first.attributes["llmspell.lease.name"] == "main"
    assert second.end_time is not None
    assert first.end_time is not None
    assert second.end_time > first.end_time


async def test_the_active_span_stands_in_the_log(client: Client) -> None:
    """Of each commit: who reads the log finds the trace."""
    spell, traced = client
    with traced.provider.get_tracer("app").start_as_current_span("app") as app:
        await spell.state.set("agent:a", "k", 1)
        await spell.state.increment("agent:a", "n")
    newest, before = await spell.log.entries(newest_first=True, limit=2)
    context = app.get_span_context()
    for entry, name in ((newest, "state.increment"), (before, "state.set")):
        span = traced.one(name)
        assert span.parent is not None
        assert span.parent.span_id == context.span_id
        assert span.context is not None
        _, trace_id, span_id, _ = entry.meta["t"].split("-")
        assert int(trace_id, 16) == context.trace_id
        assert int(span_id, 16) == span.context.span_id
    (change, *_) = await spell.state.history("agent:a", "k")
    assert change.context.traceparent == before.meta["t"]
    assert change.context.actor is not None


async def test_hooks_run_inside_the_operations_trace(client: Client) -> None:
    """Each run is a span, and a hook sees the operation's as the active one."""
    spell, traced = client
    seen: list[str] = []

    def look(_: Any) -> None:
        seen.append(str(spell.state._driver.core.observer.traceparent()))

    async def wait(_: Any) -> None:
        await asyncio.sleep(0)

    def fail(_: Any) -> None:
        raise ValueError("canary-94")

    spell.hooks.register("BeforeStateWrite", look, name="look")
    spell.hooks.register("BeforeStateWrite", wait, name="wait")
    spell.hooks.register("AfterStateWrite", fail, name="fail")
    await spell.state.set("agent:a", "k", 1)
    operation = traced.one("state.set")
    assert operation.context is not None
    assert seen[0].split("-")[2] == f"{operation.context.span_id:016x}"
    runs = traced.spans("hook.run")
    assert [span.attributes["llmspell.hook.name"] for span in runs if span.attributes] == [
        "look",
        "wait",
        "fail",
    ]
    for span in runs:
        assert span.parent is not None
        assert span.parent.span_id == operation.context.span_id
    assert runs[2].attributes is not None
    assert runs[2].attributes["error.type"] == "ValueError"
    assert "canary-94" not in runs[2].to_json()


CONSUMER = """
import asyncio, sys
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from llmspell_dist import Options, connect
from llmspell_dist.telemetry import Telemetry

async def main(url, namespace):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(
        formatter=lambda span: f"{span.name} {span.context.trace_id:032x} "
        f"{span.parent.span_id if span.parent else 0:016x} {span.context.span_id:016x}\\n")))
    options = Options(telemetry=Telemetry(tracer_provider=provider))
    stop = asyncio.Event()
    async with connect(url, namespace=namespace, options=options) as spell:
        async def handle(event):
            await spell.state.set("agent:b", "heard", event.data)
            stop.set()
        await spell.events.consume("queue", "task.*", handle, stop=stop)
    provider.shutdown()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.needs("process")
async def test_a_trace_goes_on_in_the_process_that_handles_the_event(
    client: Client, url: str, namespace: str
) -> None:
    """Publisher's span, handler's span as its child, and the handler's writes as children of that.

    The handler runs in another process, with OpenTelemetry of its own.
    """
    spell, traced = client
    async with spell.events.subscribe("task.*", durable="queue"):
        pass  # the queue is there before anything is published
    with traced.provider.get_tracer("app").start_as_current_span("app") as app:
        event = await spell.events.publish("task.done", 7)
    run = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", CONSUMER, url, namespace],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=Path(__file__).parent,
    )
    spans = {line.split()[0]: line.split()[1:] for line in run.stdout.splitlines()}
    published = traced.one("event.publish")
    assert published.kind is SpanKind.PRODUCER
    assert published.context is not None
    assert event.traceparent is not None
    assert event.traceparent.split("-")[2] == f"{published.context.span_id:016x}"
    trace_id = f"{app.get_span_context().trace_id:032x}"
    process, put = spans["event.process"], spans["state.set"]
    assert process[:2] == [trace_id, f"{published.context.span_id:016x}"]
    assert put[:2] == [trace_id, process[2]]
    (entry,) = await spell.log.entries(newest_first=True, limit=1)
    assert entry.meta["t"].split("-")[1:3] == [trace_id, put[2]]


async def test_an_event_keeps_the_trace_that_its_publisher_gave_it(client: Client) -> None:
    """Who passes events on from elsewhere says where they belong."""
    spell, traced = client
    given = f"00-{'a' * 32}-{'b' * 16}-01"
    with traced.provider.get_tracer("app").start_as_current_span("app"):
        event = await spell.events.publish("a.b", traceparent=given)
        many = await spell.events.publish_many([Event("a.c"), Event("a.d", traceparent=given)])
    assert event.traceparent == given
    assert many == 2
    batch = traced.spans("event.publish")[1]
    assert batch.attributes is not None
    assert batch.attributes["messaging.batch.message_count"] == 2


async def test_what_is_not_sampled_stays_so_in_the_handler(url: str, namespace: str) -> None:
    """A publisher that dropped the trace has dropped the handler's part too."""
    publisher, consumer = Traced(0.0), Traced(1.0)
    stop = asyncio.Event()
    options = Options(telemetry=Telemetry(tracer_provider=consumer.provider))
    async with connect(url, namespace=namespace, options=options) as spell:

        async def handle(_: Event) -> None:
            await spell.state.get("agent:a", "k")
            stop.set()

        async with spell.events.subscribe("a.*", durable="q"):
            pass
        consumer.exporter.clear()
        with publisher.provider.get_tracer("app").start_as_current_span("app"):
            await spell.events.publish("a.b")
        await spell.events.consume("q", "a.*", handle, stop=stop)
    assert [span.name for span in consumer.spans()] == []


async def test_one_in_a_hundred_is_sampled_and_the_others_cost_no_span(
    url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No object of OpenTelemetry is made for those that are not."""
    made: list[str] = []
    enter = DirectSpan.__enter__

    def entered(span: DirectSpan) -> None:
        made.append(span.name)
        enter(span)

    monkeypatch.setattr(DirectSpan, "__enter__", entered)
    one_percent = Traced(0.01)
    options = Options(telemetry=Telemetry(tracer_provider=one_percent.provider))
    async with connect(url, namespace=namespace, options=options) as spell:
        for _ in range(50):
            await asyncio.gather(*[spell.state.get("agent:a", "k") for _ in range(100)])
    exported = one_percent.spans("state.get")
    assert len(exported) == len(made)
    assert 10 <= len(exported) <= 150  # 50 are expected; this fails once in a billion runs


async def test_an_operation_that_is_cancelled_is_no_failure(client: Client) -> None:
    """Its caller left; the span ends and says nothing of an error."""
    spell, traced = client
    task = asyncio.ensure_future(spell.state.wait_for("agent:a", "k", lambda value: value == 1))
    await until(lambda: len(spell._feeds.listening()) == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    span = traced.one("state.wait_for")
    assert span.status.status_code is StatusCode.UNSET


async def test_backups_are_spans_with_their_phases(client: Client, tmp_path: Path) -> None:
    """Each phase that the work comes to is an event of the span."""
    spell, traced = client
    await spell.state.set("agent:a", "k", 1)
    told: list[Progress] = []
    async with spell.backups.to(f"file://{tmp_path}/backups") as store:
        made = await store.create(progress=told.append)
        await store.verify(made.id)
        await store.restore(force=True)
        await store.prune("last=1")
    span = traced.one("backup.create")
    assert span.kind is SpanKind.INTERNAL
    assert [event.name for event in span.events] == list(
        dict.fromkeys(one.phase.value for one in told)
    )
    assert len(span.events) > 1
    for name in ("backup.verify", "backup.restore", "backup.prune"):
        assert traced.spans(name), name


def test_threads_have_spans_too(url: str, namespace: str, traced: Traced) -> None:
    """The blocking surface: the same names, and the active span as parent."""
    telemetry = Telemetry(tracer_provider=traced.provider)
    options = Options(telemetry=telemetry)
    with blocking.connect(url, namespace=namespace, options=options) as spell:
        with traced.provider.get_tracer("app").start_as_current_span("app") as app:
            spell.state.set("agent:a", "k", 1)
            assert spell.state.get("agent:a", "k") == 1
        with spell.state.transaction() as tx:
            tx.set("agent:a", "k", 2)
        with spell.leases.acquire("agent:a"):
            pass
        (first, *_) = spell.log.entries()
    for name in ("state.set", "state.get"):
        span = traced.one(name)
        assert span.parent is not None
        assert span.parent.span_id == app.get_span_context().span_id
    assert traced.spans("state.transaction")
    assert traced.spans("lease.acquire")
    assert first.meta["t"].split("-")[1] == f"{app.get_span_context().trace_id:032x}"


async def test_an_event_taken_by_hand_is_gone_on_with(client: Client) -> None:
    """`Telemetry.handling` is what `consume` does around a handler."""
    spell, traced = client
    telemetry = spell._assembly.telemetry
    assert isinstance(telemetry, Telemetry)
    async with spell.events.subscribe("a.*", durable="q") as queue:
        await spell.events.publish("a.b")
        event = await anext(queue)
        with telemetry.handling(event, "q"):
            await spell.state.set("agent:a", "k", 1)
        await queue.ack(event)
    process, put = traced.one("event.process"), traced.one("state.set")
    assert put.parent is not None
    assert process.context is not None
    assert put.parent.span_id == process.context.span_id
