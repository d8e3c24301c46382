"""Names and tokens of redis-py's locks as scopes and owners of leases."""

from __future__ import annotations

from typing import Any

import pytest

from llmspell_dist.compat.holds import Hold, TaskHolds, ThreadHolds, ThreadLocalHolds
from llmspell_dist.compat.names import (
    MAX_TOKEN_BYTES,
    as_bytes,
    is_owner,
    lock_scope,
    make_owner,
    new_token,
)
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.leases.terms import make_terms
from llmspell_dist.scope import MAX_SCOPE_BYTES, Scope

pytestmark = pytest.mark.unit

ODD: list[str | bytes] = [
    "",
    " ",
    "a:b",
    "{tag}x",
    "*",
    "%",
    "x" * 5000,
    "ü" * 300,
    "\x00",
    "\udcff",
    b"\xff\xfe",
]


@pytest.mark.parametrize("name", ODD, ids=range(len(ODD)))
def test_any_name_is_a_scope_of_its_own(name: str | bytes) -> None:
    """Names that no scope can have are known by their digest; none is refused or runs into one."""
    scope = lock_scope(name)
    assert Scope.parse(scope.text) == scope
    assert scope.size <= MAX_SCOPE_BYTES
    others = [lock_scope(other) for other in ODD if other != name]
    assert scope not in others


@pytest.mark.parametrize("name", ["plain", "ü", "a b", ""])
def test_bytes_name_the_same_lock_as_their_text(name: str) -> None:
    """As they are the same key to redis-py."""
    raw = name.encode()
    assert lock_scope(raw) == lock_scope(name) == lock_scope(memoryview(raw))


def test_a_number_names_the_lock_that_its_digits_name() -> None:
    """redis-py sends it as text."""
    assert lock_scope(7) == lock_scope("7")
    assert lock_scope(1.5) == lock_scope("1.5")


@pytest.mark.parametrize("name", [None, True, ["a"], object()])
def test_what_is_no_name_is_refused(name: Any) -> None:
    """redis-py refuses it too, only later."""
    with pytest.raises(InvalidArgumentError, match="name must be text, bytes or a number"):
        lock_scope(name)


@pytest.mark.parametrize(
    "token",
    [b"w1", b"a#b", b"", b"\xff\x00", b"x" * MAX_TOKEN_BYTES, b"x" * 5000, "ü\n".encode()],
    ids=range(7),
)
def test_the_owner_of_any_token_is_found_by_it(token: bytes) -> None:
    """Two holds of one token are two owners, both found, and no other token finds them."""
    first, second = make_owner(token), make_owner(token)
    assert first != second
    for owner in (first, second):
        assert make_terms(owner=owner).owner == owner
        assert is_owner(owner, token)
        assert not is_owner(owner, token + b"!")
        assert not is_owner(owner, b"other")


def test_new_tokens_are_never_the_same() -> None:
    """A thousand of them."""
    assert len({new_token() for _ in range(1000)}) == 1000


@pytest.mark.parametrize("holds", [ThreadLocalHolds(), ThreadHolds(), TaskHolds()])
def test_a_token_that_is_set_is_a_hold_without_a_lease(holds: Any) -> None:
    """As bytes, whatever it was; None forgets it."""
    assert holds.token is None
    holds.token = "w1"
    assert holds.token == b"w1"
    assert holds.hold.lease is None
    holds.hold.over = True
    assert holds.token is None
    holds.token = memoryview(b"w2")
    assert holds.token == b"w2"
    holds.token = None
    assert holds.token is None


def test_a_hold_knows_that_it_came_over_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the number of the process."""
    hold: Hold[Any] = Hold(b"t", None)
    assert not hold.inherited
    monkeypatch.setattr("llmspell_dist.compat.holds.os.getpid", lambda: hold.pid + 1)
    assert hold.inherited


TOKENS: list[Any] = ["a", b"a", bytearray(b"a"), 1, 2.5]


def test_tokens_become_the_bytes_that_redis_py_would_send() -> None:
    """Text, bytes and numbers."""
    assert [as_bytes("token", one) for one in TOKENS] == [
        b"a",
        b"a",
        b"a",
        b"1",
        b"2.5",
    ]
