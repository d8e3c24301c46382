"""The seam at which a client can be observed: spans, and counts that cost next to nothing.

What stands behind it is chosen once, when the client is put together. Without telemetry it is
`NOTHING_OBSERVED`, and nothing here imports OpenTelemetry; `llmspell_dist.telemetry` is the other
side.
"""

from __future__ import annotations

from bisect import bisect_left
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmspell_dist.redis.metering import Meter

__all__ = [
    "BOUNDS_S",
    "NOTHING_OBSERVED",
    "SIZE_BOUNDS",
    "Histogram",
    "HotTracing",
    "Observer",
    "Span",
    "TelemetrySource",
]

C = TypeVar("C", bound=type)

BOUNDS_S: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Upper bounds of durations: those that the conventions name, and finer ones, since most answers of
a store in memory come within a millisecond."""
SIZE_BOUNDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


class Histogram:
    """Counts by bucket, and the sum: what a reader of metrics takes away whenever it likes."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...] = BOUNDS_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count a value, that many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def merge(self, other: Histogram) -> None:
        """Add what another one of the same bounds has counted."""
        for place, count in enumerate(other.counts):
            self.counts[place] += count
        self.total += other.total

    @property
    def count(self) -> int:
        """How many values that were."""
        return sum(self.counts)


class Span(Protocol):
    """What goes on, as far as somebody records it. Values and secrets are no attributes."""

    def set(self, name: str, value: str | float | bool) -> None:
        """Add an attribute."""

    def event(self, name: str) -> None:
        """Note that something happened meanwhile."""


class Observer(Protocol):
    """Is told what a client does."""

    tracing: bool
    """Whether anybody wants spans at all."""

    def span(
        self,
        name: str,
        kind: str = "internal",
        attributes: Mapping[str, Any] | None = None,
        *,
        parent: str | None = None,
        covers: bool = False,
    ) -> AbstractContextManager[Span]:
        """Record what the block does, if it is sampled; an error that leaves it is noted by code.

        `kind`: ``internal``, ``client``, ``producer`` or ``consumer``. `parent`: the traceparent of
        what it goes on with, else the active span. With `covers` what is not sampled stays so for
        all that happens inside.
        """

    def traceparent(self) -> str | None:
        """Return the active span as the W3C header says it; None without one."""

    def recording(self) -> bool:
        """Whether the active span is recorded."""

    def ran(
        self,
        name: str,
        attributes: Mapping[str, Any],
        began: float,
        ended: float,
        error: str | None = None,
    ) -> None:
        """Record what has ended already, by `time.perf_counter`."""


class HotTracing(Protocol):
    """Decides whether a `get` or `set` is recorded, and carries out those that are.

    The two are so quick that one more call would be felt: they ask in line. `context` and `root`
    are functions of C, and `wants` is called only where a span is active.
    """

    context: Callable[[], Any]
    """Gives what is false if no span can be active."""
    root: Callable[[], bool]
    """Gives whether the next operation without a parent is recorded."""
    get: Callable[..., Any]
    """Carries out `StateManager.get`, recorded."""
    set: Callable[..., Any]
    """Carries out `StateManager.set`, recorded."""

    def wants(self) -> bool:
        """Whether what begins now is recorded, where a span may be active."""


class _Unseen:
    """The span of what nobody records; a context manager that does nothing."""

    __slots__ = ()

    def set(self, name: str, value: object) -> None:
        pass

    def event(self, name: str) -> None:
        pass

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None


UNSEEN: Final = _Unseen()


class _NothingObserved:
    """No observer."""

    tracing = False

    def span(self, *_: Any, **__: Any) -> AbstractContextManager[Span]:
        return UNSEEN

    def traceparent(self) -> str | None:
        return None

    def recording(self) -> bool:
        return False

    def ran(self, *_: Any) -> None:
        raise AssertionError("told although nothing is observed")


NOTHING_OBSERVED: Final[Observer] = _NothingObserved()


@runtime_checkable
class TelemetrySource(Protocol):
    """What `Options.telemetry` may be: `llmspell_dist.telemetry.Telemetry`."""

    def observer(self, facts: Mapping[str, Any]) -> Observer:
        """Return what is told of a new client, about whose server these facts are known."""

    def meter(self) -> Meter | None:
        """Return what counts on the connections of a new client; None: nothing does."""

    def state_class(self, kind: C, observer: Observer) -> C:
        """Return the class of state managers to use for this one."""

    def attach(
        self,
        client: Any,
        meter: Meter | None,
        facts: Mapping[str, Any],
        listening: Callable[[], list[Any]],
    ) -> None:
        """Read this client's counts from now on, until it is gone.

        `listening` gives those who hear of changes now: watches, among others.
        """

    def detach(self, client: Any) -> None:
        """Read this client's counts a last time: it is being closed."""
