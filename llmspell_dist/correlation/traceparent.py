"""The header ``traceparent`` and its companion ``tracestate``, as W3C Trace Context defines them.

Source: W3C Trace Context, https://www.w3.org/TR/trace-context/ (Recommendation, and level 2 for
what a state's key may be). Parsing is pure and strict: what the specification calls invalid is
None, so that a caller starts anew.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from llmspell_dist.errors import InvalidArgumentError

__all__ = [
    "SAMPLED",
    "TraceParent",
    "active_traceparent",
    "check_traceparent",
    "combine_tracestate",
    "new_traceparent",
    "parse_traceparent",
]

SAMPLED: Final = 0x01
"""The flag of who may have recorded the trace."""
_KNOWN_FLAGS: Final = 0x03
"""Sampled, and (level 2) that the trace id is random."""
_LENGTH: Final = 55
_SHAPE: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", re.ASCII)
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
_VERSION_0, _NO_VERSION = "00", "ff"

_STATE_KEY: Final = r"[a-z0-9][a-z0-9_\-*/@]{0,255}"
_STATE_VALUE: Final = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_STATE: Final = re.compile(rf"({_STATE_KEY})=({_STATE_VALUE})", re.ASCII)
_MAX_MEMBERS: Final = 32
_MAX_STATE: Final = 512
"""Characters of a tracestate that must be passed on; longer ones lose whole members."""
_LARGE_MEMBER: Final = 128
"""Larger ones go first."""


class TraceParent(NamedTuple):
    """A ``traceparent``: ``str`` gives the header's value, in version 00."""

    trace_id: str
    """32 lower-case hex digits, not all zero."""
    span_id: str
    """16 lower-case hex digits, not all zero: the caller's span; the header calls it parent-id."""
    flags: int = SAMPLED

    def __str__(self) -> str:
        return f"{_VERSION_0}-{self.trace_id}-{self.span_id}-{self.flags:02x}"

    @property
    def sampled(self) -> bool:
        """Whether the caller may have recorded it."""
        return bool(self.flags & SAMPLED)

    def child(self) -> TraceParent:
        """Return a new span of the same trace; flags that mean nothing yet are zero in it."""
        return self._replace(span_id=_random_hex(8), flags=self.flags & _KNOWN_FLAGS)


def parse_traceparent(value: object) -> TraceParent | None:
    """Read a header's value; None if the specification calls it invalid.

    A version after 00 is read as far as this one knows it: its first four fields, and of its flags
    those that are defined today. Surrounding spaces are no part of a header's value.
    """
    if not isinstance(value, str):
        return None
    value = value.strip(" \t")
    found = _SHAPE.match(value)
    if found is None:
        return None
    version, trace_id, span_id, flags = found.groups()
    if version == _NO_VERSION or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    if len(value) > _LENGTH and (version == _VERSION_0 or value[_LENGTH] != "-"):
        return None
    bits = int(flags, 16)
    return TraceParent(trace_id, span_id, bits if version == _VERSION_0 else bits & _KNOWN_FLAGS)


def check_traceparent(value: object, argument: str = "traceparent") -> TraceParent:
    """Read a traceparent that the caller made; `InvalidArgumentError` if it is none."""
    found = parse_traceparent(value)
    if found is None:
        rule = "must be a W3C traceparent: 00-<32 hex>-<16 hex>-<2 hex>, ids not all zero"
        raise InvalidArgumentError(argument, value, rule)
    return found


def new_traceparent() -> TraceParent:
    """Return the beginning of a new trace.

    It says "sampled": whoever continues it by the parent's decision would drop it otherwise.
    """
    return TraceParent(_random_hex(16), _random_hex(8), SAMPLED)


def _random_hex(size: int) -> str:
    while True:
        made = os.urandom(size).hex()
        if made.strip("0"):
            return made


def active_traceparent() -> TraceParent | None:
    """Return the span of OpenTelemetry that is active here; None without one.

    OpenTelemetry is not imported for this: where nobody has imported it, no span is active.
    """
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return TraceParent(
        f"{context.trace_id:032x}", f"{context.span_id:016x}", int(context.trace_flags)
    )


def combine_tracestate(values: Iterable[str]) -> str | None:
    """Return the value of one or more ``tracestate`` headers, to be passed on as it is.

    None if there is nothing to pass on, or if a part of it is malformed: the specification then
    drops all of it. Of a key that comes twice the first is kept.
    """
    members: dict[str, str] = {}
    for part in ",".join(values).split(","):
        member = part.strip(" \t")
        if not member:
            continue
        found = _STATE.fullmatch(member)
        if found is None:
            return None
        members.setdefault(found[1], member)
    if len(members) > _MAX_MEMBERS:
        return None
    kept = list(members.values())
    while len(",".join(kept)) > _MAX_STATE:
        large = [place for place, one in enumerate(kept) if len(one) > _LARGE_MEMBER]
        kept.pop(large[-1] if large else -1)
    return ",".join(kept) or None
