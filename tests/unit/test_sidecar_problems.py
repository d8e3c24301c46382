"""Errors as problem documents: code, status, facts, and nothing that is nobody's business."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from llmspell_dist.backup.errors import BackupKeyUnavailableError
from llmspell_dist.errors import (
    ConflictError,
    InvalidArgumentError,
    OutcomeUnknownError,
    SpellError,
    StoreUnavailableError,
    UnauthenticatedError,
    error_classes,
)
from llmspell_dist.revision import Revision
from llmspell_dist.sidecar import app  # noqa: F401 - with it every error class is there
from llmspell_dist.sidecar.problems import problem_of, register_status, status_of

pytestmark = pytest.mark.unit


DAMAGED = {"CORRUPT_RECORD", "UNSUPPORTED_FORMAT"}
NEVER_ANSWERED = {
    *("ACCESS_FILE", "UNSAFE_BIND", "NAMESPACE_MISMATCH"),  # end it before it serves
    *("DEBUG_SESSION_OVER", "NOT_REPLAYABLE", "REPLAY_DIVERGED", "REPLAY_FAILED"),  # no route
    *("SIMULATED_WRITE", "WRONG_EVENT_LOOP", "SPELL_ERROR"),
}


def test_what_the_library_says_by_an_error_is_no_internal_error() -> None:
    """A 500 is for bugs, and for records that are damaged."""
    own = {
        code: cls
        for code, cls in error_classes().items()
        if cls.__module__.startswith("llmspell_dist.") and ".remote." not in cls.__module__
    }
    left = {code for code, cls in own.items() if status_of(cls) == 500}
    assert left <= DAMAGED | NEVER_ANSWERED


def test_a_bug_tells_nothing_but_that_it_is_one() -> None:
    """Its message may hold anything."""
    problem = problem_of(RuntimeError("password hunter2"))
    assert (problem.status, problem.document["code"]) == (500, "INTERNAL")
    assert "hunter2" not in repr(problem.document)


def test_facts_are_plain_data() -> None:
    """Revisions and moments as text, durations as seconds: any JSON writer takes them."""

    class OddError(SpellError):
        """Of this test."""

        code = "ODD_OF_THIS_TEST"

    register_status(OddError, 418)
    error = OddError("odd")
    error.at, error.when = Revision(1, 2), datetime(2026, 11, 26, tzinfo=UTC)  # type: ignore[attr-defined]
    error.took, error.keys = timedelta(seconds=2), (b"raw", {1: {"x"}})  # type: ignore[attr-defined]
    error._private = "no"  # type: ignore[attr-defined]
    problem = problem_of(error)
    assert problem.status == 418
    assert problem.document["facts"] == {
        "at": "1-2",
        "when": "2026-11-26T00:00:00+00:00",
        "took": 2.0,
        "keys": ["b'raw'", {"1": ["x"]}],
    }
    assert msgspec.json.decode(msgspec.json.encode(problem.document)) == problem.document


def test_who_may_try_again_is_told_when() -> None:
    """And whether a write may have happened; a conflict wants to be read again first."""
    away = problem_of(StoreUnavailableError("redis:6379", "connection refused"))
    assert (away.status, away.document["retryable"]) == (503, True)
    assert (b"retry-after", b"1") in away.headers
    key = problem_of(BackupKeyUnavailableError("aws-kms", "00ff", "unwrap", "throttled"))
    assert (key.status, key.document["retryable"]) == (503, True)
    assert (b"retry-after", b"1") in key.headers
    unknown = problem_of(OutcomeUnknownError("redis:6379", "connection lost"))
    assert unknown.document["may_have_happened"] is True
    assert unknown.document["retryable"] is False
    conflict = problem_of(ConflictError("agent:a", "k", message="changed"))
    assert (conflict.status, conflict.document["retryable"]) == (409, False)


def test_a_refused_caller_is_challenged_and_not_told_why() -> None:
    """The reason is for the log."""
    problem = problem_of(UnauthenticatedError("token planner: expired"))
    assert problem.status == 401
    assert dict(problem.headers)[b"www-authenticate"].startswith(b"Bearer")
    assert "planner" not in repr(problem)


def test_a_line_break_in_a_fact_stays_inside_the_document() -> None:
    """Headers are made of nothing that a caller gave."""
    problem = problem_of(InvalidArgumentError("scope", "a\r\nx-evil: 1", "must be a scope"))
    assert all(b"\n" not in value and b"evil" not in value for _, value in problem.headers)
