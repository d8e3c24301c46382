"""Where two outcomes of a hook differ, and changes to what a hook was told."""

from __future__ import annotations

from typing import Any

import pytest
from fix_replay import START, told
from hypothesis import given, settings
from hypothesis import strategies as st

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.hooks.comparator import (
    MAX_DIFFERENCES,
    DifferenceType,
    Severity,
    compare_outcomes,
)
from llmspell_dist.hooks.kept import RecordedFailure
from llmspell_dist.hooks.modifications import Modification, modifications_of, modified
from llmspell_dist.hooks.results import (
    CONTINUE,
    Cancel,
    Fork,
    ForkOperation,
    Modified,
    Replace,
    Skipped,
)

pytestmark = pytest.mark.unit

BOOM = RecordedFailure("ValueError", "boom")


def same(one: Any, other: Any) -> Any:
    """Compare two results."""
    return compare_outcomes((one, None), (other, None))


@pytest.mark.parametrize(
    ("was", "now", "kind", "first", "severity"),
    [
        (CONTINUE, Skipped(), "VariantMismatch", "result", Severity.CRITICAL),
        (CONTINUE, Cancel("no"), "CancellationMismatch", "result", Severity.CRITICAL),
        (Cancel("no"), Cancel("No."), "CancellationMismatch", "result.reason", Severity.INFO),
        (
            Modified({"a": {"b": [1, 2]}}),
            Modified({"a": {"b": [1, 3]}}),
            "DataMismatch",
            "result.data.a.b[1]",
            Severity.WARNING,
        ),
        (Replace(1), Replace("1"), "DataMismatch", "result.value", Severity.ERROR),
        (Replace([1]), Replace([1, 2]), "DataMismatch", "result.value[1]", Severity.ERROR),
        (
            Fork((ForkOperation("i", "set", {"key": 1}),)),
            Fork((ForkOperation("i", "set", {"key": 2}),)),
            "DataMismatch",
            "result.operations[0].parameters.key",
            Severity.WARNING,
        ),
    ],
)
def test_the_first_difference_is_named_with_its_path(
    was: Any, now: Any, kind: str, first: str, severity: Severity
) -> None:
    """And how much it matters."""
    found = same(was, now)
    assert not found.identical
    assert found.type == kind
    assert found.first.path == first
    assert found.severity == severity
    assert first in found.summary


def test_none_and_continue_are_the_same() -> None:
    """As for whoever runs hooks."""
    assert same(None, CONTINUE).identical
    assert same(None, CONTINUE).similarity_score == 1.0


def test_times_and_durations_are_no_difference() -> None:
    """They differ from run to run."""
    was = Modified({"timestamp": 1, "duration": 2, "x": 1})
    assert same(was, Modified({"timestamp": 9, "duration_us": 8, "x": 1})).identical


def test_errors_are_compared_by_type_and_message() -> None:
    """And an error against a result is another decision."""
    assert compare_outcomes((None, BOOM), (None, BOOM)).identical
    found = compare_outcomes((None, BOOM), (None, RecordedFailure("ValueError", "bang")))
    assert found.type == DifferenceType.ERROR
    assert [one.path for one in found.differences] == ["error.message"]
    found = compare_outcomes((CONTINUE, None), (None, BOOM))
    assert (found.type, found.severity) == (DifferenceType.ERROR, Severity.CRITICAL)
    assert found.similarity_score == 0.0


def test_an_error_instead_of_a_cancellation_is_both() -> None:
    """The operation would have been stopped."""
    found = compare_outcomes((Cancel("no"), None), (None, BOOM))
    assert found.type == DifferenceType.MULTIPLE


def test_the_score_is_the_share_of_equal_parts() -> None:
    """The kind of result is one of them."""
    found = same(Modified({"a": 1, "b": 2, "c": 3}), Modified({"a": 1, "b": 2, "c": 4}))
    assert found.similarity_score == 0.75


def test_the_list_of_differences_is_bounded() -> None:
    """The score is not."""
    many = {str(n): n for n in range(1000)}
    found = same(Modified(many), Modified(dict.fromkeys(many, -1)))
    assert len(found.differences) == MAX_DIFFERENCES
    assert found.similarity_score < 0.01


DATA = st.recursive(
    st.one_of(st.integers(), st.text(max_size=5), st.none(), st.floats()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(DATA, DATA)
def test_comparing_is_true_and_symmetric(one: Any, other: Any) -> None:
    """A value is identical with itself, and one with another the same way round."""
    assert same(Replace(one), Replace(one)).identical
    there, back = same(Replace(one), Replace(other)), same(Replace(other), Replace(one))
    assert there.identical == back.identical
    assert there.type == back.type
    assert len(there.differences) == len(back.differences)


# --- modifications --------------------------------------------------------------------------------


def test_a_modification_changes_a_copy_at_its_path() -> None:
    """Further in, too; what is recorded stays."""
    recorded = told({"a": {"b": [1, 2]}})
    changed = modified(
        recorded,
        [
            *modifications_of({"context.data.a.b[1]": 9}),
            Modification("context.data.new.deep", 1, create=True),
            Modification("context.metadata.m", "text", create=True),
        ],
    )
    assert changed["data"] == {"a": {"b": [1, 9]}, "new": {"deep": 1}}
    assert changed["metadata"] == {"m": "text"}
    assert recorded["data"] == {"a": {"b": [1, 2]}}
    assert recorded["metadata"] == {}
    assert changed["timestamp"] == START


def test_a_modification_that_is_switched_off_changes_nothing() -> None:
    """It stays in the list."""
    recorded = told()
    assert modified(recorded, [Modification("context.data.x", 2, enabled=False)]) == recorded


@pytest.mark.parametrize(
    "path", ["data.x", "context.data", "context.point", "context.data.", "context.data.a[x]", 3]
)
def test_a_path_that_leads_nowhere_is_refused(path: Any) -> None:
    """With the rule."""
    with pytest.raises(InvalidArgumentError, match=r"must look like context\.data"):
        Modification(path, 1)


@pytest.mark.parametrize("path", ["context.data.x.y", "context.data.l[3]", "context.data.l.a"])
@pytest.mark.parametrize("create", [True, False])
def test_a_path_that_the_context_has_not_is_refused(path: str, create: bool) -> None:
    """A place in a list is not made."""
    with pytest.raises(InvalidArgumentError, match="must lead into the recorded context"):
        modified(told({"x": 1, "l": [1]}), [Modification(path, 1, create=create)])


@pytest.mark.parametrize("path", ["context.data.y", "context.data.n.d", "context.metadata.m"])
def test_a_name_that_is_not_there_is_made_only_if_that_is_meant(path: str) -> None:
    """Else it is misspelt."""
    with pytest.raises(InvalidArgumentError, match=path):
        modified(told({"x": 1}), [Modification(path, "1")])


def test_metadata_is_text() -> None:
    """As in the context."""
    with pytest.raises(InvalidArgumentError, match="must be text"):
        Modification("context.metadata.m", 1)
