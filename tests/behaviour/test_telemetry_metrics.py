"""Metrics: every one is counted where it happens, and what is exported is what was counted."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fix_faults import hasty
from fix_state import until
from fix_telemetry import Samples, scraped, total
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader

from llmspell_dist import ConflictError, NearCache, Options, Spell, blocking, connect
from llmspell_dist.errors import LeaseUnavailableError, StoreUnavailableError
from llmspell_dist.redis.embedded import EmbeddedServer
from llmspell_dist.telemetry import Running, Telemetry, TelemetrySettings, start_telemetry

pytestmark = pytest.mark.integration

DURATION = "db_client_operation_duration_seconds_count"


@pytest.fixture
def running() -> Iterator[Running]:
    """Telemetry of a program that is scraped by Prometheus, and traces nothing."""
    running = start_telemetry(TelemetrySettings())
    yield running
    running.shutdown()


@asynccontextmanager
async def opened(
    running: Running, url: str, namespace: str, **options: Any
) -> AsyncIterator[Spell]:
    """Open a client whose counts are exported."""
    made = Options(telemetry=running.telemetry, **options)
    async with connect(url, namespace=namespace, options=made) as spell:
        yield spell


async def test_requests_are_counted_one_by_one_with_their_errors(
    running: Running, url: str, namespace: str
) -> None:
    """Reads and commits of many callers at once; a conflict by its code."""
    async with opened(running, url, namespace) as spell:
        before = scraped(running)
        await asyncio.gather(*[spell.state.set("agent:a", f"k{n}", n) for n in range(100)])
        await asyncio.gather(*[spell.state.get("agent:a", f"k{n}") for n in range(150)])
        for _ in range(3):
            with pytest.raises(ConflictError):
                await spell.state.compare_and_set("agent:a", "k1", 0, expected=None)
        after = scraped(running)
        own = {"llmspell_namespace": namespace}
        assert total(after, DURATION, db_operation_name="commit", error_type="", **own) == 100
        assert total(after, DURATION, db_operation_name="commit", error_type="CONFLICT", **own) == 3
        assert total(after, DURATION, db_operation_name="HGET", **own) >= 150
        bucket = "db_client_operation_duration_seconds_bucket"
        assert total(after, bucket, db_operation_name="commit", error_type="", le="+Inf") == 100
        spent = total(after, "db_client_operation_duration_seconds_sum", db_operation_name="HGET")
        assert 0 < spent < 150 * 10
        groups = "llmspell_commit_group_size"
        assert total(after, f"{groups}_sum", **own) == 103
        assert 5 <= total(after, f"{groups}_count", **own) <= 60  # many left together
        for direction in ("transmit", "receive"):
            name = "llmspell_lane_io_bytes_total"
            grew = total(after, name, network_io_direction=direction) - total(
                before, name, network_io_direction=direction
            )
            assert grew > 1000


@pytest.mark.needs("process")
async def test_a_server_out_of_reach_shows_in_every_figure(
    running: Running, own_server: Callable[..., EmbeddedServer], namespace: str
) -> None:
    """Connected or not, lost, made again, sent again, failed by its code."""
    server = own_server()
    async with opened(running, server.url, namespace) as spell:
        await spell.state.set("agent:a", "k", 1)
        fast = {"llmspell_lane": "fast", "llmspell_namespace": namespace}
        assert total(scraped(running), "llmspell_lane_connected", **fast) == 1
        server.stop()
        with hasty(spell, retry_budget=1.0, connect_timeout=0.3):
            with pytest.raises(StoreUnavailableError):
                await spell.state.get("agent:a", "k")
            with pytest.raises(StoreUnavailableError):
                await spell.state.set("agent:a", "k", 1)
        away = scraped(running)
        assert total(away, "llmspell_lane_connected", **fast) == 0
        assert total(away, "llmspell_lane_losses_total", **fast) == 1
        assert total(away, DURATION, db_operation_name="HGET", error_type="STORE_UNAVAILABLE") == 1
        assert (
            total(away, DURATION, db_operation_name="commit", error_type="STORE_UNAVAILABLE") == 1
        )
        server.start()
        assert await spell.state.get("agent:a", "k") == 1
        back = scraped(running)
        assert total(back, "llmspell_lane_connected", **fast) == 1
        assert total(back, "llmspell_lane_connections_total", **fast) == 2


async def test_leases_hooks_and_events_are_counted(
    running: Running, url: str, namespace: str
) -> None:
    """Held, waiting, lost; runs, failures, breaker; published, delivered, failed, dead."""
    async with opened(running, url, namespace) as spell:
        held = await spell.leases.acquire("agent:a", owner="me", on_lost="event")
        with pytest.raises(LeaseUnavailableError):
            await spell.leases.acquire("agent:a", owner="you", wait=0)
        samples = scraped(running)
        assert total(samples, "llmspell_lease_held") == 1
        assert total(samples, "llmspell_lease_wait_duration_seconds_count") == 1
        await spell.leases.break_lease("agent:a", reason="test")
        await until(lambda: held.is_lost)
        samples = scraped(running)
        assert total(samples, "llmspell_lease_acquired_total") == 1
        assert total(samples, "llmspell_lease_lost_total") == 1
        assert total(samples, "llmspell_lease_held") == 0

        def fail(_: Any) -> None:
            raise ValueError

        spell.hooks.register("BeforeStateWrite", fail, name="bad")
        for number in range(5):
            await spell.state.set("agent:b", "k", number)
        samples = scraped(running)
        bad = {"llmspell_hook_name": "bad", "llmspell_hook_point": "BeforeStateWrite"}
        assert total(samples, "llmspell_hook_failures_total", **bad) == 3
        assert total(samples, "llmspell_hook_skipped_total", **bad) == 2
        assert total(samples, "llmspell_hook_breaker_open", **bad) == 1

        stop = asyncio.Event()

        def handle(event: Any) -> None:
            if event.type == "task.bad":
                raise ValueError
            stop.set()

        async with spell.events.subscribe("task.*", durable="q"):
            pass
        await spell.events.publish("task.bad")
        await spell.events.publish("task.good")
        await spell.events.consume("q", "task.*", handle, max_deliveries=1, stop=stop)
        samples = scraped(running)
        queue = {"llmspell_subscription": "q"}
        assert total(samples, "llmspell_event_published_total") == 2
        assert total(samples, "llmspell_event_delivered_total", **queue) == 2
        assert total(samples, "llmspell_event_acknowledged_total", **queue) == 1
        assert total(samples, "llmspell_event_failed_total", **queue) == 1
        assert total(samples, "llmspell_event_dead_lettered_total", **queue) == 1


async def test_watches_and_the_near_cache_are_counted(
    running: Running, url: str, namespace: str
) -> None:
    """Open watches; hits, misses, what changed."""
    async with opened(running, url, namespace, near_cache=NearCache()) as spell:
        await spell.state.set("agent:a", "k", 1)
        assert spell.near_cache is not None
        await spell.near_cache.warm("agent:a")
        await spell.state.get("agent:a", "k")
        await spell.state.get("agent:a", "k")
        async with spell.state.watch("agent:b"):
            samples = scraped(running)
        assert total(samples, "llmspell_watch_open") == 1
        lookups = "llmspell_near_cache_lookups_total"
        stats = spell.near_cache.stats()
        assert stats.hits >= 1
        assert total(samples, lookups, llmspell_near_cache_result="hit") == stats.hits
        assert total(samples, lookups, llmspell_near_cache_result="miss") == stats.misses
        assert total(samples, "llmspell_near_cache_entries") == stats.entries
        assert total(scraped(running), "llmspell_watch_open") == 0


async def test_counters_of_a_hook_stay_when_it_is_taken_away(
    running: Running, url: str, namespace: str
) -> None:
    """Its successor of the same name goes on from there, and so does the end of the client."""
    point = {"llmspell_hook_name": "look", "llmspell_hook_point": "job:done"}
    async with opened(running, url, namespace) as spell:
        for number in range(1, 3):
            spell.hooks.register("job:done", lambda _: None, name="look")
            await spell.hooks.run("job:done", "job")
            assert total(scraped(running), "llmspell_hook_runs_total", **point) == number
            spell.hooks.unregister("look")
            assert total(scraped(running), "llmspell_hook_runs_total", **point) == number
    assert total(scraped(running), "llmspell_hook_runs_total", **point) == 2


async def test_counters_stay_when_a_client_is_closed(
    running: Running, url: str, namespace: str
) -> None:
    """And those of two clients are added up; gauges go."""
    for _ in range(2):
        async with opened(running, url, namespace) as spell:
            await spell.state.set("agent:a", "k", 1)
    samples = scraped(running)
    assert total(samples, DURATION, db_operation_name="commit") == 2
    assert total(samples, "llmspell_commit_group_size_sum") == 2
    assert not any(name == "llmspell_lane_connected" for name, _ in samples)
    assert scraped(running).keys() == samples.keys()


def test_threads_are_counted_too(running: Running, url: str, namespace: str) -> None:
    """The blocking surface: durations and errors by code."""
    options = Options(telemetry=running.telemetry)
    with blocking.connect(url, namespace=namespace, options=options) as spell:
        spell.state.set("agent:a", "k", 1)
        spell.state.get("agent:a", "k")
        with pytest.raises(ConflictError):
            spell.state.compare_and_set("agent:a", "k", 0, expected=None)
        with spell.leases.acquire("agent:a"):
            samples = scraped(running)
    assert total(samples, DURATION, db_operation_name="commit", error_type="") == 1
    assert total(samples, DURATION, db_operation_name="commit", error_type="CONFLICT") == 1
    assert total(samples, DURATION, db_operation_name="HGET") >= 1
    assert total(samples, "llmspell_lease_held") == 1


async def test_a_program_with_providers_of_its_own_gets_the_same(url: str, namespace: str) -> None:
    """Its readers know nothing of our histograms: values are recorded when it collects."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    telemetry = Telemetry(meter_provider=provider, traces=False)
    async with connect(url, namespace=namespace, options=Options(telemetry=telemetry)) as spell:
        for number in range(20):
            await spell.state.set("agent:a", "k", number)
        first, second = _points(reader), _points(reader)
        await spell.state.set("agent:a", "k", 21)
        third = _points(reader)
    provider.shutdown()
    assert [one.count for one in (first, second, third)] == [20, 20, 21]
    measured = telemetry.book.histograms()
    (ours,) = [
        histogram
        for (name, key), histogram in measured.items()
        if name == "db.client.operation.duration" and ("db.operation.name", "commit") in key
    ]
    assert list(third.bucket_counts) == ours.counts
    assert third.sum == pytest.approx(ours.total, rel=0.3)
    assert tuple(third.explicit_bounds) == ours.bounds


def _points(reader: InMemoryMetricReader) -> HistogramDataPoint:
    data = reader.get_metrics_data()
    assert data is not None
    (found,) = [
        point
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "db.client.operation.duration"
        for point in metric.data.data_points
        if point.attributes and point.attributes["db.operation.name"] == "commit"
    ]
    assert isinstance(found, HistogramDataPoint)
    return found


async def test_nobody_gets_anothers_reply_while_counting(
    running: Running, url: str, namespace: str
) -> None:
    """Cancelled callers, refused scripts and reads in between: the counts fit, and so do values."""
    async with opened(running, url, namespace) as spell:
        await asyncio.gather(*[spell.state.set("agent:a", f"k{n}", n) for n in range(200)])
        await spell.state.get("agent:a", "k0")
        before = total(scraped(running), DURATION, db_operation_name="HGET")

        async def read(number: int) -> None:
            task = asyncio.ensure_future(spell.state.get("agent:a", f"k{number}"))
            if number % 7 == 0:
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                return
            assert await task == number

        await asyncio.gather(*[read(number) for number in range(200)])
        await spell.ping()
        counted = total(scraped(running), DURATION, db_operation_name="HGET") - before
        assert 200 - 29 <= counted <= 200


OFF = """
import asyncio, sys
import llmspell_dist, llmspell_dist.blocking

async def main(url, namespace):
    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        await spell.state.set("global", "key", 1)
        await spell.state.get("global", "key")
        await spell.events.publish("a.b")
        async with spell.leases.acquire("global"):
            pass

asyncio.run(main(*sys.argv[1:]))
bad = [name for name in sys.modules if name.startswith((
    "opentelemetry", "prometheus_client", "llmspell_dist.telemetry", "llmspell_dist.redis.metering"
))]
assert not bad, bad
"""


@pytest.mark.needs("process")
async def test_a_program_without_telemetry_loads_nothing_of_it(url: str, namespace: str) -> None:
    """Not at the import, and not in use either."""
    await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", OFF, url, namespace],
        check=True,
        timeout=60,
        cwd=Path(__file__).parent,
    )


def test_samples_are_what_prometheus_reads(running: Running) -> None:
    """The text parses, has the process's own figures, and its content type is Prometheus's."""
    text, content_type = running.prometheus()
    assert content_type.startswith("text/plain; version=")
    samples: Samples = scraped(running)
    assert total(samples, "process_uptime_seconds") > 0
    assert text.endswith(b"\n")
