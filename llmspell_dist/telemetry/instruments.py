"""OpenTelemetry instruments, made from the table of names, that read the book of counts.

Counters and gauges are observable instruments. OpenTelemetry has no observable histogram: readers
of our own (`llmspell_dist.telemetry.readers`) add ours to what they export as they are. For a
provider whose readers are not ours, the values that came since the last export are recorded one by
one when it collects: exact in count, within a bucket in value, and off the way of the calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from llmspell_dist.observation import Histogram
from llmspell_dist.telemetry.names import METRICS, Metric

if TYPE_CHECKING:
    from llmspell_dist.telemetry.readings import Book, Labels

__all__ = ["make_instruments"]

_FIRST: Final = "process.uptime"


def make_instruments(meter: Meter, book: Book, *, replay: bool) -> None:
    """Make all instruments; with `replay` the histograms too."""
    again = _Replay(meter, book) if replay else None
    makers: dict[str, Callable[..., object]] = {
        "counter": meter.create_observable_counter,
        "gauge": meter.create_observable_gauge,
        "updown": meter.create_observable_up_down_counter,
    }
    for metric in METRICS.values():
        if metric.kind == "histogram":
            continue
        make = makers[metric.kind]
        observe = _observer(metric, book)
        if again is not None and metric.name == _FIRST:
            observe = again.before(observe)
        make(metric.name, [observe], metric.unit, metric.description)


Observe = Callable[[CallbackOptions], Iterable[Observation]]


def _observer(metric: Metric, book: Book) -> Observe:
    def observe(_: CallbackOptions) -> Iterator[Observation]:
        for key, value in book.values(metric.name):
            yield Observation(value, dict(key))

    return observe


class _Replay:
    """Records in OpenTelemetry's own histograms what ours have counted since the last time."""

    def __init__(self, meter: Meter, book: Book) -> None:
        self._book = book
        self._seen: dict[tuple[str, Labels], tuple[list[int], float]] = {}
        self._record: dict[str, Callable[..., Any]] = {
            metric.name: meter.create_histogram(
                metric.name,
                metric.unit,
                metric.description,
                explicit_bucket_boundaries_advisory=list(metric.bounds),
            ).record
            for metric in METRICS.values()
            if metric.kind == "histogram"
        }

    def before(self, observe: Observe) -> Observe:
        """Return what replays, and then observes."""

        def both(options: CallbackOptions) -> Iterable[Observation]:
            self._replay()
            return observe(options)

        return both

    def _replay(self) -> None:
        for (name, key), histogram in self._book.histograms().items():
            counts, total = self._seen.get((name, key), ([0] * len(histogram.counts), 0.0))
            new = [now - before for now, before in zip(histogram.counts, counts, strict=True)]
            self._seen[name, key] = histogram.counts, histogram.total
            record, attributes = self._record[name], dict(key)
            for value, times in _spread(histogram, new, histogram.total - total):
                for _ in range(times):
                    record(value, attributes)


def _spread(histogram: Histogram, counts: list[int], total: float) -> Iterator[tuple[float, int]]:
    """Yield a value for each bucket, chosen so that their sum is as near as can be."""
    bounds = histogram.bounds
    lows = (0.0, *bounds)
    highs = (*bounds, max(bounds[-1], total))
    least = sum(low * count for low, count in zip(lows, counts, strict=True))
    most = sum(high * count for high, count in zip(highs, counts, strict=True))
    share = (total - least) / (most - least) if most > least else 1.0
    share = min(1.0, max(1e-6, share))
    for low, high, count in zip(lows, highs, counts, strict=True):
        if count:
            yield low + (high - low) * share, count
