"""What the tests of correlation share: entries of a timeline without a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmspell_dist.correlated import EventLink, EventRelationship
from llmspell_dist.correlation.building import build_timeline
from llmspell_dist.correlation.model import EntryKind, TimelineEntry
from llmspell_dist.correlation.timeline import Timeline

START_US = 1_795_651_555_954_000

R = EventRelationship


def entry(
    name: str,
    ms: float = 0,
    *,
    cause: str | None = None,
    type: str = "tool.called",  # noqa: A002 - the field's name
    source: str | None = None,
    target: str | None = None,
    language: str | None = None,
    tags: Sequence[str] = (),
) -> TimelineEntry:
    """An event at so many milliseconds after the start."""
    time_us = START_US + round(ms * 1000)
    return TimelineEntry(
        EntryKind.EVENT, name, type, time_us, cause, source, target, language, tags, None
    )


def link(later: str, earlier: str, relationship: str = "caused_by", strength: float = 0.8) -> Any:
    """A link from one entry to another."""
    return EventLink(later, earlier, EventRelationship.coerce(relationship), strength)


def ids(entries: Any) -> list[str]:
    """The ids of entries, in order."""
    return [one.id for one in entries]


def shape(timeline: Timeline) -> dict[str, tuple[list[str], int]]:
    """By id: the ids of its causes, and its depth."""
    return {one.id: (ids(timeline.causes(one)), one.depth) for one in timeline}


__all__ = ["START_US", "R", "build_timeline", "entry", "ids", "link", "shape"]
