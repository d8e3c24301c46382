"""The server's error replies as exceptions."""

from __future__ import annotations

import pytest

from llmspell_dist import errors
from llmspell_dist.redis.replies import (
    RETRIED,
    error_code,
    error_from_reply,
    nothing_ran,
    system_said,
)
from llmspell_dist.redis.resp import ErrorReply

pytestmark = pytest.mark.unit

REPLIES = [
    ("BUSY Redis is busy running a script.", errors.StoreBusyError),
    ("LOADING Redis is loading the dataset in memory", errors.StoreLoadingError),
    ("READONLY You can't write against a read only replica.", errors.StoreReadOnlyError),
    ("OOM command not allowed when used memory > 'maxmemory'.", errors.StoreFullError),
    ("MISCONF Redis is configured to save RDB snapshots", errors.StoreMisconfiguredError),
    ("NOAUTH Authentication required.", errors.StoreAuthenticationError),
    ("WRONGPASS invalid username-password pair", errors.StoreAuthenticationError),
    ("NOPERM this user has no permissions to run 'get'", errors.StorePermissionError),
    ("MASTERDOWN Link with MASTER is down", errors.StoreUnavailableError),
    ("CLUSTERDOWN The cluster is down", errors.StoreUnavailableError),
    ("TRYAGAIN Multiple keys request during rehashing", errors.StoreUnavailableError),
    ("NOREPLICAS Not enough good replicas to write.", errors.StoreUnavailableError),
    ("MOVED 3999 127.0.0.1:6381", errors.StoreUnavailableError),
    ("ASK 3999 127.0.0.1:6381", errors.StoreUnavailableError),
    ("ERR max number of clients reached", errors.StoreUnavailableError),
    ("ERR syntax error", errors.StoreProtocolError),
    ("WRONGTYPE Operation against a key", errors.StoreProtocolError),
    ("", errors.StoreProtocolError),
]
OLD_OOM = (
    "ERR Error running script (call to f_8a5): @user_script:3: @user_script: 3: "
    "-OOM command not allowed when used memory > 'maxmemory'. "
)


@pytest.mark.parametrize(("text", "cls"), REPLIES)
def test_each_code_has_its_class(text: str, cls: type[errors.StoreUnavailableError]) -> None:
    """The exception says which server, what it said, and that nothing happened."""
    error = error_from_reply(ErrorReply(text), "127.0.0.1:6379")
    assert type(error) is cls
    assert (error.server, error.said, error.may_have_happened) == ("127.0.0.1:6379", text, False)


def test_redis_62_wraps_the_code_and_we_unwrap_it() -> None:
    """What a command said inside a script is found in the old servers' text."""
    assert error_code(OLD_OOM) == "OOM"
    assert type(error_from_reply(ErrorReply(OLD_OOM), "s")) is errors.StoreFullError


def test_an_uncertain_write_carries_its_operation() -> None:
    """A write that may have happened is not retryable as it is, and can be settled."""
    error = error_from_reply(ErrorReply("OOM x"), "s", may_have_happened=True, operation="op")
    assert error.may_have_happened
    assert error.operation == "op"
    assert not error.retryable


@pytest.mark.parametrize("text", ["OOM x script: 1, on @user_script:1.", OLD_OOM, "ERR syntax"])
def test_refusals_before_the_first_write_changed_nothing(text: str) -> None:
    """Memory, role and disk are looked at before a script's first write only."""
    assert nothing_ran(text)


@pytest.mark.parametrize(
    "text",
    [
        "ERR user_script:4: attempt to index a nil value script: 8a, on @user_script:4.",
        "NOPERM User can't access a key script: 8a5, on @user_script:4.",
        "ERR Error running script (call to f_8a): @user_script:3: oops",
    ],
)
def test_an_error_inside_a_script_leaves_open_what_was_written(text: str) -> None:
    """Lua does not roll back."""
    assert not nothing_ran(text)


def test_what_passes_by_itself_is_retried() -> None:
    """The list of states that are waited for."""
    known = {"LOADING", "BUSY", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN", "READONLY"}
    assert known == RETRIED


def test_echoed_arguments_are_not_shown() -> None:
    """Servers without HELLO quote the password; the error does not."""
    text = "ERR unknown command `HELLO`, with args beginning with: `3` `AUTH` `me` `s3cret` "
    assert "s3cret" not in str(error_from_reply(ErrorReply(text), "s"))


def test_system_errors_speak_plainly() -> None:
    """What asyncio and Python add is left out."""
    assert system_said(ConnectionRefusedError(111, "Connect call failed ('::1', 1)")) == (
        "Connection refused"
    )
    assert system_said(OSError("no address")) == "no address"
    assert system_said(EOFError()) == "EOFError()"
