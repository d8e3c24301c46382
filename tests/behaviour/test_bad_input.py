"""Bad input: the error names the argument, the value and the rule, and nothing is sent."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from fix_state import Store

from llmspell_dist import CodecError, InvalidArgumentError, Revision, SpellError, StateManager
from llmspell_dist.errors import InvalidKeyError, InvalidScopeError

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]
S = "agent:alice"
Call = Callable[[StateManager, Any, Any], Any]

CALLS: dict[str, Call] = {
    "get": lambda s, scope, key: s.get(scope, key),
    "get_record": lambda s, scope, key: s.get_record(scope, key),
    "set": lambda s, scope, key: s.set(scope, key, 1),
    "set_if_absent": lambda s, scope, key: s.set_if_absent(scope, key, 1),
    "compare_and_set": lambda s, scope, key: s.compare_and_set(scope, key, 1, expected=None),
    "delete": lambda s, scope, key: s.delete(scope, key),
    "exists": lambda s, scope, key: s.exists(scope, key),
    "increment": lambda s, scope, key: s.increment(scope, key),
    "append": lambda s, scope, key: s.append(scope, key, 1),
    "merge": lambda s, scope, key: s.merge(scope, key, {"a": 1}),
    "get_slice": lambda s, scope, key: s.get_slice(scope, key),
    "update": lambda s, scope, key: s.update(scope, key, lambda v: v),
    "expire": lambda s, scope, key: s.expire(scope, key, 5),
    "persist": lambda s, scope, key: s.persist(scope, key),
    "get_many": lambda s, scope, key: s.get_many(scope, [key]),
    "set_many": lambda s, scope, key: s.set_many(scope, {key: 1}),
    "delete_many": lambda s, scope, key: s.delete_many(scope, [key]),
    "history": lambda s, scope, key: s.history(scope, key),
    "get_at": lambda s, scope, key: s.get_at(scope, key, Revision(1, 1)),
    "tx.get": lambda s, scope, key: s.transaction().get(scope, key),
    "tx.get_many": lambda s, scope, key: s.transaction().get_many(scope, [key]),
}
SCOPE_CALLS: dict[str, Call] = {
    "get_all": lambda s, scope, _: s.get_all(scope),
    "count": lambda s, scope, _: s.count(scope),
    "stat": lambda s, scope, _: s.stat(scope),
    "keys_page": lambda s, scope, _: s.keys_page(scope),
    "items_page": lambda s, scope, _: s.items_page(scope),
    "clear": lambda s, scope, _: s.clear(scope),
    "copy_scope from": lambda s, scope, _: s.copy_scope(scope, S),
    "copy_scope to": lambda s, scope, _: s.copy_scope(S, scope),
    "move_scope": lambda s, scope, _: s.move_scope(scope, S),
}
BAD_KEYS: list[Any] = [
    "", "x" * 257, "é" * 129, "a\0b", "a\rb", "a\nb", "__reserved", "$$", "$$k", "\ud800",
    5, None, b"k", ("k",), "x" * 100_000,
]  # fmt: skip
BAD_SCOPES: list[Any] = [
    "", "agent", "agent:", "agents:a", "global:a", "agent:a b", "agent:a:b", "agent:a/b",
    "agent:%41", "agent:a%2f", "agent:*", "Agent:a", "workflow:w/step:", "step:s",
    "agent:" + "x" * 600,
    5, None, b"agent:a", ("agent", "a"), "agent:\ud800",
]  # fmt: skip


async def test_a_bad_key_is_refused_by_every_call(state: StateManager, store: Store) -> None:
    """Named `key`, shortened, with its rule."""
    before = store.dump(without=())
    for (name, call), key in itertools.product(CALLS.items(), BAD_KEYS):
        with pytest.raises(InvalidKeyError) as caught:
            await call(state, S, key)
        assert caught.value.argument == "key", name
        assert caught.value.rule
        assert len(caught.value.value) <= 60
        assert len(str(caught.value)) < 300
    assert store.dump(without=()) == before


async def test_a_bad_scope_is_refused_by_every_call(state: StateManager, store: Store) -> None:
    """Whatever it is, by the same error."""
    before = store.dump(without=())
    calls = CALLS | SCOPE_CALLS
    for (name, call), scope in itertools.product(calls.items(), BAD_SCOPES):
        with pytest.raises(InvalidScopeError) as caught:
            await call(state, scope, "k")
        assert len(str(caught.value)) < 300, name
    assert store.dump(without=()) == before


async def test_scope_and_key_together_have_a_limit(state: StateManager) -> None:
    """Of 512 bytes with the colon between them."""
    scope = "agent:" + "a" * 300
    key = "k" * (512 - len(scope) - 1)
    await state.set(scope, key, 1)
    assert await state.get(scope, key) == 1
    for name, call in CALLS.items():
        with pytest.raises(InvalidKeyError, match="512") as caught:
            await call(state, scope, key + "k")
        assert caught.value.argument == "key", name


class Sub(dict[str, int]):
    """A subclass would not come back as one."""


BAD_VALUES: list[tuple[Any, str]] = [
    (object(), "$"),
    ([1, {"a": object()}], "$[1].a"),
    ({"a": {"b": [set, 1]}}, "$.a.b[0]"),
    (Sub(), "$"),
    (bytearray(b"x"), "$"),
    ([memoryview(b"x")], "$[0]"),
    (1j, "$"),
    ({"a": lambda: 1}, "$.a"),
    (datetime(2024, 1, 1), "$"),  # noqa: DTZ001 - it is the naive one that is refused
    ("\ud800", "$"),
    ({"k": "\ud800"}, "$.k"),
    (float, "$"),
    ([SpellError], "$[0]"),
    (range(3), "$"),
    (timedelta(1), "$"),
]


async def test_a_value_of_an_unsupported_type_is_refused_with_its_path(
    state: StateManager, store: Store
) -> None:
    """By every call that stores one; a call with several names which of them."""
    await state.set(S, "k", 1)
    before = store.dump(without=())
    calls: list[tuple[Callable[[Any], Any], str]] = [
        (lambda value: state.set(S, "k", value), "$"),
        (lambda value: state.set_if_absent(S, "k", value), "$"),
        (lambda value: state.compare_and_set(S, "k", value, expected=None), "$"),
        (lambda value: state.set_many(S, {"a": 1, "k": value}), "$.k"),
        (lambda value: state.append(S, "l", 0, value), "$[1]"),
        (lambda value: state.merge(S, "m", {"f": value}), "$.f"),
        (lambda value: state.merge(S, "m", {7: value}), "$[7]"),
        (lambda value: state.update(S, "k", lambda _: value), "$"),
    ]
    for (call, root), (value, path) in itertools.product(calls, BAD_VALUES):
        with pytest.raises(CodecError) as caught:
            await call(value)
        assert caught.value.path == path.replace("$", root, 1)
    assert store.dump(without=()) == before


OTHERS: list[tuple[str, Callable[[Any], Any]]] = [
    ("limit", lambda s: s.keys_page(S, limit=0)),
    ("limit", lambda s: s.keys_page(S, limit=5001)),
    ("limit", lambda s: s.items_page(S, limit="5")),
    ("limit", lambda s: s.keys_page(S, limit=True)),
    ("cursor", lambda s: s.keys_page(S, cursor="x")),
    ("cursor", lambda s: s.keys_page(S, cursor="-1")),
    ("cursor", lambda s: s.keys_page(S, cursor="")),
    ("cursor", lambda s: s.items_page(S, cursor=5)),
    ("cursor", lambda s: s.keys_page(S, cursor=str(2**64))),
    ("cursor", lambda s: s.keys_page(S, cursor="٣")),
    ("cursor", lambda s: s.keys_page(S, cursor="1" * 10_000)),
    ("prefix", lambda s: s.keys_page(S, prefix=5)),
    ("prefix", lambda s: s.keys_page(S, prefix="x" * 1025)),
    ("match", lambda s: s.keys_page(S, match=b"x")),
    ("match", lambda s: s.keys_page(S, match="x" * 1025)),
    ("match", lambda s: s.keys_page(S, prefix="a", match="b")),
    ("schema_version", lambda s: s.set(S, "k", 1, schema_version=-1)),
    ("schema_version", lambda s: s.set(S, "k", 1, schema_version=65_536)),
    ("schema_version", lambda s: s.set(S, "k", 1, schema_version="1")),
    ("schema_version", lambda s: s.set_many(S, {"k": 1}, schema_version=True)),
    ("ack", lambda s: s.set(S, "k", 1, ack="memory")),
    ("ack", lambda s: s.set_many(S, {"k": 1}, ack=1)),
    ("ack", lambda s: s.delete(S, "k", ack="memory")),
    ("ack", lambda s: s.increment(S, "k", ack="memory")),
    ("start", lambda s: s.get_slice(S, "k", "0")),
    ("stop", lambda s: s.get_slice(S, "k", 0, 1.5)),
    ("attempts", lambda s: s.update(S, "k", lambda v: v, attempts=1.5)),
]


async def test_other_arguments_are_checked_too(state: StateManager, store: Store) -> None:
    """Each under its own name."""
    before = store.dump(without=())
    for argument, call in OTHERS:
        with pytest.raises(InvalidArgumentError) as caught:
            await call(state)
        assert caught.value.argument == argument
    assert store.dump(without=()) == before


async def test_no_message_quotes_a_value_at_length(state: StateManager) -> None:
    """It may be a secret, and it may be large."""
    secret = "secret " * 1000
    for call in (
        state.set(S, secret, 1),
        state.get("agent:" + secret, "k"),
        state.increment(S, "k", secret),  # type: ignore[arg-type]
        state.set(S, "k", 1, ttl=secret),  # type: ignore[arg-type]
        state.keys_page(S, cursor=secret),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            await call
        assert len(str(caught.value)) < 300
