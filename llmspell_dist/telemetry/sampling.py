"""Whether an operation is traced, decided before OpenTelemetry is asked: so a no costs nothing.

A span that a sampler drops costs 4 to 8 µs all the same, as much as the read that it is of.
So the decisions of the known samplers are made here: how many operations until the next one that is
sampled is drawn once for all of them, and one step of an iterator says no. What is sampled gets a
trace id that the sampler would have said yes to, and then OpenTelemetry's own tracer says so.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from itertools import chain, repeat
from math import log, log1p
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN, Span

from llmspell_dist.errors import SpellError

__all__ = ["SPAN_KEY", "Head", "IdsWithin", "active_span", "code_of", "current_context", "ratio_of"]

_LOW_BITS: Final = 1 << 64
_MOST: Final = 1 << 40
"""No more operations than this are left out in a row: as good as never."""
_RATIO: Final = re.compile(r"TraceIdRatioBased\{(?P<ratio>[0-9.e+-]+)\}")
_ROOT: Final = re.compile(r"ParentBased\{root:(?P<root>.*?),remoteParentSampled:AlwaysOnSampler,")
_STANDARD_PARENT: Final = (
    "remoteParentSampled:AlwaysOnSampler,remoteParentNotSampled:AlwaysOffSampler,"
    "localParentSampled:AlwaysOnSampler,localParentNotSampled:AlwaysOffSampler}"
)


def _context_reader() -> Callable[[], Any]:
    """Return what gives the current context: the context variable itself, if that is what it is."""
    runtime = getattr(otel_context, "_RUNTIME_CONTEXT", None)
    variable = getattr(runtime, "_current_context", None)
    return variable.get if isinstance(variable, ContextVar) else otel_context.get_current


current_context: Final = _context_reader()
"""Returns the context in force; empty if nothing is."""
SPAN_KEY: Final[str | None] = getattr(trace.propagation, "_SPAN_KEY", None)


def active_span() -> Span:
    """Return the active span; an invalid one if there is none."""
    context = current_context()
    if not context:
        return INVALID_SPAN
    if SPAN_KEY is None:
        return trace.get_current_span()
    span: Span = context.get(SPAN_KEY, INVALID_SPAN)
    return span


def code_of(error: BaseException) -> str:
    """Return what ``error.type`` says of an error: a stable code, or the type of a foreign one."""
    return error.code if isinstance(error, SpellError) else type(error).__qualname__


def ratio_of(sampler: object) -> float | None:
    """Return the share of roots that a sampler takes, if its children follow their parent.

    None for any other sampler: that one is asked each time. What a sampler is, its description
    says, as OpenTelemetry specifies it.
    """
    describe = getattr(sampler, "get_description", None)
    said = describe() if callable(describe) else ""
    found = _ROOT.match(said)
    if found is None or not said.endswith(_STANDARD_PARENT):
        return None
    root = found["root"]
    if root == "AlwaysOnSampler":
        return 1.0
    if root == "AlwaysOffSampler":
        return 0.0
    ratio = _RATIO.fullmatch(root)
    return None if ratio is None else float(ratio["ratio"])


class _Gaps:
    """How many operations are left out, then that one is sampled, and so on.

    An iterator and no generator: two threads may be in it at once.
    """

    def __init__(self, ratio: float, draw: Callable[[], float]) -> None:
        self._ratio = ratio
        self._draw = draw

    def __iter__(self) -> Iterator[Iterator[bool]]:
        return self

    def __next__(self) -> Iterator[bool]:
        ratio = self._ratio
        if ratio >= 1:
            return iter((True,))
        if ratio <= 0:
            return repeat(False, _MOST)
        gap = min(_MOST, int(log(1.0 - self._draw()) / log1p(-ratio)))
        return chain(repeat(False, gap), (True,))


class Head:
    """Decides for one tracer."""

    def __init__(self, ratio: float | None, *, draw: Callable[[], float] = random.random) -> None:
        self.ratio = ratio
        """Of roots; None: OpenTelemetry's own sampler is asked."""
        gaps = _Gaps(1.0 if ratio is None else ratio, draw)
        self.root: Callable[[], bool] = chain.from_iterable(gaps).__next__
        """Whether the next operation that has no parent is to be recorded."""

    def wants(self) -> bool:
        """Whether what begins now is to be recorded: as its parent is, else as is drawn."""
        if not current_context():
            return self.root()
        parent = active_span().get_span_context()
        if parent.is_valid:
            return parent.trace_flags.sampled or self.ratio is None
        return self.root()


class IdsWithin:
    """Makes ids of traces that a ratio takes; an `IdGenerator` around the tracer's own.

    The sampler takes a trace whose low 64 bits are under a bound, so they are drawn from there.
    """

    def __init__(self, inner: Any, ratio: float) -> None:
        self._inner = inner
        self._bound = max(2, min(_LOW_BITS, round(ratio * _LOW_BITS)))

    def generate_trace_id(self) -> int:
        """Return a trace id under the bound."""
        low = random.getrandbits(64) % self._bound  # C code only; the bias is under 2**-50
        return random.getrandbits(64) << 64 | (low or 1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
