"""Structured logs: what a record says, and what it never says."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

from llmspell_dist import context
from llmspell_dist.errors import InvalidArgumentError, StoreUnavailableError
from llmspell_dist.masking import mask_text
from llmspell_dist.telemetry import JSONFormatter

pytestmark = pytest.mark.unit


def formatted(message: str, *args: Any, exc_info: Any = None) -> dict[str, Any]:
    """Return the line of one record, read back."""
    record = logging.LogRecord(
        "llmspell_dist.redis", logging.WARNING, "file.py", 1, message, args, exc_info
    )
    record.created = 1_700_000_000.25
    line = JSONFormatter().format(record)
    assert "\n" not in line
    said: dict[str, Any] = json.loads(line)
    return said


def test_a_record_is_one_line_of_json() -> None:
    """When, how grave, who, what; times in UTC."""
    assert formatted("lost %s: %s", "a.b:1", "reset\nby peer") == {
        "timestamp": "2023-11-14T22:13:20.250Z",
        "level": "WARNING",
        "logger": "llmspell_dist.redis",
        "message": "lost a.b:1: reset\nby peer",
    }


def test_a_record_names_trace_correlation_and_actor() -> None:
    """So that logs, traces and the change log can be laid side by side."""
    span = NonRecordingSpan(SpanContext(10, 11, is_remote=False, trace_flags=TraceFlags(1)))
    with use_span(span), context(actor="planner", correlation_id="run-7"):
        said = formatted("hello")
    assert said["trace_id"] == f"{10:032x}"
    assert said["span_id"] == f"{11:016x}"
    assert (said["actor"], said["correlation_id"]) == ("planner", "run-7")


def test_an_error_is_named_by_its_code() -> None:
    """Whether it is an argument or attached."""
    error = StoreUnavailableError("server:1", "gone")
    assert formatted("went wrong: %s", error)["error.type"] == "STORE_UNAVAILABLE"
    said = formatted("went wrong", exc_info=(type(error), error, None))
    assert said["error.type"] == "STORE_UNAVAILABLE"
    assert said["exception.type"] == "StoreUnavailableError"


def test_an_attached_error_tells_where_and_not_what() -> None:
    """Its message may show what somebody passed."""
    try:
        raise ValueError("canary-91")  # noqa: TRY301
    except ValueError:
        said = formatted("a hook failed", exc_info=sys.exc_info())
    assert "canary-91" not in json.dumps(said)
    assert said["error.type"] == "ValueError"
    assert "test_an_attached_error_tells_where_and_not_what" in said["exception.stacktrace"]


def test_a_refused_argument_is_told_by_its_rule() -> None:
    """Not with the value that was refused."""
    said = formatted("refused: %s", InvalidArgumentError("key", "canary-92", "must be a str"))
    assert said["message"] == "refused: key must be a str"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://user:pa%20ss@host:1/0", "redis://***@host:1/0"),
        ("rediss://:p@h and s3://a:b@c", "rediss://***@h and s3://***@c"),
        ("Authorization: Bearer abc.def-123", "Authorization: ***"),
        ("sent bearer abcdef", "sent bearer ***"),
        ("password=hunter2, user=joe", "password=***, user=joe"),
        ('{"api_key": "sk-12345"}', '{"api_key": "***"}'),
        ("token eyJhbGciOiJI.eyJzdWIi.sig-nature end", "token *** end"),
        ("redis://host:1/0 is fine", "redis://host:1/0 is fine"),
        ("token 7 of lease main", "token 7 of lease main"),
    ],
)
def test_what_looks_like_a_secret_is_not_shown(text: str, shown: str) -> None:
    """And what does not is left alone."""
    assert mask_text(text).replace("Authorization: *** ***", "Authorization: ***") == shown


def test_a_wrong_format_loses_no_record() -> None:
    """It is shown as it was written."""
    assert formatted("%d of %s", "many")["message"] == "%d of %s"
