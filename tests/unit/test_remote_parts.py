"""The parts of a client of a sidecar: addresses, tokens, errors, streams, numbers of writes."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmspell_dist import errors
from llmspell_dist.ack import replicated
from llmspell_dist.errors import (
    AckNotReachedError,
    AnswerLostError,
    ConflictError,
    InvalidArgumentError,
    InvalidURLError,
    SpellError,
    StoreUnavailableError,
    error_classes,
)
from llmspell_dist.remote import numbering
from llmspell_dist.remote.address import encoded_path, parse_address
from llmspell_dist.remote.credentials import Credentials
from llmspell_dist.remote.numbering import Numbering
from llmspell_dist.remote.problems import error_of, pause_of
from llmspell_dist.remote.streaming import EventReader, StreamEvent
from llmspell_dist.revision import Revision
from llmspell_dist.sidecar.dispatch import Dispatcher
from llmspell_dist.sidecar.problems import problem_of
from llmspell_dist.sidecar.routes import all_endpoints
from llmspell_dist.watch.errors import WatchTrimmedError

pytestmark = pytest.mark.unit

# --- addresses


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://localhost", "http://localhost:8750"),
        ("https://[::1]:9/gate/way/", "https://[::1]:9/gate/way"),
        ("http+unix://%2Frun%2Fl%20s.sock", "http://localhost"),
    ],
)
def test_a_url_names_a_sidecar(url: str, base: str) -> None:
    """Host and port, a path before every route, or a unix socket."""
    address = parse_address(url)
    assert address.base == base
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "http://",
        "http://user:s3cret@h",
        "http://h:99999",
        "http://h#x",
        "http://h?nope=1",
        "http://h?ssl_ca_certs=/x",
        "https://h?ssl_certfile=/x",
        "https://h?connect_timeout=-1",
        "http+unix://relative",
    ],
)
def test_a_url_that_cannot_be_understood_is_refused_without_being_quoted(url: str) -> None:
    """It may hold a secret."""
    with pytest.raises(InvalidURLError) as caught:
        parse_address(url)
    assert "s3cret" not in str(caught.value)


@given(st.text(min_size=1).filter(lambda text: "\0" not in text))
def test_every_scope_and_key_stays_one_segment(text: str) -> None:
    """Slashes, dots, percent signs and what else there is come out as they went in."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    path = encoded_path(("v1", "state", "global", text))
    found = Dispatcher(all_endpoints()).find("GET", path)
    assert found.parameters == {"scope": "global", "key": text}


# --- tokens


def test_a_token_of_a_file_is_read_again_when_it_is_replaced(tmp_path: Path) -> None:
    """As Kubernetes does with projected tokens; while it is gone the last one is shown."""
    file = tmp_path / "token"
    file.write_text("one\n")
    shown = Credentials(file=file)
    assert shown.header() == "Bearer one"
    fresh = tmp_path / "fresh"
    fresh.write_text("two")
    fresh.rename(file)
    assert shown.header() == "Bearer two"
    file.unlink()
    assert shown.header() == "Bearer two"
    assert "two" not in repr(shown)


def test_a_token_written_twice_within_one_tick_of_the_clock_is_read_again(tmp_path: Path) -> None:
    """Neither its size nor its times nor the inode say that it is another one."""
    file = tmp_path / "token"
    file.write_text("one")
    shown = Credentials(file=file)
    assert shown.header() == "Bearer one"
    written = file.stat()
    with file.open("r+") as same:
        same.write("two")
    os.utime(file, ns=(written.st_atime_ns, written.st_mtime_ns))
    assert shown.header() == "Bearer two"


def test_the_token_given_goes_before_the_environment(tmp_path: Path) -> None:
    """Then comes LLMSPELL_TOKEN, then the file LLMSPELL_TOKEN_FILE, then none."""
    file = tmp_path / "token"
    file.write_text("of-file")
    both = {"LLMSPELL_TOKEN": "of-variable", "LLMSPELL_TOKEN_FILE": str(file)}
    assert Credentials.given("given", both).header() == "Bearer given"
    assert Credentials.given(file, both).header() == "Bearer of-file"
    assert Credentials.given(None, both).header() == "Bearer of-variable"
    del both["LLMSPELL_TOKEN"]
    assert Credentials.given(None, both).header() == "Bearer of-file"
    assert Credentials.given(None, {}).header() is None


@pytest.mark.parametrize("token", ["", "two words", "line\r\nX-Evil: 1", "é", "x" * 20_000])
def test_a_token_that_cannot_be_one_is_refused_and_not_shown(token: str) -> None:
    """Nothing of it stands in the error."""
    with pytest.raises(InvalidArgumentError) as caught:
        Credentials(token)
    assert caught.value.value == "***"


def test_a_file_without_a_token_is_refused(tmp_path: Path) -> None:
    """The error says what is wrong with it."""
    with pytest.raises(InvalidArgumentError, match="FileNotFoundError"):
        Credentials(file=tmp_path / "nowhere").header()


# --- errors


R1, R2 = Revision(1, 1), Revision(2, 2)
SAMPLES: list[SpellError] = [
    errors.InvalidKeyError("key", "", "must not be empty"),
    errors.LimitError("keys in one call", 1001, 1000),
    ConflictError(R1, None, [("agent:a", "k", R1, None), ("agent:a", "l", None, R2)]),
    errors.WrongKindError("agent:a", "k", "map", "append"),
    errors.CrossShardError(["agent:a", "agent:b"]),
    errors.HistoryDivergedError(R1, R2),
    errors.LeaseLostError("agent:a", "main", "expired", 7),
    errors.DeadlockError("agent:a", "main", [("me", "agent:a main"), ("you", "agent:b main")]),
    errors.StaleFencingTokenError("agent:a", "main", 3, 4, "token"),
    StoreUnavailableError("redis://h", "away"),
    WatchTrimmedError("agent:a", R1, R2),
    AckNotReachedError("redis://h", replicated(2), "1 replica"),
    AnswerLostError("redis://h", Revision(9, 9)),
]


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: error.code)
def test_an_error_comes_back_as_itself(error: SpellError) -> None:
    """Class, message and facts, revisions and levels among them."""
    found = error_of(400, problem_of(error).document, "http://h")
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert found.facts == error.facts
    assert found.retryable == error.retryable


def test_the_classes_of_all_modules_are_known() -> None:
    """Also of those that nothing has imported yet: by name."""
    for code in ("UNAUTHENTICATED", "NOT_FOUND", "WAIT_TIMEOUT", "AGENT_NOT_FOUND"):
        found = error_of(400, {"code": code, "detail": "x", "facts": {}}, "http://h")
        assert type(found) is error_classes()[code]


def test_an_error_of_a_later_release_keeps_its_code() -> None:
    """And says what it said."""
    document = {"code": "OF_TOMORROW", "detail": "no", "facts": {}, "retryable": True}
    found = error_of(418, document, "http://h")
    assert (type(found), found.code, str(found)) == (SpellError, "OF_TOMORROW", "no")
    assert found.retryable


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [(502, "STORE_UNAVAILABLE", True), (403, "FORBIDDEN", False), (418, "HTTP_418", False)],
)
def test_what_a_gateway_says_is_an_error_too(status: int, code: str, retryable: bool) -> None:
    """Its body is no problem document of ours."""
    found = error_of(status, b"<html>", "http://h")
    assert (found.code, found.retryable) == (code, retryable)


@pytest.mark.parametrize("document", [None, [], {"code": 5}, {"code": "CONFLICT", "facts": 3}])
def test_a_malformed_document_is_an_error_all_the_same(document: Any) -> None:
    """Nothing else is raised."""
    assert isinstance(error_of(500, document, "http://h"), SpellError)


_SENT = "Thu, 26 Nov 2026 09:00:00 GMT"


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("3", 3.0),
        ("Thu, 26 Nov 2026 09:00:05 GMT", 5.0),
        ("Thu, 26 Nov 2026 08:59:00 GMT", 0.0),
        ("", 0.0),
        ("-1", 0.0),
        ("soon", 0.0),
        ("9" * 30, 0.0),
        ("Thu, 99 Nov 2026 09:00:05 GMT", 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date_or_nothing(said: str, seconds: float) -> None:
    """A date counts from the answer's own; anything else is ignored."""
    assert pause_of({"retry-after": said, "date": _SENT}) == seconds


def test_a_date_of_long_ago_asks_for_no_pause_without_a_date_of_the_answer() -> None:
    """Then it counts from now."""
    assert pause_of({"retry-after": _SENT.replace("2026", "2020")}) == 0.0
    assert pause_of({"retry-after": "Fri, 31 Dec 9999 00:00:00 GMT"}) > 1e9


# --- streams

STREAM = (
    b'retry: 1000\n\nid: 1-0\n\n:\n\nid: 2-0\nevent: change\ndata: {"a":\ndata: 1}\r\n\r\n'
    b"data: \xc3\xa9\n\nevent: end\n\n"
)
EVENTS = [
    StreamEvent("", "", "1-0"),
    StreamEvent("change", '{"a":\n1}', "2-0"),
    StreamEvent("message", "é"),
    StreamEvent("end", ""),
]


@given(st.integers(0, 2**32))
def test_events_come_whole_however_they_were_cut(seed: int) -> None:
    """In the middle of a line, of a character, of a line's end."""
    chance, reader, found, rest = random.Random(seed), EventReader(), [], STREAM
    while rest:
        size = chance.randint(1, 7)
        found += reader.feed(rest[:size])
        rest = rest[size:]
    assert found == EVENTS


# --- numbers of writes


def test_a_write_says_below_which_number_all_are_settled() -> None:
    """The oldest one that is under way holds that back."""
    writes = Numbering()
    one, two = writes.begin(), writes.begin()
    assert writes.stamp(writes.client, two).split(":")[1:] == ["2", "1"]
    writes.end(one, known=True)
    assert writes.stamp(writes.client, two).split(":")[1:] == ["2", "2"]
    assert writes.stamp("other", 9) == "other:9:0"
    writes.end(two, known=True)
    assert writes.stamp(writes.client, writes.begin()).split(":")[1:] == ["3", "3"]


def test_a_write_of_unknown_outcome_is_remembered_for_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that it can be settled; then it holds nothing back any more."""
    now = [100.0]
    monkeypatch.setattr(numbering, "monotonic", lambda: now[0])
    writes = Numbering()
    lost = writes.begin()
    writes.end(lost, known=False)
    assert writes.stamp(writes.client, writes.begin()).endswith(":2:1")
    now[0] += numbering.UNKNOWN_KEPT_S + 1
    assert writes.stamp(writes.client, 3).endswith(":3:2")
