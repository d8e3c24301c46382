"""What a transaction makes of several changes of one key, without a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmspell_dist.changes import Op
from llmspell_dist.classes import ClassRules, StateClass
from llmspell_dist.clock import ServerClock
from llmspell_dist.codec import Codec
from llmspell_dist.errors import NumberOverflowError, SpellError, WrongKindError
from llmspell_dist.keys import KeySpace
from llmspell_dist.records import Kind, StoredRecord, pack_record
from llmspell_dist.redis.commands import Command
from llmspell_dist.redis.commits import Change, Commit, TTLMode
from llmspell_dist.revision import Revision
from llmspell_dist.state.core import Core
from llmspell_dist.state.partial import Partial
from llmspell_dist.state.reads import Reads
from llmspell_dist.state.steps import CommitRequest
from llmspell_dist.state.transactions import TransactionSteps
from llmspell_dist.state.values import Values
from llmspell_dist.state.writes import Writes
from llmspell_dist.ttl import KEEP

pytestmark = pytest.mark.unit
S = "agent:a"
REVISION = Revision(5, 0)
NOTHING = object()


def transaction() -> TransactionSteps:
    """A transaction that nothing was said in."""
    core = Core(KeySpace("test"), Values(Codec()), ClassRules().resolver(), ServerClock())
    reads = Reads(core)
    return TransactionSteps(core, reads, Writes(core, reads), Partial(core, reads))


def stored(value: Any) -> bytes | None:
    """What a server would give for a key that was set to a value."""
    if value is NOTHING:
        return None
    encoded = Values(Codec()).encode(value, StateClass.STANDARD, S, "k")
    assert isinstance(encoded.payload, bytes)
    return pack_record(
        StoredRecord(encoded.kind, 0, 0, 1, REVISION, REVISION.ms, 0, encoded.payload)
    )


def run(steps: Any, value: Any = NOTHING) -> tuple[Any, Commit | None]:
    """Carry steps out against one record; the result and the commit."""
    reply, commit = None, None
    try:
        while True:
            request = steps.send(reply)
            if isinstance(request, CommitRequest):
                commit, reply = request.commit, b"9-0"
            else:
                assert isinstance(request, Command)
                reply = stored(value)
    except StopIteration as done:
        return done.value, commit


def set_(value: Any, **options: Any) -> Callable[[TransactionSteps], None]:
    """Say set."""
    given_ = {"ttl": KEEP, "state_class": None, "schema_version": 1} | options
    return lambda tx: tx.set(S, "k", value, **given_)


def append(*items: Any, ttl: Any = KEEP) -> Callable[[TransactionSteps], None]:
    """Say append."""
    return lambda tx: tx.append(S, "k", items, ttl)


def merge(fields: Any, *removed: Any, ttl: Any = KEEP) -> Callable[[TransactionSteps], None]:
    """Say merge."""
    return lambda tx: tx.merge(S, "k", fields, removed, ttl)


def increment(by: Any, ttl: Any = KEEP) -> Callable[[TransactionSteps], None]:
    """Say increment."""
    return lambda tx: tx.increment(S, "k", by, ttl)


def expire(ttl: Any) -> Callable[[TransactionSteps], None]:
    """Say expire."""
    return lambda tx: tx.expire(S, "k", ttl)


def delete(tx: TransactionSteps) -> None:
    """Say delete."""
    tx.delete(S, "k")


def ttl_of(change: Change) -> tuple[int, int]:
    """Return the mode and the milliseconds of a change."""
    return change.head[11], int.from_bytes(change.head[12:18], "big")


@pytest.mark.parametrize(
    ("steps", "op", "before", "after"),
    [
        ([set_(1), set_(2)], Op.SET, NOTHING, 2),
        ([set_(1), delete], Op.DELETE, 1, NOTHING),
        ([delete, set_(3)], Op.SET, 1, 3),
        ([set_([1]), append(2), append(3)], Op.SET, NOTHING, [1, 2, 3]),
        ([append(1), append(2, 3)], Op.APPEND, NOTHING, [1, 2, 3]),
        ([append(2), append(3)], Op.APPEND, [1], [1, 2, 3]),
        ([delete, append(1)], Op.SET, [7, 8], [1]),
        ([delete, increment(4)], Op.SET, 100, 4),
        ([delete, merge({"a": 1})], Op.SET, {"b": 2}, {"a": 1}),
        ([set_({"a": 1}), merge({"b": 2}, "a")], Op.SET, NOTHING, {"b": 2}),
        ([merge({"a": 1}), merge({"b": 2}, "a")], Op.MERGE, {"c": 3}, {"b": 2, "c": 3}),
        ([merge({"a": 1}, "b"), merge({"b": 2})], Op.MERGE, {"b": 1}, {"a": 1, "b": 2}),
        ([merge({"a": 1}, "a")], Op.MERGE, {"b": 1}, {"b": 1}),
        ([merge({}, "a"), merge({"a": 2}, "a")], Op.MERGE, {"a": 1}, {}),
        ([increment(1), increment(2.5)], Op.INCREMENT, 1, 4.5),
        ([set_(5), increment(2), increment(-1)], Op.SET, NOTHING, 6),
        ([expire(5), append(1)], Op.APPEND, NOTHING, [1]),
        ([append(1), set_("x")], Op.SET, [0], "x"),
        ([increment(1), delete, append(1)], Op.SET, 5, [1]),
    ],
)
def test_changes_of_one_key_become_one(
    steps: list[Callable[[TransactionSteps], None]], op: Op, before: Any, after: Any
) -> None:
    """What the transaction shows is what they come to one after the other."""
    tx = transaction()
    for step in steps:
        step(tx)
    shown, _ = run(tx.get(S, "k", NOTHING, None), before)
    assert shown == after
    blind = transaction()
    for step in steps:
        step(blind)
    revision, commit = run(blind.commit(), before)
    assert commit is not None
    (change,) = commit.changes
    assert change.head[0] == op
    assert revision == Revision(9, 0)
    assert commit.conditions == []
    if op == Op.SET:
        encoded = Values(Codec()).encode(after, StateClass.STANDARD, S, "k")
        assert change.payload == encoded.payload
        assert change.head[1] >> 4 == encoded.kind


@pytest.mark.parametrize(
    ("steps", "mode", "ms"),
    [
        ([set_(1, ttl=5), set_(2)], TTLMode.SET, 5000),
        ([set_(1, ttl=5), set_(2, ttl=None)], TTLMode.DROP, 0),
        ([set_(1, ttl=5), set_(2, ttl=7)], TTLMode.SET, 7000),
        ([set_(1), set_(2)], TTLMode.KEEP, 0),
        ([set_(1), expire(5)], TTLMode.SET, 5000),
        ([set_(1, ttl=5), expire(None)], TTLMode.DROP, 0),
        ([expire(5), set_(1)], TTLMode.IF_PRESENT, 5000),
        ([expire(5)], TTLMode.SET, 5000),
        ([expire(5), expire(None)], TTLMode.DROP, 0),
        ([delete, set_(1)], TTLMode.DROP, 0),
        ([delete, append(1)], TTLMode.DROP, 0),
        ([delete, append(1, ttl=5)], TTLMode.SET, 5000),
        ([set_([1], ttl=5), append(1)], TTLMode.SET, 5000),
        ([set_([1], ttl=5), append(1, ttl=None)], TTLMode.DROP, 0),
        ([append(1, ttl=5), append(2)], TTLMode.SET, 5000),
        ([append(1, ttl=5), append(2, ttl=6)], TTLMode.SET, 6000),
        ([expire(5), increment(1)], TTLMode.IF_PRESENT, 5000),
        ([increment(1), expire(5)], TTLMode.SET, 5000),
        ([merge({"a": 1}, ttl=5), merge({"b": 1})], TTLMode.SET, 5000),
        ([set_(1, state_class=StateClass.EPHEMERAL)], TTLMode.DEFAULT, 3_600_000),
        ([delete, set_(1, state_class=StateClass.EPHEMERAL)], TTLMode.SET, 3_600_000),
    ],
)
def test_the_last_word_on_the_ttl_counts(
    steps: list[Callable[[TransactionSteps], None]], mode: TTLMode, ms: int
) -> None:
    """Keeping leaves what an earlier change of the transaction said."""
    tx = transaction()
    for step in steps:
        step(tx)
    _, commit = run(tx.commit())
    assert commit is not None
    assert ttl_of(commit.changes[0]) == (mode, ms)


@pytest.mark.parametrize(
    "steps",
    [
        [append(1), merge({"a": 1})],
        [append(1), increment(1)],
        [increment(1), append(1)],
        [merge({"a": 1}), append(1)],
        [set_("x"), append(1)],
        [set_("x"), increment(1)],
        [set_([1]), merge({"a": 1})],
        [set_(True), increment(1)],
        [set_(None), append(1)],
        [set_((1,)), append(1)],
    ],
)
def test_changes_that_do_not_fit_each_other_are_refused_at_once(
    steps: list[Callable[[TransactionSteps], None]],
) -> None:
    """And leave the transaction as it was."""
    tx = transaction()
    steps[0](tx)
    with pytest.raises(WrongKindError) as caught:
        steps[1](tx)
    assert (caught.value.scope, caught.value.key) == (S, "k")
    _, commit = run(tx.commit())
    assert commit is not None
    alone = transaction()
    steps[0](alone)
    _, expected = run(alone.commit())
    assert expected is not None
    assert commit.changes[0].head == expected.changes[0].head


def test_sums_beyond_64_bits_are_refused() -> None:
    """On a value that is to be set, and between two increments."""
    for first in (set_(2**63 - 1), increment(2**63 - 1)):
        tx = transaction()
        first(tx)
        with pytest.raises(NumberOverflowError):
            increment(1)(tx)


def test_class_and_version_of_a_set_stay_with_what_is_added() -> None:
    """As they would on the server."""
    tx = transaction()
    set_([1], state_class=StateClass.TRUSTED, schema_version=7)(tx)
    append(2)(tx)
    _, commit = run(tx.commit())
    assert commit is not None
    head = commit.changes[0].head
    assert head[1] == Kind.VALUE << 4 | StateClass.TRUSTED
    assert int.from_bytes(head[3:5], "big") == 7


def test_a_read_is_a_condition_and_is_asked_once() -> None:
    """On its revision, or on the absence of the key."""
    for value, mode in (("x", 1), (NOTHING, 2)):
        tx = transaction()
        assert run(tx.get(S, "k", NOTHING, None), value)[0] == value
        assert run(tx.get(S, "k", NOTHING, None), "other")[0] == value
        _, commit = run(tx.commit())
        assert commit is not None
        assert commit.changes == []
        (guard,) = commit.conditions
        assert guard.head[0] == mode
        assert Revision.unpack(guard.head[1:]) == (None if value is NOTHING else REVISION)


texts = st.sampled_from("abc")
numbers = st.integers(-5, 5)
operations = st.one_of(
    st.tuples(
        st.just("set"),
        st.one_of(numbers, st.lists(numbers, max_size=2), st.dictionaries(texts, numbers)),
    ),
    st.tuples(st.just("delete"), st.none()),
    st.tuples(st.just("append"), st.lists(numbers, min_size=1, max_size=2)),
    st.tuples(st.just("increment"), numbers),
    st.tuples(
        st.just("merge"), st.tuples(st.dictionaries(texts, numbers, min_size=1), st.sets(texts))
    ),
)


def _or(value: Any, default: Any) -> Any:
    return default if value is NOTHING else value


def sequential(value: Any, name: str, argument: Any) -> Any:
    """What one operation makes of a value; WrongKindError where it does not fit."""
    if name == "set":
        return argument
    if name == "delete":
        return NOTHING
    kind: type = {"append": list, "increment": int, "merge": dict}[name]
    if value is not NOTHING and type(value) is not kind:
        raise WrongKindError(S, "k", "?", name)
    if name == "append":
        return [*_or(value, []), *argument]
    if name == "increment":
        return _or(value, 0) + argument
    merged = {**_or(value, {}), **argument[0]}
    return {field: item for field, item in merged.items() if field not in argument[1]}


@given(
    st.one_of(st.just(NOTHING), numbers, st.lists(numbers, max_size=2)),
    st.lists(operations, max_size=6),
)
def test_folding_is_the_same_as_one_after_the_other(
    base: Any, given_: list[tuple[str, Any]]
) -> None:
    """For every sequence; one that could not be carried out is refused, now or when it is read."""
    tx = transaction()
    expected = base
    apply: dict[str, Callable[[Any], None]] = {
        "set": lambda a: set_(a)(tx),
        "delete": lambda _: delete(tx),
        "append": lambda a: append(*a)(tx),
        "increment": lambda a: increment(a)(tx),
        "merge": lambda a: merge(a[0], *a[1])(tx),
    }
    try:
        for name, argument in given_:
            expected = sequential(expected, name, argument)
    except WrongKindError:
        with pytest.raises(SpellError):  # noqa: PT012 - whichever of them finds it
            for name, argument in given_:
                apply[name](argument)
                run(tx.get(S, "k", NOTHING, None), base)
        return
    for name, argument in given_:
        apply[name](argument)
    found, _ = run(tx.get(S, "k", NOTHING, None), base)
    assert found == expected
