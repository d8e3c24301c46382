from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

import pytest

from llmspell_dist.ack import LOCAL_FSYNC, MEMORY, REPLICATED_ALL, Ack, AckKind, replicated
from llmspell_dist.classes import BEHAVIOURS, ClassRules, StateClass
from llmspell_dist.errors import InvalidArgumentError, InvalidScopeError, InvalidTTLError
from llmspell_dist.retention import Retention
from llmspell_dist.scope import Scope
from llmspell_dist.ttl import KEEP, MAX_TTL_MS, ttl_ms

pytestmark = pytest.mark.unit
AGENT = Scope.agent("a")


def test_class_numbers_are_pinned() -> None:
    """They stand in stored records."""
    assert [(c.name, int(c)) for c in StateClass] == [
        ("STANDARD", 0), ("CRITICAL", 1), ("BULK", 2), ("EPHEMERAL", 3),
        ("TRUSTED", 4), ("SENSITIVE", 5), ("EXTERNAL", 6), ("ARCHIVE", 7),
    ]  # fmt: skip
    assert set(BEHAVIOURS) == set(StateClass)
    assert StateClass.EPHEMERAL.behaviour.default_ttl == timedelta(hours=1)
    assert [c.name for c in StateClass if not c.behaviour.log_payload] == ["BULK", "EPHEMERAL"]


def test_argument_beats_pattern_beats_scope_beats_kind_beats_default() -> None:
    """The order in which a class is found."""
    rules = ClassRules(
        patterns=(("tmp:*", StateClass.EPHEMERAL), ("tmp:keep*", StateClass.CRITICAL)),
        scopes={"agent:a": StateClass.BULK, "agent": "trusted"},  # type: ignore[dict-item]
        default=StateClass.ARCHIVE,
    ).resolver()
    for _ in range(2):
        assert rules.resolve(AGENT, "tmp:x", "sensitive") is StateClass.SENSITIVE
        assert rules.resolve(AGENT, "tmp:keep") is StateClass.EPHEMERAL
        assert rules.resolve(AGENT, "x") is StateClass.BULK
        assert rules.resolve(Scope.agent("b"), "x") is StateClass.TRUSTED
        assert rules.resolve(Scope.tool("b"), "x") is StateClass.ARCHIVE
    assert ClassRules().resolver().resolve(AGENT, "x") is StateClass.STANDARD


@pytest.mark.parametrize(
    ("key", "expected"),
    [("test:x", "trusted"), ("temp:x", "ephemeral"), ("my_token", "sensitive"),
     ("external:x", "external"), ("x", "standard"), ("test:secret", "trusted")],
)  # fmt: skip
def test_inferred_rules_guess_from_the_key(key: str, expected: str) -> None:
    """As rs-llmspell did, and only if asked for."""
    assert str(ClassRules.inferred().resolver().resolve(AGENT, key)) == expected


@pytest.mark.parametrize("bad", ["nope", 3, None, True])
def test_unknown_class_is_refused(bad: Any) -> None:
    """The error names the argument and the classes."""
    with pytest.raises(InvalidArgumentError, match="state_class"):
        StateClass.coerce(bad)


def test_bad_rules_are_refused() -> None:
    """When they are made, not when they are used."""
    for bad in ({"patterns": "x"}, {"patterns": [("", "bulk")]}, {"patterns": [("a", "x")]},
                {"scopes": {"nope": "bulk"}}, {"default": "x"}, {"patterns": ["ab"]}):  # fmt: skip
        with pytest.raises((InvalidArgumentError, InvalidScopeError)):
            ClassRules(**bad)


@pytest.mark.parametrize("level", [MEMORY, LOCAL_FSYNC, REPLICATED_ALL, replicated(2)])
def test_ack_level_prints_and_parses(level: Ack) -> None:
    """Both ways."""
    assert Ack.parse(str(level)) == level


def test_bad_ack_level_is_refused() -> None:
    """A count belongs to replicated(k), and only to it."""
    for make in (lambda: replicated(0), lambda: replicated(65), lambda: Ack(AckKind.MEMORY, 1),
                 lambda: Ack.parse("replicated(x)"), lambda: Ack.parse("replicated(0)"),
                 lambda: Ack.parse(cast("str", 3))):  # fmt: skip
        with pytest.raises(InvalidArgumentError):
            make()


def test_retention_says_what_it_keeps() -> None:
    """And checks its numbers."""
    assert "last 10 entries" in str(Retention(timedelta(days=1), 10, 20))
    assert Retention(None).max_age_ms is None
    for bad in ((timedelta(0), 1, 1), (None, 0, 1), (None, 5, 4), (3, 1, 1), (None, True, 1)):
        with pytest.raises(InvalidArgumentError):
            Retention(*bad)


@pytest.mark.parametrize(
    ("ttl", "ms"),
    [(1, 1000), (0.29, 290), (0.0001, 1), (timedelta(microseconds=1), 1), (1e-9, 1),
     (timedelta(days=1), 86_400_000), (None, None), (KEEP, KEEP), (MAX_TTL_MS // 1000, MAX_TTL_MS)],
)  # fmt: skip
def test_ttl_becomes_whole_milliseconds(ttl: Any, ms: Any) -> None:
    """Rounded up."""
    assert ttl_ms(ttl) == ms


@pytest.mark.parametrize(
    "bad",
    [0, -1, 0.0, -0.5, float("nan"), float("inf"), True, "1", timedelta(0), timedelta(seconds=-1),
     timedelta.max, MAX_TTL_MS // 1000 + 1, 1e300, 10**400, -1e-9],
)  # fmt: skip
def test_unusable_ttl_is_refused(bad: Any) -> None:
    """Zero, negative, not finite, no number, over a hundred years."""
    with pytest.raises(InvalidTTLError):
        ttl_ms(bad)
