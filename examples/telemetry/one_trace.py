"""One trace over two workers: who asked, what was written, who handled the event.

A planner writes a task and publishes that it is there; a worker hears of it and writes the result.
Both spans and both commits belong to the trace that the planner began, and the counts of all of it
can be scraped.
"""

from __future__ import annotations

import asyncio
import sys

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from llmspell_dist import Options, connect
from llmspell_dist.events import Event
from llmspell_dist.telemetry import Telemetry, TelemetrySettings, start_telemetry


async def main(url: str) -> None:
    """Plan, work, and look at the trace."""
    exporter = InMemorySpanExporter()  # yours sends to a collector
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    options = Options(telemetry=Telemetry(tracer_provider=provider, metrics=False))
    running = start_telemetry(TelemetrySettings(metrics=("prometheus",)))
    counted = Options(telemetry=running.telemetry)
    async with (
        connect(url, namespace="example-telemetry", options=options) as planner,
        connect(url, namespace="example-telemetry", options=counted) as watcher,
    ):
        await planner.events.remove("workers")
        async with planner.events.subscribe("task.*", durable="workers"):
            pass  # the queue is there before the first task
        exporter.clear()

        with provider.get_tracer("planner").start_as_current_span("plan") as plan:
            await planner.state.set("workflow:w1", "task", {"do": "count the words"})
            await planner.events.publish("task.new", {"workflow": "w1"})

        stop = asyncio.Event()

        async def work(event: Event) -> None:
            await planner.state.set(f"workflow:{event.data['workflow']}", "result", 7)
            stop.set()

        await planner.events.consume("workers", "task.*", work, stop=stop)

        spans = [one for one in exporter.get_finished_spans() if one.context is not None]
        traces = {one.context.trace_id for one in spans if one.context is not None}
        print("spans:", ", ".join(sorted({one.name for one in spans})))
        assert traces == {plan.get_span_context().trace_id}, "all of it is one trace"

        (change, *_) = await watcher.state.history("workflow:w1", "result")
        assert change.context.traceparent is not None
        assert f"{plan.get_span_context().trace_id:032x}" in change.context.traceparent
        print("the log names the trace of the result")

        assert await watcher.state.get("workflow:w1", "result") == 7
        text, _ = running.prometheus()
        assert b'db_operation_name="HGET"' in text
        print("and the reads are counted:", b"db_client_operation_duration_seconds_count" in text)
        await watcher.events.remove("workers")
        await watcher.state.clear("workflow:w1")
    running.shutdown()
    provider.shutdown()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory://example-telemetry"))
