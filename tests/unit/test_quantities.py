"""Numbers and durations in words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from llmspell_dist.backup.collecting import Garbage
from llmspell_dist.backup.targets.base import ObjectInfo
from llmspell_dist.quantities import counted, spoken
from llmspell_dist.retention import Retention

pytestmark = pytest.mark.unit


def test_one_is_not_many() -> None:
    """With another plural where it is no `s`."""
    assert [counted(number, "key") for number in (0, 1, 1200)] == ["0 keys", "1 key", "1,200 keys"]
    assert counted(2, "entry", "entries") == "2 entries"


def test_durations_are_said_as_they_are_typed() -> None:
    """In the notation of ``--ttl``."""
    assert [spoken(one) for one in (0.05, 4.2, 192, 183_600)] == ["50ms", "4.2s", "3m12s", "2d3h"]
    assert "younger than 7d;" in str(Retention(max_age=timedelta(days=7)))


def test_what_is_found_is_counted_in_words() -> None:
    """One object is no `1 objects`."""
    one = [ObjectInfo("name", 7, datetime(2026, 11, 26, tzinfo=UTC))]
    found = str(Garbage(objects=one, keys=one, drills=one))
    assert found.startswith("1 object, 1 key, 0 notes, 1 result of drills and 0 unfinished uploads")
