"""Timelines as documents: what was where and why, without the values and the data.

`detail_document` has the rest of an entry, for clients that are given the library's own objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.changes import LogEntry, Op
from llmspell_dist.correlated import HookRun, LeaseEvent
from llmspell_dist.correlation.model import EntryKind
from llmspell_dist.errors import SpellError
from llmspell_dist.events.model import Event

if TYPE_CHECKING:
    from llmspell_dist.changes import LoggedChange
    from llmspell_dist.correlation.model import TimelineEntry
    from llmspell_dist.correlation.timeline import Timeline
    from llmspell_dist.revision import Revision

__all__ = ["about", "detail_document", "entry_document", "timeline_document"]

_KEYS_SHOWN: Final = 3
_OPS: Final = {int(op): op.name.lower() for op in Op}


def timeline_document(timeline: Timeline, *, details: bool = False) -> dict[str, Any]:
    """Return a timeline without the values and data of its entries.

    With `details` all that its objects have, but values of the state, which they have not either.
    """
    said = timeline.statistics
    document: dict[str, Any] = {
        "correlation_id": timeline.correlation_id,
        "entries": [entry_document(timeline, entry) for entry in timeline],
        "links": [
            {
                "from_id": link.from_id,
                "to_id": link.to_id,
                "relationship": link.relationship.value,
                "strength": link.strength,
            }
            for link in timeline.links
        ],
        "truncated": timeline.truncated,
        "statistics": {
            "entries": said.entries,
            "by_kind": dict(said.by_kind),
            "by_type": dict(said.by_type),
            "by_source": dict(said.by_source),
            "duration_s": said.duration.total_seconds(),
            "average_gap_s": said.average_gap.total_seconds(),
            "max_depth": said.max_depth,
            "roots": said.roots,
            "leaves": said.leaves,
            "unresolved": said.unresolved,
            "trimmed": said.trimmed,
            "unreadable": said.unreadable,
            "left_out": dict(said.left_out),
        },
    }
    if details:
        for shown, entry in zip(document["entries"], timeline, strict=True):
            shown.update(detail_document(entry))
        for shown, link in zip(document["links"], timeline.links, strict=True):
            shown["metadata"] = dict(link.metadata)
        document["strengths"] = [[*edge, strength] for edge, strength in timeline.strengths.items()]
    return document


def entry_document(timeline: Timeline | None, entry: TimelineEntry) -> dict[str, Any]:
    """Return one entry; `causes` and `effects` are positions.

    Without its timeline nothing is said of the time since the first entry.
    """
    return {
        "position": entry.position,
        "kind": entry.kind.value,
        "id": entry.id,
        "type": entry.type,
        "time": entry.time.isoformat(),
        "relative_s": 0.0 if timeline is None else timeline.relative_time(entry).total_seconds(),
        "source": entry.source,
        "target": entry.target,
        "about": about(entry),
        "causation_id": entry.causation_id,
        "causes": list(entry.causes),
        "effects": list(entry.effects),
        "depth": entry.depth,
        "trimmed": entry.trimmed,
    }


def detail_document(entry: TimelineEntry) -> dict[str, Any]:
    """Return what `entry_document` leaves out: `TimelineEntry.detail`, an event's data with it.

    Values of the state are in no timeline, so they are not here either.
    """
    return {
        "language": entry.language,
        "tags": list(entry.tags),
        "after": entry.after,
        **_detail(entry),
    }


def _detail(entry: TimelineEntry) -> dict[str, Any]:
    """Return the detail as builtins, or the bytes of what cannot be read."""
    try:
        detail = entry.detail
    except SpellError:
        return {"detail": None, "raw": entry.raw}
    if isinstance(detail, bytes):
        return {"detail": None, "raw": detail}
    if isinstance(detail, LogEntry):
        return {"detail": _commit_document(detail), "raw": None}
    if isinstance(detail, (Event, HookRun, LeaseEvent)):
        names = type(detail).__slots__
        return {"detail": {name: getattr(detail, name) for name in names}, "raw": None}
    return {"detail": None, "raw": None}


def _commit_document(entry: LogEntry) -> dict[str, Any]:
    return {
        "revision": str(entry.revision),
        "operation": entry.operation,
        "meta": entry.meta,
        "changes": [_change_document(change) for change in entry.changes],
    }


def _change_document(change: LoggedChange) -> dict[str, Any]:
    return change._asdict() | {
        "previous": _text(change.previous),
        "previous_in_scope": _text(change.previous_in_scope),
    }


def _text(revision: Revision | None) -> str | None:
    return None if revision is None else str(revision)


def about(entry: TimelineEntry) -> str | None:
    """Return what it is about, as far as a line has room: scope and keys, a hook's result."""
    if entry.trimmed:
        return "(trimmed)"
    if entry.kind is EntryKind.UNKNOWN:
        return "(cannot be read here)"
    detail = entry.detail if entry.kind is not EntryKind.EVENT else None
    if isinstance(detail, LogEntry):
        return _changed(detail)
    if isinstance(detail, HookRun):
        return detail.result if detail.error is None else f"{detail.result}: {detail.error}"
    if isinstance(detail, LeaseEvent):
        return entry.target if detail.reason is None else f"{entry.target}: {detail.reason}"
    return entry.target


def _changed(entry: LogEntry) -> str:
    mixed = len({change.op for change in entry.changes}) > 1
    by_scope: dict[str, list[str]] = {}
    for change in entry.changes:
        op = f"{_OPS.get(change.op, 'change')} " if mixed else ""
        by_scope.setdefault(change.scope, []).append(f"{op}{change.key}".strip())
    parts = []
    for scope, keys in by_scope.items():
        shown = ", ".join(keys[:_KEYS_SHOWN])
        more = f" and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else ""
        parts.append(f"{scope} {shown}{more}".strip())
    return "; ".join(parts)
