"""Hooks see, change and refuse every operation on state, on both surfaces."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from fix_hooks import OTHER, READS, WRITES, Hooked, Operation, S, Seen, fill
from fix_state import Store

from llmspell_dist import ConflictError, InvalidArgumentError
from llmspell_dist.errors import InvalidScopeError
from llmspell_dist.hooks.context import HookContext
from llmspell_dist.hooks.errors import InvalidHookResultError, OperationCancelledError
from llmspell_dist.hooks.points import HookPoint as P
from llmspell_dist.hooks.results import (
    Cache,
    Cancel,
    Fork,
    ForkOperation,
    Modified,
    Redirect,
    Replace,
    Retry,
    Skipped,
)

pytestmark = pytest.mark.integration

METADATA = {"exists", "count", "stat", "scopes", "keys", "keys_page"}
each_write = pytest.mark.parametrize("operation", WRITES, ids=lambda one: one.name)
each_read = pytest.mark.parametrize("operation", READS, ids=lambda one: one.name)


def _without(name: str) -> Callable[[HookContext], None]:
    def remove(ctx: HookContext) -> None:
        ctx.data.pop(name, None)

    return remove


def _answer(result: Any) -> Seen:
    return Seen(lambda _: result)


# --- every operation ------------------------------------------------------------------------------


@each_write
async def test_every_write_is_seen_before_and_behind(hooked: Hooked, operation: Operation) -> None:
    """Once for each key, with its scope, its key and its name."""
    await fill(hooked)
    before, behind = Seen(), Seen()
    hooked.hooks.register(P.BEFORE_STATE_WRITE, before)
    hooked.hooks.register(P.AFTER_STATE_WRITE, behind)
    await operation.call(hooked)
    for seen in (before, behind):
        assert tuple(seen.names) == operation.names
        assert [run.data.get("key") for run in seen.runs] == list(operation.keys)
        assert {run.data["scope"] for run in seen.runs} == {S}
    for run in behind.runs:
        assert run.data["result"] is not None
        assert run.operation is not None
        assert run.operation.result == run.data["result"]
        assert not run.is_error


@each_write
async def test_a_refused_write_leaves_nothing(
    hooked: Hooked, operation: Operation, store: Store
) -> None:
    """Its caller is told by whom and why, hooks behind it do not run, nothing was sent."""
    await fill(hooked)
    whole = store.dump()
    behind = Seen()
    hooked.hooks.register(P.BEFORE_STATE_WRITE, _answer(Cancel("not today")), name="guard")
    hooked.hooks.register(P.AFTER_STATE_WRITE, behind)
    with pytest.raises(OperationCancelledError) as caught:
        await operation.call(hooked)
    refused = caught.value
    assert (refused.hook, refused.point, refused.reason) == (
        "guard",
        P.BEFORE_STATE_WRITE,
        "not today",
    )
    assert store.dump() == whole
    assert behind.runs == []


@each_read
async def test_every_read_is_seen(hooked: Hooked, operation: Operation) -> None:
    """Once for each key; a listing once as a whole before."""
    await fill(hooked)
    before, behind = Seen(), Seen()
    hooked.hooks.register(P.BEFORE_STATE_READ, before)
    hooked.hooks.register(P.AFTER_STATE_READ, behind)
    await operation.call(hooked)
    names = operation.names if operation.seen_as else (operation.name,) * len(operation.keys)
    assert tuple(before.names) == names
    keys = [run.data.get("key") for run in before.runs]
    assert keys[0] == operation.keys[0]
    assert sorted(map(str, keys)) == sorted(map(str, operation.keys))
    if operation.name == "update":  # what it reads is written back: nobody looks behind it
        assert behind.runs == []
        return
    assert behind.runs
    assert all("value" in run.data for run in behind.runs)


@pytest.mark.parametrize("operation", [*WRITES, *READS], ids=lambda one: one.name)
async def test_a_name_that_a_hook_removes_is_named(hooked: Hooked, operation: Operation) -> None:
    """Whoever called is told which one, before anything is carried out; behind it nobody cares."""
    await fill(hooked)
    before, behind = P.BEFORE_STATE_READ, P.AFTER_STATE_READ
    if operation in WRITES:
        before, behind = P.BEFORE_STATE_WRITE, P.AFTER_STATE_WRITE
    seen = Seen()
    hooked.hooks.register(before, seen, name="seen")
    for name in ("scope", "key"):
        hooked.hooks.register(behind, _without(name), name=name)
    await operation.call(hooked)
    hooked.hooks.clear()
    for name in seen.runs[0].data:
        hooked.hooks.register(before, _without(name))
        with pytest.raises(InvalidArgumentError, match=f"{name} must stay in the data"):
            await operation.call(hooked)
        hooked.hooks.clear()


@each_read
async def test_a_refused_read_gives_nothing(hooked: Hooked, operation: Operation) -> None:
    """Before it and behind it."""
    await fill(hooked)
    points = (P.BEFORE_STATE_READ, P.AFTER_STATE_READ)
    for point in points[:1] if operation.name == "update" else points:
        hooked.hooks.register(point, _answer(Cancel("secret")), name="guard")
        with pytest.raises(OperationCancelledError, match="cancelled by hook guard at"):
            await operation.call(hooked)
        hooked.hooks.clear()
    await operation.call(hooked)


@pytest.mark.parametrize(
    "operation",
    [one for one in READS if one.name not in {*METADATA, "update"}],
    ids=lambda one: one.name,
)
async def test_no_read_gets_round_a_hook_that_redacts(hooked: Hooked, operation: Operation) -> None:
    """Whatever is called, the value itself never comes back."""
    await hooked.do(hooked.state.set(S, "k", "secret"))
    await hooked.do(hooked.state.append(S, "l", "secret"))

    def redact(ctx: HookContext) -> Modified:
        value = ctx.data["value"]
        return Modified({"value": ["***"] if type(value) is list else "***"})

    hooked.hooks.register(P.AFTER_STATE_READ, redact)
    found = await operation.call(hooked)
    assert "secret" not in repr(found)
    assert "***" in repr(found)


@pytest.mark.parametrize(
    "operation",
    [
        one
        for one in WRITES
        if one.name
        in {
            "set",
            "set_if_absent",
            "compare_and_set",
            "append",
            "merge",
            "update",
            "set_many",
            "transaction: set",
            "transaction: append",
            "transaction: merge",
            "transaction: set_if_absent",
        }
    ],
    ids=lambda one: one.name,
)
async def test_no_write_gets_round_a_hook_that_changes_values(
    hooked: Hooked, operation: Operation
) -> None:
    """What is stored is what the hook made of it."""
    await fill(hooked)
    marked = {"list": ["changed"], "dict": {"changed": 1}}

    def change(ctx: HookContext) -> Modified:
        return Modified({"value": marked.get(type(ctx.data["value"]).__name__, "changed")})

    hooked.hooks.register(P.BEFORE_STATE_WRITE, change)
    await operation.call(hooked)
    hooked.hooks.clear()
    for key in operation.keys:
        assert "changed" in repr(await hooked.do(hooked.state.get(S, key)))


async def test_an_aged_value_is_redacted_too(hooked: Hooked) -> None:
    """`get_at` reads the past."""
    await hooked.do(hooked.state.set(S, "k", "secret"))
    hooked.hooks.register(P.AFTER_STATE_READ, _answer(Replace("***")))
    assert await hooked.do(hooked.state.get_at(S, "k", datetime.now(UTC))) == "***"


# --- before a write -------------------------------------------------------------------------------


async def test_modified_parts_are_what_is_carried_out(hooked: Hooked) -> None:
    """Value, key and expiry; and what the caller gave is his own."""
    hooked.hooks.register(
        P.BEFORE_STATE_WRITE, _answer(Modified({"value": [1], "key": "elsewhere", "ttl": 100}))
    )
    given = {"a": 1}
    await hooked.do(hooked.state.set(S, "k", given))
    record = await hooked.do(hooked.state.get_record(S, "elsewhere"))
    assert record.value == [1]
    assert record.expires is not None
    assert await hooked.do(hooked.state.get(S, "k")) is None
    assert given == {"a": 1}


async def test_hooks_see_what_earlier_ones_made_of_it(hooked: Hooked) -> None:
    """In the order of their priorities, whatever the order of registration."""
    last = Seen()
    hooked.hooks.register(P.BEFORE_STATE_WRITE, last, priority=100)
    hooked.hooks.register(
        P.BEFORE_STATE_WRITE, lambda c: Modified({"value": c.data["value"] + "b"}), name="b"
    )
    hooked.hooks.register(
        *(P.BEFORE_STATE_WRITE, lambda c: Modified({"value": c.data["value"] + "a"})),
        name="a",
        priority=-100,
    )
    await hooked.do(hooked.state.set(S, "k", "-"))
    assert last.runs[0].data["value"] == "-ab"
    assert await hooked.do(hooked.state.get(S, "k")) == "-ab"


async def test_what_a_hook_modified_is_checked_as_the_users(hooked: Hooked) -> None:
    """An empty key, a value that cannot be stored, a part that nobody knows."""
    bad: dict[str, tuple[Any, type[Exception]]] = {
        "key": ("", InvalidArgumentError),
        "value": (object(), ValueError),
        "scope": ("nonsense", InvalidScopeError),
        "ttl": (-1, InvalidArgumentError),
        "vlaue": (1, InvalidHookResultError),
    }
    for part, (value, error) in bad.items():
        hooked.hooks.register(P.BEFORE_STATE_WRITE, _answer(Modified({part: value})), name="bad")
        with pytest.raises(error):
            await hooked.do(hooked.state.set(S, "k", 1))
        hooked.hooks.clear()
    assert await hooked.do(hooked.state.get_all(S)) == {}


async def test_a_redirected_write_is_carried_out_there(hooked: Hooked) -> None:
    """In the other scope, under the other key if there is one."""
    await fill(hooked)
    hooked.hooks.register(P.BEFORE_STATE_WRITE, _answer(Redirect(OTHER, "there")))
    await hooked.do(hooked.state.set(S, "k", "new"))
    hooked.hooks.clear()
    assert await hooked.do(hooked.state.get(S, "k")) == "old"
    assert await hooked.do(hooked.state.get(OTHER, "there")) == "new"


async def test_a_batch_is_redirected_key_by_key(hooked: Hooked) -> None:
    """And stays one commit."""
    hooked.hooks.register(
        P.BEFORE_STATE_WRITE, lambda c: Redirect(OTHER) if c.data["key"] == "b" else None, name="r"
    )
    await hooked.do(hooked.state.set_many(S, {"a": 1, "b": 2}))
    hooked.hooks.clear()
    assert await hooked.do(hooked.state.get_all(S)) == {"a": 1}
    assert await hooked.do(hooked.state.get_all(OTHER)) == {"b": 2}
    first = await hooked.do(hooked.state.get_record(S, "a"))
    second = await hooked.do(hooked.state.get_record(OTHER, "b"))
    assert first.revision == second.revision


async def test_a_replaced_write_is_not_carried_out(hooked: Hooked) -> None:
    """Its caller gets the value; of a batch the others go on."""
    hooked.hooks.register(
        P.BEFORE_STATE_WRITE, lambda c: Replace("mine") if c.data["key"] == "b" else None, name="r"
    )
    assert await hooked.do(hooked.state.set(S, "b", 1)) == "mine"
    await hooked.do(hooked.state.set_many(S, {"a": 1, "b": 2}))
    assert await hooked.do(hooked.state.set_many(S, {"b": 2})) == "mine"
    assert await hooked.do(hooked.state.get_all(S)) == {"a": 1}


@pytest.mark.parametrize("point", [P.BEFORE_STATE_WRITE, P.BEFORE_STATE_READ])
async def test_retry_asks_again_and_gives_up(hooked: Hooked, point: P) -> None:
    """As often as the hook says, in all."""
    await fill(hooked)
    call = hooked.state.set if point is P.BEFORE_STATE_WRITE else hooked.state.get
    arguments = (S, "k", "x")
    twice = Seen(lambda _: Retry(0.001, 5) if len(twice.runs) < 3 else None)
    hooked.hooks.register(point, twice, name="again")
    await hooked.do(call(*arguments))
    assert len(twice.runs) == 3
    hooked.hooks.clear()
    always = _answer(Retry(0, 4))
    hooked.hooks.register(point, always, name="again")
    with pytest.raises(OperationCancelledError, match="gave up after 4 attempts"):
        await hooked.do(call(*arguments))
    assert len(always.runs) == 4


async def test_a_fork_is_carried_out_beside(hooked: Hooked) -> None:
    """Hooks do not see it; hooks behind the operation are told how it went."""
    operations = (
        ForkOperation("copy", "set", {"scope": OTHER, "key": "copy", "value": 1}),
        ForkOperation("count", "increment", {"scope": OTHER, "key": "n"}),
        ForkOperation("fails", "increment", {"scope": OTHER, "key": "copy", "by": "x"}),
    )
    before, behind = _answer(Fork(operations)), Seen()
    hooked.hooks.register(P.BEFORE_STATE_WRITE, before)
    hooked.hooks.register(P.AFTER_STATE_WRITE, behind)
    await hooked.do(hooked.state.set(S, "k", 1))
    hooked.hooks.clear()
    assert await hooked.do(hooked.state.get_all(OTHER)) == {"copy": 1, "n": 1}
    assert len(before.runs) == len(behind.runs) == 1
    forked = behind.runs[0].data["forked"]
    assert forked["count"] == 1
    assert isinstance(forked["fails"], InvalidArgumentError)


async def test_an_impossible_fork_is_refused_before_anything_happens(hooked: Hooked) -> None:
    """With the hook, and what is wrong."""
    for operation in (
        ForkOperation("x", "explode", {}),
        ForkOperation("x", "set", {"scope": S}),
        ForkOperation("x", "delete", {"scope": S, "key": "k", "colour": 1}),
    ):
        hooked.hooks.register(P.BEFORE_STATE_WRITE, _answer(Fork((operation,))), name="forks")
        with pytest.raises(InvalidHookResultError, match="it forked x"):
            await hooked.do(hooked.state.set(S, "k", 1))
        hooked.hooks.clear()
    assert await hooked.do(hooked.state.get(S, "k")) is None


async def test_cache_and_skipped_before_a_write(hooked: Hooked) -> None:
    """A write cannot be answered from memory; skipping it changes nothing."""
    hooked.hooks.register(P.BEFORE_STATE_WRITE, _answer(Cache("c", 10)), name="caches")
    with pytest.raises(InvalidHookResultError) as caught:
        await hooked.do(hooked.state.set(S, "k", 1))
    said = str(caught.value)
    assert all(word in said for word in ("caches", "BeforeStateWrite", "Cache", "Cancel, Continue"))
    hooked.hooks.clear()
    hooked.hooks.register(P.BEFORE_STATE_WRITE, _answer(Skipped("nothing to do")))
    await hooked.do(hooked.state.set(S, "k", 2))
    assert await hooked.do(hooked.state.get(S, "k")) == 2


# --- before a read --------------------------------------------------------------------------------


async def test_a_read_is_modified_redirected_replaced(hooked: Hooked) -> None:
    """What the caller gets is what the hook let him have."""
    await fill(hooked)
    await hooked.do(hooked.state.set(OTHER, "k", "other"))
    for answer, expected in (
        (Modified({"key": "n"}), 1),
        (Modified({"scope": OTHER}), "other"),
        (Redirect(OTHER), "other"),
        (Redirect(OTHER, "nothing"), None),
        (Replace("mine"), "mine"),
        (Skipped(), "old"),
        (None, "old"),
    ):
        hooked.hooks.register(P.BEFORE_STATE_READ, _answer(answer), name="reads")
        assert await hooked.do(hooked.state.get(S, "k")) == expected, answer
        hooked.hooks.clear()


async def test_each_key_of_a_batch_is_read_where_hooks_say(hooked: Hooked) -> None:
    """Under the name that the caller asked for."""
    await fill(hooked)
    await hooked.do(hooked.state.set(OTHER, "k", "other"))
    answers = {"k": Redirect(OTHER), "n": Replace(7), "l": Modified({"key": "m"})}
    hooked.hooks.register(P.BEFORE_STATE_READ, lambda c: answers.get(c.data["key"]), name="reads")
    found = await hooked.do(hooked.state.get_many(S, ["k", "n", "l", "ttl", "none"]))
    assert found == {"k": "other", "n": 7, "l": {"a": 1}, "ttl": "ends"}
    (read,) = await hooked.transact(lambda tx: tx.get_many(S, ["k", "n", "l"]))
    assert read == {"k": "other", "n": 7, "l": {"a": 1}}


async def test_a_cached_read_is_answered_from_memory(hooked: Hooked) -> None:
    """Each caller gets a copy of his own, redacted as ever, until the time is over."""
    await hooked.do(hooked.state.set(S, "k", [1]))
    hooked.hooks.register(P.BEFORE_STATE_READ, lambda c: Cache(c.data["key"], 60), name="caches")
    first = await hooked.do(hooked.state.get(S, "k"))
    first.append("changed by a caller")
    await hooked.do(hooked.state.set(S, "k", [2]))
    assert await hooked.do(hooked.state.get(S, "k")) == [1]
    assert await hooked.do(hooked.state.get_many(S, ["k"])) == {"k": [1]}
    hooked.hooks.register(P.AFTER_STATE_READ, _answer(Replace("***")))
    assert await hooked.do(hooked.state.get(S, "k")) == "***"
    hooked.hooks.clear()
    assert await hooked.do(hooked.state.get(S, "k")) == [2]


# --- behind an operation --------------------------------------------------------------------------


async def test_what_is_behind_a_read_changes_what_the_caller_gets(hooked: Hooked) -> None:
    """Modified and Replace; of a record only its value."""
    await fill(hooked)
    for answer in (Modified({"value": 7}), Replace(7)):
        hooked.hooks.register(P.AFTER_STATE_READ, _answer(answer), name="changes")
        assert await hooked.do(hooked.state.get(S, "k")) == 7
        record = await hooked.do(hooked.state.get_record(S, "k"))
        assert (record.key, record.value) == ("k", 7)
        hooked.hooks.clear()


async def test_a_read_is_made_again(hooked: Hooked) -> None:
    """Until the hook is content; then it has what is there by then."""
    await hooked.do(hooked.state.set(S, "k", 0))
    writer = hooked.state

    def wait(ctx: HookContext) -> Retry | None:
        return Retry(0, 10) if ctx.data["value"] < 2 else None

    def count_up(_: HookContext) -> Fork:
        return Fork((ForkOperation("n", "increment", {"scope": S, "key": "k"}),))

    hooked.hooks.register(P.AFTER_STATE_READ, count_up, priority=-1)
    hooked.hooks.register(P.AFTER_STATE_READ, wait)
    assert await hooked.do(writer.get(S, "k")) == 2


async def test_what_is_behind_a_write_changes_the_callers_result(hooked: Hooked) -> None:
    """The write itself has happened."""
    for answer in (Modified({"result": "mine"}), Replace("mine")):
        hooked.hooks.register(P.AFTER_STATE_WRITE, _answer(answer), name="changes")
        assert await hooked.do(hooked.state.set(S, "k", 1)) == "mine"
        assert await hooked.do(hooked.state.increment(S, "n")) == "mine"
        hooked.hooks.clear()
    assert await hooked.do(hooked.state.get_all(S)) == {"k": 1, "n": 2}


@pytest.mark.parametrize("answer", [Cancel("too late"), Redirect(OTHER), Cache("c", 1)])
async def test_what_has_happened_cannot_be_undone(hooked: Hooked, answer: Any) -> None:
    """The caller is told which hook wanted to."""
    hooked.hooks.register(P.AFTER_STATE_WRITE, _answer(answer), name="late")
    with pytest.raises(InvalidHookResultError, match="hook late at AfterStateWrite"):
        await hooked.do(hooked.state.set(S, "k", 1))
    hooked.hooks.clear()
    hooked.hooks.register(P.AFTER_STATE_WRITE, _answer(Retry()), name="late")
    with pytest.raises(InvalidHookResultError, match="Retry"):
        await hooked.do(hooked.state.set(S, "k", 1))


async def test_a_failed_write_is_seen_and_tried_again(hooked: Hooked) -> None:
    """With its error; after the last attempt that error is what the caller gets."""
    await hooked.do(hooked.state.set(S, "k", "text"))
    failing = _answer(Retry(0, 3))
    hooked.hooks.register(P.AFTER_STATE_WRITE, failing)
    with pytest.raises(Exception, match="increment") as caught:
        await hooked.do(hooked.state.increment(S, "k"))
    assert len(failing.runs) == 3
    assert all(type(run.error) is type(caught.value) for run in failing.runs)
    assert all(run.is_error and run.error_message for run in failing.runs)


# --- conflicts ------------------------------------------------------------------------------------


async def test_a_conflict_has_a_point_of_its_own(hooked: Hooked) -> None:
    """It can be tried again with other arguments, replaced, cancelled, or left alone."""
    revision = await hooked.do(hooked.state.set(S, "k", 1))
    await hooked.do(hooked.state.set(S, "k", 2))

    async def attempt() -> Any:
        return await hooked.do(hooked.state.compare_and_set(S, "k", 3, expected=revision))

    seen = Seen()
    hooked.hooks.register(P.STATE_CONFLICT, seen)
    with pytest.raises(ConflictError):
        await attempt()
    assert isinstance(seen.runs[0].error, ConflictError)
    hooked.hooks.clear()
    hooked.hooks.register(P.STATE_CONFLICT, _answer(Replace("mine")))
    assert await attempt() == "mine"
    hooked.hooks.clear()
    hooked.hooks.register(P.STATE_CONFLICT, _answer(Cancel("enough")))
    with pytest.raises(OperationCancelledError, match="enough"):
        await attempt()
    hooked.hooks.clear()
    assert await hooked.do(hooked.state.get(S, "k")) == 2

    def newer(ctx: HookContext) -> Retry:
        assert isinstance(ctx.error, ConflictError)
        ctx.data["expected"] = ctx.error.actual
        return Retry(0, 3)

    hooked.hooks.register(P.STATE_CONFLICT, newer)
    await attempt()
    assert await hooked.do(hooked.state.get(S, "k")) == 3


async def test_a_conflict_of_a_transaction_is_seen(hooked: Hooked) -> None:
    """It cannot be tried again by a hook, for its reads are stale."""
    await hooked.do(hooked.state.set(S, "k", 1))
    seen = Seen()
    hooked.hooks.register(P.STATE_CONFLICT, seen)

    async def collide() -> None:
        def interfere(_: Any) -> Any:
            return hooked.state.set(S, "k", 2)

        await hooked.transact(lambda tx: tx.get(S, "k"), interfere, lambda tx: tx.set(S, "k", 3))

    with pytest.raises(ConflictError):
        await collide()
    assert len(seen.runs) == 1
    hooked.hooks.clear()
    hooked.hooks.register(P.STATE_CONFLICT, _answer(Retry()), name="again")
    with pytest.raises(InvalidHookResultError, match="a batch can only fail as a whole"):
        await collide()


# --- batches --------------------------------------------------------------------------------------


async def test_one_refusal_refuses_the_whole_batch(hooked: Hooked, store: Store) -> None:
    """Of a batch and of a transaction."""
    await fill(hooked)
    whole = store.dump()
    hooked.hooks.register(
        P.BEFORE_STATE_WRITE, lambda c: Cancel("no") if c.data["key"] == "bad" else None, name="g"
    )
    with pytest.raises(OperationCancelledError):
        await hooked.do(hooked.state.set_many(S, {"k": 1, "bad": 2, "n": 3}))
    with pytest.raises(OperationCancelledError):
        await hooked.transact(lambda tx: tx.set(S, "k", 1), lambda tx: tx.set(S, "bad", 1))
    assert store.dump() == whole


async def test_each_key_of_a_batch_knows_its_place(hooked: Hooked) -> None:
    """The batch, its id and size, and the position in it; all text."""
    seen = Seen()
    hooked.hooks.register(P.BEFORE_STATE_WRITE, seen)
    await hooked.do(hooked.state.set_many(S, {"a": 1, "b": 2}))
    await hooked.transact(lambda tx: tx.set(S, "a", 1), lambda tx: tx.delete(S, "b"))
    batches = [run.metadata for run in seen.runs]
    assert [one["batch"] for one in batches] == ["set_many"] * 2 + ["transaction"] * 2
    assert [one["batch_position"] for one in batches] == ["0", "1"] * 2
    assert {one["batch_size"] for one in batches} == {"2"}
    assert len({one["batch_id"] for one in batches}) == 2


async def test_a_transaction_is_what_the_hooks_leave_of_it(hooked: Hooked) -> None:
    """Values changed, keys moved, changes left out; and it reads what it wrote itself."""
    await fill(hooked)

    def decide(ctx: HookContext) -> Any:
        match ctx.data["key"]:
            case "k":
                return Modified({"value": ctx.data["value"] + "!"})
            case "l":
                return Modified({"value": [*ctx.data["value"], "more"]})
            case "n":
                return Replace(None)
            case _:
                return None

    hooked.hooks.register(P.BEFORE_STATE_WRITE, decide)
    await hooked.transact(
        lambda tx: tx.set(S, "k", "new"),
        lambda tx: tx.append(S, "l", 3),
        lambda tx: tx.increment(S, "n", 100),
        lambda tx: tx.merge(S, "m", {"b": 2}, remove=["a"]),
    )
    hooked.hooks.clear()
    assert await hooked.do(hooked.state.get_all(S)) == {
        "k": "new!",
        "l": [1, 2, 3, "more"],
        "n": 1,
        "m": {"b": 2},
        "ttl": "ends",
    }


async def test_update_is_seen_in_every_attempt(hooked: Hooked) -> None:
    """The function gets what hooks let it see, and what it gives passes them too."""
    await hooked.do(hooked.state.set(S, "k", 1))
    interfered: list[bool] = []

    def function(value: Any) -> Any:
        if not interfered:
            interfered.append(True)
            if hooked.surface == "blocking":
                hooked.state.set(S, "k", 10)
            else:
                return _interfere(hooked, value)
        return value + 1

    async def _interfere(hooked: Hooked, value: Any) -> Any:
        await hooked.state.set(S, "k", 10)
        return value + 1

    writes, conflicts = Seen(), Seen()
    hooked.hooks.register(P.STATE_CONFLICT, conflicts)
    hooked.hooks.register(
        P.BEFORE_STATE_WRITE, lambda c: Modified({"value": c.data["value"] * 2}), name="twice"
    )
    hooked.hooks.register(P.BEFORE_STATE_WRITE, writes, priority=1)
    assert await hooked.do(hooked.state.update(S, "k", function)) == 42
    assert writes.names == ["set", "update", "update"]
    assert len(conflicts.runs) == 1
    assert await hooked.do(hooked.state.get(S, "k")) == 42


# --- leases ---------------------------------------------------------------------------------------


async def test_what_is_written_under_a_lease_is_seen(hooked: Hooked) -> None:
    """A lease hands out a state of its own; it has the same hooks."""
    seen = Seen()
    hooked.hooks.register(P.BEFORE_STATE_WRITE, seen)
    if hooked.surface == "blocking":
        with hooked.spell.leases.acquire(S, ttl=10) as held:
            held.state.set(S, "k", 1)
    else:
        async with hooked.spell.leases.acquire(S, ttl=10) as lease:
            await lease.state.set(S, "k", 1)
    assert seen.names == ["set"]


# --- what a hook that masks must not break --------------------------------------------------------


def _masks(ctx: HookContext) -> Modified:
    assert "value" in ctx.data
    return Modified({"value": "***"})


async def test_a_hook_that_masks_does_not_destroy_what_update_writes(hooked: Hooked) -> None:
    """It works on what is stored; what others read stays masked."""
    await hooked.do(hooked.state.set(S, "k", {"mail": "ann@example.org", "n": 1}))
    hooked.hooks.register(P.AFTER_STATE_READ, _masks)
    await hooked.do(hooked.state.update(S, "k", lambda value: {**value, "n": 2}))
    assert await hooked.do(hooked.state.get(S, "k")) == "***"
    hooked.hooks.clear()
    assert await hooked.do(hooked.state.get(S, "k")) == {"mail": "ann@example.org", "n": 2}


async def test_an_update_is_never_answered_from_memory(hooked: Hooked) -> None:
    """Else nothing would be written."""
    await hooked.do(hooked.state.set(S, "k", 1))
    hooked.hooks.register(P.BEFORE_STATE_READ, lambda _: Cache("k", 60), name="cache")
    assert await hooked.do(hooked.state.get(S, "k")) == 1
    assert await hooked.do(hooked.state.update(S, "k", lambda value: value + 1)) == 2
    hooked.hooks.clear()
    assert await hooked.do(hooked.state.get(S, "k")) == 2


@pytest.mark.parametrize(
    "operation", [one for one in READS if one.name in METADATA], ids=lambda one: one.name
)
async def test_what_is_known_about_values_is_not_masked(
    hooked: Hooked, operation: Operation
) -> None:
    """`value` is None there, and naming it changes nothing; `result` is what the caller gets."""
    await fill(hooked)
    plain = await operation.call(hooked)
    seen = Seen(_masks)
    hooked.hooks.register(P.AFTER_STATE_READ, seen, breaker=False)
    assert await operation.call(hooked) == plain
    (run,) = seen.runs
    assert run.data["value"] is None
    shown = getattr(plain, "items", plain)
    assert run.data["result"] == shown
    assert hooked.hooks.stats()[P.AFTER_STATE_READ][0].failures == 0


@pytest.mark.parametrize("answer", [Modified({"result": "***"}), Replace("***")])
@pytest.mark.parametrize(
    "operation", [one for one in READS if one.name in METADATA], ids=lambda one: one.name
)
async def test_an_answer_of_another_kind_is_refused(
    hooked: Hooked, operation: Operation, answer: Any
) -> None:
    """Before and behind; the caller never gets what its method does not promise."""
    await fill(hooked)
    points = [P.AFTER_STATE_READ]
    if isinstance(answer, Replace):
        points.append(P.BEFORE_STATE_READ)
    for point in points:
        hooked.hooks.register(point, _answer(answer), name="odd")
        with pytest.raises(InvalidHookResultError, match=r"odd at .* must be an? "):
            await operation.call(hooked)
        hooked.hooks.clear()


async def test_hooks_may_change_what_is_known_about_values(hooked: Hooked) -> None:
    """To another of its kind, before and behind."""
    await fill(hooked)
    state, register = hooked.state, hooked.hooks.register
    register(P.AFTER_STATE_READ, _answer(Modified({"result": False})), name="hides")
    assert await hooked.do(state.exists(S, "k")) is False
    hooked.hooks.clear()
    register(P.AFTER_STATE_READ, _answer(Modified({"result": ["k"]})), name="filters")
    assert await hooked.do(state.keys(S)) == ["k"]
    hooked.hooks.clear()
    register(P.BEFORE_STATE_READ, _answer(Replace(["k2"])), name="answers")
    assert await hooked.do(state.keys(S)) == ["k2"]
