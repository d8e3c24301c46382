"""Going on in the correlation of what one handles: an event that came, a change that was seen."""

from __future__ import annotations

from llmspell_dist.changes import LogEntry
from llmspell_dist.context import CommitContext
from llmspell_dist.correlation.context import CorrelationContext
from llmspell_dist.correlation.traceparent import parse_traceparent
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.events.model import Event
from llmspell_dist.state.model import Change

__all__ = ["following"]


def following(cause: Event | Change | LogEntry) -> CorrelationContext:
    """Return the context for what is done because of an event or a change.

    ``with correlation(following(event)):`` goes on in its correlation and trace, and names it as
    the cause. One that belongs to no correlation begins a new one, and is its cause all the same.
    """
    if isinstance(cause, Event):
        said = CommitContext(correlation_id=cause.correlation_id, traceparent=cause.traceparent)
        cause_id = cause.id
    elif isinstance(cause, Change):
        said, cause_id = cause.context, str(cause.revision)
    elif isinstance(cause, LogEntry):
        said, cause_id = CommitContext.from_wire(cause.meta), str(cause.revision)
    else:
        raise InvalidArgumentError("cause", cause, "must be an Event, a Change or a LogEntry")
    trace = parse_traceparent(said.traceparent)  # free text is allowed there
    traceparent = None if trace is None else str(trace)
    if said.correlation_id is None:
        root = CorrelationContext.new_root(traceparent=traceparent)
        return CorrelationContext(
            correlation_id=root.correlation_id,
            traceparent=root.traceparent,
            causation_id=cause_id,
        )
    return CorrelationContext(
        correlation_id=said.correlation_id,
        root_id=said.root_id or said.correlation_id,
        traceparent=traceparent,
        causation_id=cause_id,
    )
