"""Links that nobody made: guessed from types and times, for entries that say no cause.

Each entry is compared with the ten before it within a minute. What two types are to each other by
their names goes before what their times suggest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from llmspell_dist.context import MAX_BYTES
from llmspell_dist.correlated import EventLink, EventRelationship

if TYPE_CHECKING:
    from llmspell_dist.correlation.model import TimelineEntry

__all__ = ["auto_links"]

LOOK_BACK: Final = 10
LOOK_BACK_US: Final = 60_000_000
CONCURRENT_US: Final = 100_000
FOLLOWS_US: Final = 5_000_000
STRENGTH: Final = 0.8
_BEGINS, _ENDS = (".start", ".started"), (".end", ".ended", ".complete", ".completed")


def auto_links(entries: Sequence[TimelineEntry]) -> list[EventLink]:
    """Return links from each entry to earlier ones, of the last ten within 60 s, strength 0.8.

    `entries` in time order. Of each pair the first rule that fits makes the link: ``….response`` to
    ``….request`` of the same name is `RESPONSE_TO`; ``….end`` to ``….start`` is `PART_OF`; less
    than 100 ms apart is `CONCURRENT_WITH`; less than 5 s apart is `FOLLOWS_FROM`, and that only to
    the nearest. Entries with a causation id are left alone: their cause is known. So are those
    whose id is too long for an end of a link, as a lease's can be.
    """
    links: list[EventLink] = []
    entries = [entry for entry in entries if 0 < len(entry.id.encode()) <= MAX_BYTES]
    for place, entry in enumerate(entries):
        if entry.causation_id is not None:
            continue
        followed = False
        for earlier in reversed(entries[max(0, place - LOOK_BACK) : place]):
            apart = entry.time_us - earlier.time_us
            if apart >= LOOK_BACK_US:
                break
            relationship = relationship_by_type(earlier.type, entry.type)
            if relationship is None and apart < CONCURRENT_US:
                relationship = EventRelationship.CONCURRENT_WITH
            if relationship is None and apart < FOLLOWS_US and not followed:
                relationship = EventRelationship.FOLLOWS_FROM
                followed = True
            if relationship is not None and entry.id != earlier.id:
                links.append(EventLink(entry.id, earlier.id, relationship, STRENGTH))
    return links


def relationship_by_type(earlier: str, later: str) -> EventRelationship | None:
    """Return what the later of two types is to the earlier one, as far as their names tell."""
    if "response" in later and later.replace("response", "request") == earlier:
        return EventRelationship.RESPONSE_TO
    for end in _ENDS:
        name = later.removesuffix(end)
        if name != later and any(earlier == name + start for start in _BEGINS):
            return EventRelationship.PART_OF
    return None
