"""Patterns of event types, and ids."""

from __future__ import annotations

import re
from uuid import UUID

import pytest

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.ids import new_id
from llmspell_dist.patterns import Pattern, check_type

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("pattern", "means", "not_means"),
    [
        ("*", ["a", "a.b", "a.b.c"], []),
        ("state.*", ["state.set", "state.agent.changed"], ["state", "states.set", "x.state.set"]),
        ("state.*.changed", ["state.a.changed"], ["state.changed", "state.a.b.changed"]),
        ("*.changed", ["a.changed"], ["changed", "a.b.changed"]),
        ("a.b", ["a.b"], ["a.b.c", "a.bc", "axb"]),
        ("a:1.x-y_z", ["a:1.x-y_z"], ["a.1.x-y_z"]),
    ],
)
def test_a_pattern_means_whole_segments(
    pattern: str, means: list[str], not_means: list[str]
) -> None:
    """``*`` is everything, at the end one or more segments, elsewhere exactly one."""
    parsed = Pattern(pattern)
    assert [one for one in means if not parsed.matches(one)] == []
    assert [one for one in not_means if parsed.matches(one)] == []
    assert parsed == Pattern(pattern)
    assert parsed.exact is ("*" not in pattern)


@pytest.mark.parametrize(
    "bad", ["", ".", "a.", ".a", "a..b", "a*", "**", "a b", "ä", 5, None, "x" * 257]
)
def test_what_is_no_pattern_is_named(bad: object) -> None:
    """The error names the argument and the rule."""
    with pytest.raises(InvalidArgumentError, match=r"pattern.*segments"):
        Pattern(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", ["a.*", "*", "", "a.", 5, "x" * 257, "a\n"])
def test_what_is_no_type_is_named(bad: object) -> None:
    """A type has no stars."""
    with pytest.raises(InvalidArgumentError, match=re.escape("kind")):
        check_type(bad, "kind")


def test_ids_are_ordered_uuids_and_differ() -> None:
    """RFC 9562: version 7, variant 2."""
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all((UUID(one).version, str(UUID(one))) == (7, one) for one in ids)
    assert [one[:13] for one in ids] == sorted(one[:13] for one in ids)
