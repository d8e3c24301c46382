"""The archive of the change log: shipped every few seconds, read from any moment to any other."""

from __future__ import annotations

from llmspell_dist.backup.archive.reader import Covered, SegmentReader
from llmspell_dist.backup.archive.shipper import Gap, Shipper, ShipperStats
from llmspell_dist.backup.archive.source import SegmentSource
from llmspell_dist.backup.archive.timelines import Branch, Timeline, Timelines

__all__ = [
    "Branch",
    "Covered",
    "Gap",
    "SegmentReader",
    "SegmentSource",
    "Shipper",
    "ShipperStats",
    "Timeline",
    "Timelines",
]
