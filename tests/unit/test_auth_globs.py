"""Patterns of grants: what they match, and why a request may be a pattern too."""

from __future__ import annotations

import re
import time
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.scope import Scope
from llmspell_dist.sidecar.auth.globs import Glob, check_grant_pattern, widened

pytestmark = [pytest.mark.unit, pytest.mark.security]

_LETTERS = "ab:/%"
_PATTERNS = st.text(_LETTERS + "*", max_size=8)
_TEXTS = st.text(_LETTERS, max_size=8)
_REQUESTS = st.text("ab:*?[]-\\", max_size=8)


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("*", "", True),
        ("*", "workflow:w1/step:plan", True),
        ("agent:alice", "agent:alice", True),
        ("agent:alice", "agent:alice2", False),
        ("agent:alice", "agent:alic", False),
        ("agent:alice", "agent:Alice", False),
        ("agent:alice", "agent:alice\n", False),
        ("agent:*", "agent:", True),
        ("agent:*", "Agent:alice", False),
        ("agent:*", "xagent:alice", False),
        ("agent:*", "agents:alice", False),
        ("agent:*", "agent:a\nb", True),
        ("agent:a%3Ab", "agent:a%3ab", False),
        ("agent:a.b", "agent:axb", False),
        ("workflow:w1/*", "workflow:w1/step:plan", True),
        ("workflow:w1", "workflow:w1/step:plan", False),
        ("workflow:w1/*", "workflow:w12/step:plan", False),
        ("*/step:plan", "workflow:w1/step:plan", True),
        ("a*a", "a", False),
        ("a*b*c", "abbbc", True),
        ("a*b*c", "acb", False),
        ("a**c", "abc", True),
        ("*aa*aa*", "aaa", False),
    ],
)
def test_a_star_stands_for_any_text_and_nothing_else_does(
    pattern: str, text: str, matches: bool
) -> None:
    """Case, escapes, prefixes and newlines are what they are."""
    assert Glob(pattern).matches(text) is matches


@given(pattern=_PATTERNS, text=_TEXTS | _PATTERNS)
def test_matching_is_that_of_a_regular_expression(pattern: str, text: str) -> None:
    """The quick way says what the slow one says."""
    slow = re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL)
    assert Glob(pattern).matches(text) is (slow.fullmatch(text) is not None)


@given(grant=_PATTERNS, request=_PATTERNS, fillings=st.lists(_TEXTS, min_size=8, max_size=8))
def test_a_granted_pattern_means_nothing_that_is_not_granted(
    grant: str, request: str, fillings: list[str]
) -> None:
    """If the grant matches the request's text, it matches all that the request can stand for."""
    head, *pieces = request.split("*")
    meant = head + "".join(fill + piece for fill, piece in zip(fillings, pieces, strict=False))
    if Glob(grant).matches(request):
        assert Glob(grant).matches(meant)


@given(grant=_PATTERNS, request=_REQUESTS, meant=st.text("ab:?[]-\\", max_size=8))
def test_no_other_wildcard_reaches_further_than_the_grant(
    grant: str, request: str, meant: str
) -> None:
    """Whatever Redis or a shell would make of ``?`` and ``[a-z]``, the grant covers it."""
    if Glob(grant).matches(widened(request)) and fnmatchcase(meant, request):
        assert Glob(grant).matches(meant)


def test_a_class_of_characters_is_covered_only_by_a_star() -> None:
    """The letters inside of it are none that a grant's pattern could mean."""
    assert not Glob("*a-z*").matches(widened("[a-z]"))
    assert not Glob("agent:\\*").matches(widened("agent:\\\\*"))
    assert Glob("agent:*").matches(widened("agent:[ab]*"))


def test_a_hostile_text_costs_no_more_than_its_length() -> None:
    """There is no backtracking: what a regular expression would take years for ends at once."""
    pattern, text = Glob("*a" * 20 + "*b"), "a" * 20_000
    started = time.process_time()
    assert not pattern.matches(text + "c")
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    "pattern",
    [
        *("*", "global", "agent:*", "agent:alice", "*:alice", "agent*", "workflow:w1/*"),
        *("workflow:w1/step:plan", "workflow:*/step:plan", "agent:a%3Ab", "agent:a%3A*"),
        *("event:orders.*", "event:*", "correlation:0198-ab", "backup:*", "agent:zoë"),
    ],
)
def test_a_pattern_that_can_match_is_taken(pattern: str) -> None:
    """As it is."""
    assert check_grant_pattern(pattern) == pattern


@pytest.mark.parametrize(
    ("pattern", "rule"),
    [
        ("", "characters"),
        ("x" * 1025, "characters"),
        ("agents:*", "begin as"),
        ("Agent:*", "begin as"),
        ("alice", "begin as"),
        ("step:plan", "begin as"),
        ("agent:", "after the colon"),
        ("agent:a b", "wildcard"),
        ("agent:?lice", "wildcard"),
        ("agent:[ab]", "wildcard"),
        ("agent:a\x00", "wildcard"),
        ("agent:a%3ab", "percent-encoded"),
        ("agent:a%3a*", "percent-encoded"),
        ("agent:%61lice", "percent-encoded"),
        ("agent:%2*", "percent-encoded"),
        ("agent:a/b", "percent-encoded"),
        ("agent:zoe\u0308", "NFC"),
        ("agent:zoe\u0308*", "NFC"),
    ],
)
def test_a_pattern_that_could_match_no_scope_is_refused(pattern: str, rule: str) -> None:
    """It would look like a grant: a misspelt kind, another spelling of an escape, no NFC."""
    with pytest.raises(InvalidArgumentError, match=rule):
        check_grant_pattern(pattern)


@given(raw=st.text(min_size=1, max_size=20))
def test_every_scope_can_be_granted_by_its_own_text(raw: str) -> None:
    """And that grants it, and no scope with a longer id."""
    scope = Scope.agent(raw)
    glob = Glob(check_grant_pattern(scope.text))
    assert glob.matches(scope.text)
    assert not glob.matches(Scope.agent(f"{raw}2").text)
