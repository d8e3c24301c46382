"""Values and secrets stand in no span, no metric and no log, whatever goes wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fix_telemetry import Traced
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

from llmspell_dist import Options, connect
from llmspell_dist.errors import SpellError, StoreUnavailableError
from llmspell_dist.redis.embedded import EmbeddedServer
from llmspell_dist.telemetry import JSONFormatter, OTLPHandler, TelemetrySettings, start_telemetry

pytestmark = [pytest.mark.integration, pytest.mark.security]

CANARY = "canary-5f3a"


class Logs:
    """Everything that the library logged, as both handlers show it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.exporter = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
        self.provider = LoggerProvider(shutdown_on_exit=False)
        self.provider.add_log_record_processor(SimpleLogRecordProcessor(self.exporter))

    def text(self) -> str:
        """Return all of it."""
        exported = [one.log_record for one in self.exporter.get_finished_logs()]
        return "\n".join([*self.lines, *[f"{one.body!r} {one.attributes!r}" for one in exported]])


@pytest.fixture
def logs() -> Iterator[Logs]:
    """What is logged at any level while the test runs."""
    logs = Logs()

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logs.lines.append(self.format(record))

    lines, exported = Lines(), OTLPHandler(logs.provider, logging.DEBUG)
    lines.setFormatter(JSONFormatter())
    logger = logging.getLogger("llmspell_dist")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    for handler in (lines, exported):
        logger.addHandler(handler)
    yield logs
    for handler in (lines, exported):
        logger.removeHandler(handler)
    logger.setLevel(level)
    logs.provider.shutdown()


async def test_a_value_is_nowhere(url: str, namespace: str, traced: Traced, logs: Logs) -> None:
    """Written, read, refused, thrown by a hook, published: it is in no span, metric or log."""
    running = start_telemetry(TelemetrySettings())
    telemetry = running.telemetry
    telemetry._tracer_provider, telemetry._traces = traced.provider, True
    async with connect(url, namespace=namespace, options=Options(telemetry=telemetry)) as spell:
        state = spell.state

        def throw(_: Any) -> None:
            raise ValueError(CANARY)

        spell.hooks.register("AfterStateWrite", throw, name="throws")
        await state.set("agent:a", "key", {"password": CANARY})
        await state.get("agent:a", "key")
        await state.append("agent:a", "list", CANARY)
        await state.set_many("agent:a", {"x": CANARY})
        await state.update("agent:a", "x", lambda value: value + CANARY)
        async with state.transaction() as tx:
            tx.set("agent:a", "y", CANARY)
        for bad in (
            state.set("agent:a", "z", object()),
            state.set(f"nonsense {CANARY}", "k", 1),
            state.increment("agent:a", "x"),
            state.set("agent:a", "k", 1, ttl=CANARY),  # type: ignore[arg-type]
        ):
            with pytest.raises(SpellError):
                await bad

        async with spell.events.subscribe("t.*", durable="q") as queue:
            await spell.events.publish("t.x", {"token": CANARY})
            event = await anext(queue)
            with telemetry.handling(event, "q"):
                await queue.ack(event)
        scrape = running.prometheus()[0].decode()
    running.shutdown()
    spans = traced.spans()
    assert len(spans) > 10
    assert CANARY not in "\n".join(span.to_json() for span in spans)
    assert CANARY not in scrape
    assert logs.lines
    assert CANARY not in logs.text()


@pytest.mark.needs("process")
async def test_a_password_is_nowhere(
    own_server: Callable[..., EmbeddedServer], traced: Traced, logs: Logs, namespace: str
) -> None:
    """Of the URL with which one connects, when it is right and when it is wrong."""
    server = own_server(config={"requirepass": CANARY})
    path = server.socket
    running = start_telemetry(TelemetrySettings())
    telemetry = running.telemetry
    telemetry._tracer_provider, telemetry._traces = traced.provider, True
    options = Options(telemetry=telemetry, retry_budget=0.2)
    good, wrong = f"unix://:{CANARY}@{path}", f"unix://:{CANARY}-wrong@{path}"
    async with connect(good, namespace=namespace, options=options) as spell:
        await spell.state.set("agent:a", "k", 1)
        logging.getLogger("llmspell_dist.test").warning("connected to %s", good)
        scrape = running.prometheus()[0].decode()
    with pytest.raises(StoreUnavailableError):
        await connect(wrong, namespace=namespace, options=options)
    running.shutdown()
    assert traced.spans()
    assert CANARY not in "\n".join(span.to_json() for span in traced.spans())
    assert CANARY not in scrape
    assert "connected to unix://***@" in logs.text()
    assert CANARY not in logs.text()
