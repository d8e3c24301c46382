"""Durations, moments and revisions as they are typed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from llmspell_dist.cli.arguments import parse_expected, parse_moment, parse_ttl
from llmspell_dist.cli.output import printable
from llmspell_dist.errors import InvalidArgumentError, InvalidTTLError
from llmspell_dist.revision import Revision
from llmspell_dist.ttl import KEEP

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("15m", 900),
        ("2h", 7200),
        ("7d", 604_800),
        ("1w", 604_800),
        ("500ms", 0.5),
        ("1h30m", 5400),
        ("1.5h", 5400),
    ],
)
def test_a_duration_has_units(text: str, seconds: float) -> None:
    """Singly or one after the other."""
    assert parse_ttl(text) == timedelta(seconds=seconds)


def test_a_plain_number_is_seconds() -> None:
    """As in every other tool of Redis."""
    assert parse_ttl("90") == 90


def test_no_duration_keeps_the_expiry_and_none_removes_it() -> None:
    """The two are different."""
    assert parse_ttl(None) is KEEP
    assert parse_ttl("none") is None


@pytest.mark.parametrize("text", ["", "s", "5x", "-5s", "5 s", "1h30", "nan", "٣s", "9" * 80 + "d"])
def test_a_wrong_duration_is_refused(text: str) -> None:
    """With an error that says how it should look."""
    with pytest.raises(InvalidTTLError, match="90s"):
        parse_ttl(text)


def test_a_moment_is_a_revision_or_an_iso_time() -> None:
    """Told apart by their looks."""
    assert parse_moment("1732374145123-7") == Revision(1732374145123, 7)
    assert parse_moment("2026-11-23T15:30:00Z") == datetime(2026, 11, 23, 15, 30, tzinfo=UTC)


def test_a_time_without_zone_is_of_this_machine() -> None:
    """So that one can type what the clock on the wall shows."""
    moment = parse_moment("2026-11-23 15:30")
    assert isinstance(moment, datetime)
    assert moment.tzinfo is not None
    assert moment.replace(tzinfo=None) == datetime(2026, 11, 23, 15, 30)  # noqa: DTZ001


@pytest.mark.parametrize("text", ["", "yesterday", "2026-11", "12-0-1"])
def test_a_wrong_moment_is_refused(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(InvalidArgumentError):
        parse_moment(text)


def test_expected_none_means_absent() -> None:
    """Beside a revision."""
    assert parse_expected("none") is None
    assert parse_expected("1732374145123-0") == Revision(1732374145123, 0)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 日本", "plain é 日本"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\tb\n", "a\\tb\\n"),
        ("a\u202eb", "a\\u202eb"),
        ("a\x9bb", "a\\x9bb"),
    ],
)
def test_what_steers_a_terminal_is_escaped(text: str, shown: str) -> None:
    """A key comes from anybody and must not rewrite the screen."""
    assert printable(text) == shown
