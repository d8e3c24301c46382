"""50 coroutines with telemetry, against the same without: tracing at 1 % sampling, then all of it.

Each caller sets a key and gets one in turn: `tracing_50`. The lines below it say what of that falls
to each of the two.

Spans are exported as in production: in batches, as protobuf over HTTP, to a process that throws
them away. What counts is the time on the processor, of all threads: the loop is never idle, and an
exporter in the background takes what it takes from the loop. Each turn of a traced arm ends with a
flush, so that what its spans cost falls into its own time and not into its neighbour's. A turn has
so many operations that a quarter of a full batch of spans comes of it.
What the table cannot show is proved: the spans came to 1 % of the operations.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from time import process_time
from typing import Any

from benchmarks.harness import Arm, Bench, Pair, Row, Samples, concurrently
from benchmarks.layout import FIELDS, KEYS, SCOPES, VARIANTS, WORKERS, Values
from benchmarks.ours import fill_scopes, open_ours
from benchmarks.payloads import MAIN
from llmspell_dist import Options, Spell

__all__ = ["ROWS"]

_OFF, _TRACED, _ALL = "off", "1 % traced", "1 % traced, metrics"
_RATIO = 0.01
_ROUNDS = 30
_TURN = 12_800
"""Operations: a quarter of a batch of 512 spans."""


@contextmanager
def _sink() -> Iterator[str]:
    """Give the address of a collector in another process."""
    command = [sys.executable, "-m", "benchmarks.otlp_sink"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1/traces"
        finally:
            process.stdin.close()
            process.wait(10)


def _provider(endpoint: str) -> tuple[Any, list[int]]:
    """Return a provider that exports to an endpoint, and a list whose only member counts spans."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased  # noqa: PLC0415

    exported = [0]

    class Counting(OTLPSpanExporter):
        def export(self, spans: Any) -> Any:
            exported[0] += len(spans)
            return super().export(spans)

    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(_RATIO)))
    exporter = Counting(endpoint=endpoint)
    # The delay is the default; the queue is large enough for what a slot brings.
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=65_536))
    return provider, exported


async def _measure(bench: Bench, *, name: str) -> Samples:
    from llmspell_dist.telemetry import Telemetry  # noqa: PLC0415 - only these rows need it

    values = Values(MAIN)
    async with AsyncExitStack() as stack:
        provider, exported = _provider(stack.enter_context(_sink()))
        stack.callback(provider.shutdown)
        options = {
            _OFF: None,
            _TRACED: Options(telemetry=Telemetry(tracer_provider=provider, metrics=False)),
            _ALL: Options(telemetry=Telemetry(tracer_provider=provider)),
        }
        spells = {
            arm: await stack.enter_async_context(open_ours(bench.server, one))
            for arm, one in options.items()
        }
        await fill_scopes(spells[_OFF], values)
        counts = dict.fromkeys(spells, 0)
        arms = [
            Arm(
                arm, partial(_work, _call(spell, name, values), provider, counts, arm), step=WORKERS
            )
            for arm, spell in spells.items()
        ]
        samples = await bench.interleave(arms, rounds=_ROUNDS if not bench.quick else None)
        provider.force_flush()
        traced = counts[_TRACED] + counts[_ALL]
        share = exported[0] / traced
        if traced > 20_000:
            assert 0.5 * _RATIO < share < 2 * _RATIO, f"{share:.2%} of the calls were traced"
        return samples


async def _work(
    call: Callable[[int, int], Awaitable[object]],
    provider: Any,
    counts: dict[str, int],
    arm: str,
    count: int,
) -> float:
    began = process_time()
    await concurrently(WORKERS, count, call)
    if arm != _OFF:
        provider.force_flush()
    counts[arm] += count
    return (process_time() - began) * 1e6


def _call(spell: Spell, name: str, values: Values) -> Callable[[int, int], Awaitable[object]]:
    get, put, data = spell.state.get, spell.state.set, values.objects

    def read(worker: int, turn: int) -> Awaitable[object]:
        return get(SCOPES[worker], FIELDS[turn % KEYS])

    def write(worker: int, turn: int) -> Awaitable[object]:
        return put(SCOPES[worker], FIELDS[turn % KEYS], data[turn % VARIANTS])

    def both(worker: int, turn: int) -> Awaitable[object]:
        return (write if turn % 2 else read)(worker, turn)

    return {"get": read, "set": write}.get(name, both)


def _row(title: str, name: str) -> Row:
    pairs = (Pair(title, _TRACED, _OFF), Pair(f"{title}: with metrics", _ALL, _OFF))
    return Row(title, partial(_measure, name=name), pairs)


ROWS = (_row("tracing_50", ""), _row("tracing_get_50", "get"), _row("tracing_set_50", "set"))
