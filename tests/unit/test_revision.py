"""Revisions: ordered, printable, packed."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.revision import NO_REVISION, Revision, from_ms, to_ms

pytestmark = pytest.mark.unit
revisions = st.builds(Revision, st.integers(0, 2**48 - 1), st.integers(0, 2**32 - 1))


@given(revisions)
def test_every_form_comes_back(revision: Revision) -> None:
    """Text, bytes of text, packed, pickled."""
    assert Revision.parse(str(revision)) == revision
    assert Revision.parse(str(revision).encode()) == revision
    assert len(revision.packed) == 10
    expected = None if revision.packed == NO_REVISION else revision
    assert Revision.unpack(revision.packed) == expected
    assert pickle.loads(pickle.dumps(revision)) == revision  # noqa: S301


@given(revisions, revisions)
def test_packed_bytes_are_ordered_like_revisions(a: Revision, b: Revision) -> None:
    """And like time, then sequence."""
    assert (a < b) == (a.packed < b.packed) == ((a.ms, a.seq) < (b.ms, b.seq))


@pytest.mark.parametrize(
    "text",
    ["", "-", "1", "1-", "-1", "1-2-3", "a-b", "1-b", "+1-1", "1.0-1", " 1-1", b"x-1", None, 5,
     f"{2**48}-0", f"0-{2**32}", "1" * 5000 + "-0", "١-١"],
)  # fmt: skip
def test_text_that_is_no_revision_is_refused(text: Any) -> None:
    """With an example of one that is."""
    with pytest.raises(InvalidArgumentError) as caught:
        Revision.parse(text)
    assert caught.value.argument == "revision"


def test_time_is_that_of_the_server_to_the_millisecond() -> None:
    """Aware, UTC, without the rounding of floats."""
    moment = Revision(1_732_374_145_123, 0).time
    assert moment == datetime(2024, 11, 23, 15, 2, 25, 123_000, UTC)
    assert to_ms(moment) == 1_732_374_145_123


@given(st.integers(0, 253_402_300_799_999))
def test_milliseconds_and_times_are_inverse(ms: int) -> None:
    """In any zone."""
    moment = from_ms(ms)
    assert to_ms(moment) == ms
    assert to_ms(moment + timedelta(microseconds=999)) == ms
    if ms > 86_400_000:
        assert to_ms(moment.astimezone(timezone(timedelta(hours=-5)))) == ms


def test_a_time_without_a_zone_is_refused() -> None:
    """Nobody knows whose clock it is."""
    with pytest.raises(InvalidArgumentError, match="aware"):
        to_ms(datetime(2024, 1, 1))  # noqa: DTZ001
