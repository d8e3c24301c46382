from __future__ import annotations

import pytest

from llmspell_dist.errors import InvalidArgumentError, InvalidKeyError, InvalidScopeError
from llmspell_dist.keys import KeySpace, KeyType, scoped_field, validate_key
from llmspell_dist.scope import Scope

pytestmark = pytest.mark.unit
AGENT = Scope.agent("alice")


@pytest.mark.parametrize("key", ["a", "a:b", "_x", "$x", "x__", "é" * 128, "a b\t", "..//"])
def test_key_within_the_rules_is_its_utf8(key: str) -> None:
    """The field is the key's UTF-8."""
    assert validate_key(key) == key.encode()
    assert validate_key(key) == key.encode()


@pytest.mark.parametrize(
    "key",
    ["", "__x", "$$", "$$x", "a\0b", "a\rb", "a\nb", "x" * 257, "é" * 129, "\ud800", None, 1, b"a",
     ["a"], "x" * 10**6],
)  # fmt: skip
def test_key_against_the_rules_is_refused(key: object) -> None:
    """The error names the argument and shows the value shortened."""
    with pytest.raises(InvalidKeyError) as caught:
        validate_key(key)  # type: ignore[arg-type]
    assert caught.value.argument == "key"
    assert len(str(caught.value)) < 200


def test_key_is_nfc_normalised_before_its_length_counts() -> None:
    """Both spellings reach the same field."""
    assert validate_key("e\u0301" * 128) == validate_key("\u00e9" * 128)


def test_key_and_long_scope_together_are_limited() -> None:
    """`<scope>:<key>` has at most 512 bytes."""
    scope = Scope.agent("x" * 400)
    assert scoped_field(scope, "k" * 105) == b"k" * 105
    with pytest.raises(InvalidKeyError):
        scoped_field(scope, "k" * 106)


def test_every_key_is_spelled_as_documented() -> None:
    """The spelling is part of the stored format."""
    space = KeySpace()
    assert space.scope(AGENT) == b"llmspell:{0}:agent:alice"
    assert space.generation(AGENT, "12-3") == b"llmspell:{0}:agent:alice:p:12-3"
    assert space.generations(AGENT) == b"llmspell:{0}:agent:alice:g"
    assert space.ttl(AGENT) == b"llmspell:{0}:agent:alice:ttl"
    assert space.lease(AGENT, "a:b") == b"llmspell:{0}:agent:alice:lease:a%3Ab"
    assert space.log("0") == b"llmspell:{0}:log"
    assert space.due("0") == b"llmspell:{0}:due"
    assert space.ctl("0") == b"llmspell:{0}:ctl"
    assert space.trash("0") == b"llmspell:{0}:trash"
    assert space.ring("0", "00ff") == b"llmspell:{0}:ring:00ff"
    assert space.events("0") == b"llmspell:{0}:evs"
    assert space.event_idle("0") == b"llmspell:{0}:evidle"
    assert space.event_stats("0") == b"llmspell:{0}:evstat"
    assert space.event_ring("0", "00ff") == b"llmspell:{0}:evring:00ff"
    assert space.event_queue("0", "a:b") == b"llmspell:{0}:evq:a%3Ab"
    assert space.event_dead("0", "a b") == b"llmspell:{0}:evdead:a%20b"
    assert space.event_channel("0", "a.b") == b"llmspell:{0}:ev:a.b"
    assert space.event_bell("0", "q") == b"llmspell:{0}:evbell:q"
    assert space.restores("0") == b"llmspell:{0}:restores"
    assert space.restore("0", "01-x") == b"llmspell:{0}:restore:01-x"
    assert space.staged("0", "01-x", "ab") == b"llmspell:{0}:restore:01-x:ab"
    assert space.correlation("0", "run:1") == b"llmspell:{0}:corr:run%3A1"
    assert KeySpace("a:b", 256).scope(AGENT) == b"a%3Ab:{214}:agent:alice"


@pytest.mark.parametrize("namespace", ["", "x" * 65, ":" * 22, "\ud800", None])
def test_bad_namespace_is_refused(namespace: object) -> None:
    """A namespace has 1 to 64 bytes when printed."""
    with pytest.raises(InvalidScopeError):
        KeySpace(namespace)  # type: ignore[arg-type]


@pytest.mark.parametrize("shards", [0, -1, 1.0, True, "1", 16_385])
def test_bad_shard_count_is_refused(shards: object) -> None:
    """A shard count is an int from 1 to 16,384."""
    with pytest.raises(InvalidArgumentError):
        KeySpace("n", shards)  # type: ignore[arg-type]


def test_parts_that_scripts_build_need_no_encoding() -> None:
    """A generation, a client and a shard are plain."""
    space = KeySpace()
    for call in (lambda: space.generation(AGENT, "a:b"), lambda: space.ring("0", ""),
                 lambda: space.log("1"), lambda: space.log("00")):  # fmt: skip
        with pytest.raises(InvalidArgumentError):
            call()


@pytest.mark.parametrize(
    "foreign",
    [b"", b"llmspell", b"llmspell:{0}", b"llmspell:{0}:", b"other:{0}:log", b"llmspell:{1}:log",
     b"llmspell:{00}:log", b"llmspell:0:log", b"llmspell:{0}:logs", b"llmspell:{0}:agent:a:x",
     b"llmspell:{0}:agent:a:p", b"llmspell:{0}:agent:a:p:", b"llmspell:{0}:agent:a:ttl:x",
     b"llmspell:{0}:log:x", b"llmspell:{0}:ring", b"llmspell:{0}:agent:\xff",
     "llmspell:{0}:agent:e\u0301".encode()],
)  # fmt: skip
def test_foreign_key_is_not_parsed(foreign: bytes) -> None:
    """Parsing understands exactly what printing prints."""
    with pytest.raises(InvalidArgumentError):
        KeySpace().parse(foreign)


def test_key_in_the_wrong_shard_is_not_parsed() -> None:
    """A scope has one shard; its key elsewhere is not ours."""
    with pytest.raises(InvalidArgumentError):
        KeySpace("n", 256).parse(b"n:{0}:agent:alice")
    assert KeySpace("n", 256).parse(b"n:{214}:agent:alice").what is KeyType.SCOPE
