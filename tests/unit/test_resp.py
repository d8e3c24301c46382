"""Requests to bytes and bytes to replies."""

from __future__ import annotations

import pytest

from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.resp import (
    NOTHING,
    ErrorReply,
    ProtocolError,
    PushNotification,
    make_reader,
    pack,
)
from llmspell_dist.redis.scripts import Script

pytestmark = pytest.mark.unit


def test_a_request_is_an_array_of_its_arguments() -> None:
    """Text, bytes and numbers are sent as bulk strings."""
    assert pack("SET", b"\x00", 12) == b"*3\r\n$3\r\nSET\r\n$1\r\n\x00\r\n$2\r\n12\r\n"


def test_an_incomplete_reply_is_nothing_and_not_false() -> None:
    """RESP3's false, null and an incomplete reply are three things."""
    reader = make_reader()
    reader.feed(b"#f\r\n_\r\n$3\r\nab")
    assert reader.gets() is False
    assert reader.gets() is None
    assert reader.gets() is NOTHING
    assert repr(NOTHING) == "NOTHING"
    reader.feed(b"c\r\n")
    assert reader.gets() == b"abc"


def test_an_error_is_a_value_also_inside_a_list() -> None:
    """Error replies are returned, not raised, wherever they stand."""
    reader = make_reader()
    reader.feed(b"*2\r\n-OOM full\r\n:1\r\n-BUSY script\r\n")
    inner, one = reader.gets()
    outer = reader.gets()
    assert type(inner) is type(outer) is ErrorReply
    assert (inner.text, one, outer.text) == ("OOM full", 1, "BUSY script")


def test_a_push_message_has_a_type_of_its_own() -> None:
    """Out-of-band messages can be told from replies."""
    reader = make_reader()
    reader.feed(b">2\r\n+invalidate\r\n*0\r\n*0\r\n")
    assert type(reader.gets()) is PushNotification
    assert type(reader.gets()) is list


def test_another_protocol_is_noticed() -> None:
    """Bytes that are no RESP raise instead of giving a wrong reply."""
    reader = make_reader()
    reader.feed(b"HTTP/1.1 200 OK\r\n")
    with pytest.raises(ProtocolError):
        reader.gets()


def test_a_script_call_has_a_short_and_a_long_form() -> None:
    """The long form carries the body, for a server that does not know the hash."""
    script = Script.from_source("one", "return 1")
    call = ScriptCall(script, (b"k",), (b"a", b"b"))
    assert call.request() == pack("EVALSHA", script.sha, 1, "k", "a", "b")
    assert call.request(with_body=True) == pack("EVAL", b"return 1", 1, "k", "a", "b")
    assert call.name == "one"


def test_a_command_is_sent_as_it_was_packed() -> None:
    """A packed command has one form only."""
    assert Command(pack("PING"), "PING").request() == pack("PING")
