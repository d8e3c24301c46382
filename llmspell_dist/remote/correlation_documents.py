"""What a sidecar tells of correlations, back to the library's timelines, entries and matches."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.changes import LogEntry, LoggedChange
from llmspell_dist.correlated import KIND_EVENT, EventLink, EventRelationship, HookRun, LeaseEvent
from llmspell_dist.correlation.entries import Collected
from llmspell_dist.correlation.model import EntryKind, TimelineConfig, TimelineEntry, to_us
from llmspell_dist.correlation.query import QueryMatch
from llmspell_dist.correlation.timeline import Timeline
from llmspell_dist.events.model import Event
from llmspell_dist.remote.documents import revision_of
from llmspell_dist.remote.event_documents import event_of
from llmspell_dist.revision import Revision

if TYPE_CHECKING:
    from llmspell_dist.codec import Codec

__all__ = ["entry_of", "match_of", "timeline_of"]

Document = Mapping[str, Any]


class _Data:
    """Gives the data of an event that came decoded."""

    __slots__ = ("_event",)

    def __init__(self, event: Event) -> None:
        self._event = event

    def event(self, raw: bytes) -> Event:  # noqa: ARG002 - what an entry asks
        """Return the event."""
        return self._event

    def data(self, raw: bytes) -> Any:  # noqa: ARG002 - what an entry asks
        """Return its data."""
        return self._event.data


# --- timelines ------------------------------------------------------------------------------------


def timeline_of(document: Document, config: TimelineConfig, codec: Codec) -> Timeline:
    """Return a timeline; `left_out` counts what whoever asked may not see as ``not_allowed``."""
    said = document["statistics"]
    return Timeline(
        document["correlation_id"],
        [entry_of(one, codec) for one in document["entries"]],
        [_link_of(one) for one in document["links"]],
        config,
        truncated=document["truncated"],
        strengths={(cause, effect): much for cause, effect, much in document["strengths"]},
        left_out=dict(said["left_out"]),
        unreadable=said["unreadable"],
    )


def _link_of(document: Document) -> EventLink:
    return EventLink(
        document["from_id"],
        document["to_id"],
        EventRelationship(document["relationship"]),
        document["strength"],
        document["metadata"],
    )


def match_of(document: Document, codec: Codec) -> QueryMatch:
    """Return an entry that a query found."""
    return QueryMatch(
        document["correlation_id"],
        entry_of(document["entry"], codec),
        document["score"],
        tuple(document["reasons"]),
    )


# --- entries --------------------------------------------------------------------------------------


def entry_of(document: Document, codec: Codec) -> TimelineEntry:
    """Return an entry with its detail."""
    kind, raw = EntryKind(document["kind"]), document["raw"]
    if kind is EntryKind.EVENT and raw is not None:
        entry = _unreadable(raw, codec)
        entry.time_us, entry.after = _time_us(document), document["after"]
    else:
        entry = _known(kind, document)
    entry.trimmed = document["trimmed"]
    entry.position, entry.depth = document["position"], document["depth"]
    entry.causes, entry.effects = tuple(document["causes"]), tuple(document["effects"])
    return entry


def _known(kind: EntryKind, document: Document) -> TimelineEntry:
    detail = document["raw"]
    if document["detail"] is not None:
        detail = _DETAILS[kind](document["detail"])
    return TimelineEntry(
        kind,
        document["id"],
        document["type"],
        _time_us(document),
        document["causation_id"],
        document["source"],
        document["target"],
        document["language"],
        document["tags"] if kind is EntryKind.EVENT else tuple(document["tags"]),
        detail,
        _Data(detail) if isinstance(detail, Event) else None,
        after=document["after"],
    )


def _unreadable(raw: bytes, codec: Codec) -> TimelineEntry:
    """Return an event whose data cannot be read: whoever asks for them is told so, as ever."""
    collected = Collected(codec)
    collected.add_page([(b"0-0", [b"k", KIND_EVENT, b"b", raw])])
    return collected.entries[0]


def _time_us(document: Document) -> int:
    return to_us(datetime.fromisoformat(document["time"]))


def _commit_of(document: Document) -> LogEntry:
    changes = tuple([_change_of(one) for one in document["changes"]])
    revision = Revision.parse(document["revision"])
    return LogEntry(revision, changes, document["operation"], document["meta"])


def _change_of(document: Document) -> LoggedChange:
    return LoggedChange(
        **{
            **document,
            "previous": revision_of(document["previous"]),
            "previous_in_scope": revision_of(document["previous_in_scope"]),
        }
    )


_DETAILS: Final[Mapping[EntryKind, Any]] = {
    EntryKind.EVENT: event_of,
    EntryKind.CHANGE: _commit_of,
    EntryKind.HOOK: lambda document: HookRun(**document),
    EntryKind.LEASE: lambda document: LeaseEvent(**document),
}
