"""Operation ids: whatever is sent twice happens once, and a group's members stand alone."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fix_state import Raw, Store

from llmspell_dist import ConflictError, OutcomeUnknownError, StateManager, WrongKindError, connect
from llmspell_dist.changes import Op
from llmspell_dist.client import Spell
from llmspell_dist.errors import CorruptRecordError, OperationReusedError, StoreFullError
from llmspell_dist.records import Kind
from llmspell_dist.redis.commits import (
    RENEW_RING,
    RETRY,
    RING_EXPECTED,
    Change,
    Commit,
    Condition,
    ConditionMode,
    change,
    condition,
    pack_group,
    read_outcome,
)
from llmspell_dist.redis.embedded import EmbeddedServer
from llmspell_dist.revision import Revision

pytestmark = pytest.mark.integration
S = "agent:alice"


class Sender:
    """Sends groups as a lane would, over a plain connection, with sequences of its own choice."""

    def __init__(self, state: StateManager, raw: Raw) -> None:
        self.core = state._driver.core
        self.raw = raw
        self.ring = b"%b:ring:%b" % (
            self.core.scope_key(S).shard,
            os.urandom(8).hex().encode(),
        )

    def commit(
        self,
        *changes: Change,
        scopes: tuple[str, ...] = (S,),
        conditions: tuple[Condition, ...] = (),
    ) -> Commit:
        keys = tuple(self.core.scope_key(scope) for scope in scopes)
        return Commit(keys, changes, conditions, b"")

    def add(self, by: int = 1, key: str = "n") -> Commit:
        return self.commit(change(Op.INCREMENT, key.encode(), b"%d" % by, kind=Kind.NUMBER))

    def put(self, key: str, value: bytes = b"\x01", **options: Any) -> Commit:
        return self.commit(change(Op.SET, key.encode(), value, kind=Kind.VALUE), **options)

    def send(self, *items: tuple[int, int, Commit], body: bool = True) -> list[bytes]:
        (reply,) = self.raw.send(pack_group(self.ring, items, eval_body=body))
        if isinstance(reply, Exception):
            raise reply
        assert isinstance(reply, list)
        return reply

    def one(self, sequence: int, commit: Commit, flags: int = RENEW_RING) -> bytes:
        (outcome,) = self.send((sequence, flags, commit))
        return outcome


@pytest.fixture
def sender(state: StateManager, raw: Raw) -> Sender:
    """Groups by hand."""
    return Sender(state, raw)


async def test_an_operation_that_comes_twice_is_applied_once(
    sender: Sender, state: StateManager, store: Store
) -> None:
    """The second time it gets the first outcome, revision and result alike."""
    commit = sender.add(5)
    first = sender.one(1, commit)
    assert sender.one(1, commit, RENEW_RING | RETRY) == first
    assert sender.one(1, commit, RING_EXPECTED | RETRY) == first
    assert await state.get(S, "n") == 5
    assert len(store.log()) == 1
    done = read_outcome(first, commit)
    assert (done.revision, done.results) == (store.log()[0].revision, [b"5"])
    # Also in a group with others, and after later operations.
    second = sender.add(1)
    replies = sender.send((2, RETRY, second), (1, RETRY, commit), (3, 0, sender.add(1)))
    assert replies[1] == first
    assert await state.get(S, "n") == 7


async def test_other_content_under_the_same_id_is_refused(
    sender: Sender, state: StateManager, store: Store
) -> None:
    """Nothing is changed: the id belongs to another request."""
    sender.one(1, sender.add(5))
    dump = store.dump()
    for other in (sender.add(6), sender.add(5, key="m"), sender.put("k")):
        with pytest.raises(OperationReusedError):
            read_outcome(sender.one(1, other, RETRY), other)
    assert store.dump() == dump


async def test_an_operation_older_than_its_slot_is_of_unknown_outcome(
    sender: Sender, store: Store
) -> None:
    """A later one lies there: nobody can tell any more, so it is not applied again."""
    commit = sender.add(1)
    sender.one(1, commit)
    sender.one(1 + 1024, sender.add(1))
    dump = store.dump()
    with pytest.raises(OutcomeUnknownError) as caught:
        read_outcome(sender.one(1, commit, RETRY), commit)
    assert caught.value.may_have_happened
    assert store.dump() == dump
    # The slot's next owner is welcome.
    assert sender.one(1 + 2048, sender.add(1)).endswith(b" 3")


async def test_a_retry_without_its_ring_is_of_unknown_outcome(
    sender: Sender, state: StateManager, store: Store
) -> None:
    """If the ring must have been there; a first commit of a client has none yet."""
    commit = sender.add(1)
    assert sender.one(7, commit, RETRY | RENEW_RING).endswith(b" 1")
    store.raw("DEL", sender.ring)
    dump = store.dump()
    with pytest.raises(OutcomeUnknownError):
        read_outcome(sender.one(7, commit, RETRY | RING_EXPECTED), commit)
    assert store.dump() == dump
    # What was not sent before cannot have happened.
    assert sender.one(8, commit, RING_EXPECTED).endswith(b" 2")


async def test_a_conflict_is_remembered_too(sender: Sender, state: StateManager) -> None:
    """A retry does not succeed where the first attempt had failed."""
    guard = (condition(ConditionMode.PRESENT, b"k"),)
    commit = sender.put("k", conditions=guard)
    first = sender.one(1, commit)
    assert first.startswith(b"CONFLICT")
    await state.set(S, "k", 0)
    assert sender.one(1, commit, RETRY) == first
    assert await state.get(S, "k") == 0
    with pytest.raises(ConflictError) as caught:
        read_outcome(first, commit)
    assert caught.value.keys == [(S, "k", "present", None)]


async def test_rings_expire_when_nobody_uses_them(sender: Sender, raw: Raw) -> None:
    """After an hour; renewing is asked for now and then."""
    sender.one(1, sender.add(1), 0)
    assert 3_590_000 < raw("PTTL", sender.ring) <= 3_600_000
    raw("PEXPIRE", sender.ring, 60_000)
    sender.one(2, sender.add(1), 0)
    assert raw("PTTL", sender.ring) <= 60_000
    sender.one(3, sender.add(1), RENEW_RING)
    assert 3_590_000 < raw("PTTL", sender.ring) <= 3_600_000


async def test_a_ring_is_there_even_if_nothing_was_kept_in_it(sender: Sender, raw: Raw) -> None:
    """A first operation that changes nothing leaves no ring without an end."""
    nothing = sender.commit(change(Op.DELETE, b"missing", b""))
    assert sender.one(1, nothing, RENEW_RING) == b"- 0"
    assert 3_590_000 < raw("PTTL", sender.ring) <= 3_600_000
    assert raw("HGET", sender.ring, "born") == b"1"


async def test_a_retry_older_than_its_ring_is_unknown(
    sender: Sender, state: StateManager, raw: Raw
) -> None:
    """The ring expired and began anew: that it does not know an operation proves nothing."""
    sender.one(1, sender.add(1), 0)
    raw("DEL", sender.ring)
    sender.one(2, sender.add(1), 0)
    assert sender.one(1, sender.add(1), RETRY) == b"UNKNOWN"
    assert sender.one(1, sender.add(1), RETRY | RING_EXPECTED) == b"UNKNOWN"
    assert await state.get(S, "n") == 2
    assert not sender.one(3, sender.add(1), RETRY).startswith(b"UNKNOWN")


async def test_every_member_of_a_group_has_its_own_outcome(
    sender: Sender, state: StateManager, store: Store
) -> None:
    """Successes, refusals of every kind and a damaged record side by side."""
    await state.set(S, "text", "x")
    await state.set(S, "max", 2**63 - 1)
    await state.append(S, "l", 1)
    await state.set("user:u", "k", 1)
    store.damage(S, "short", b"\x01")
    store.damage(S, "foreign", b"\x02" + b"x" * 30)
    store.damage(S, "headless", b"\x01\x30\x00\x00\x01" + b"\0" * 10)
    absent = (condition(ConditionMode.ABSENT, b"text"),)
    stale = (condition(ConditionMode.REVISION, b"text", Revision(1, 1)),)
    cases: list[tuple[Commit, Any]] = [
        (sender.put("new"), None),
        (sender.put("refused", conditions=absent), ConflictError),
        (sender.put("refused", conditions=stale), ConflictError),
        (sender.add(1, key="text"), WrongKindError),
        (sender.add(1, key="max"), ValueError),
        (sender.put("short"), CorruptRecordError),
        (sender.put("foreign"), CorruptRecordError),
        (sender.add(1, key="foreign"), CorruptRecordError),
        (sender.commit(change(Op.DELETE, b"headless", b"")), CorruptRecordError),
        (sender.commit(change(Op.TTL, b"short", b"", ttl_mode=1, ttl_ms=5)), CorruptRecordError),
        (sender.add(3), None),
        (sender.add(4), None),
        (sender.commit(change(Op.DELETE, b"missing", b"")), None),
        (sender.commit(change(Op.DELETE, b"l", b"")), None),
        (sender.put("k", scopes=("user:u",)), None),
        (
            sender.commit(
                change(Op.SET, b"half", b"\x01", kind=Kind.VALUE),
                change(Op.INCREMENT, b"text", b"1", kind=Kind.NUMBER),
            ),
            WrongKindError,
        ),
    ]
    outcomes = sender.send(*[(i + 1, RENEW_RING, commit) for i, (commit, _) in enumerate(cases)])
    results = []
    for outcome, (commit, expected) in zip(outcomes, cases, strict=True):
        if expected is None:
            results.append(read_outcome(outcome, commit))
        else:
            with pytest.raises(expected) as caught:
                read_outcome(outcome, commit)
            if expected is CorruptRecordError:
                assert caught.value.key in ("short", "foreign", "headless")
    assert [done.results for done in results] == [[], [b"3"], [b"7"], [b"0"], [b"1"], []]
    assert results[3].revision is None
    revisions = [done.revision for done in results if done.revision]
    assert revisions == sorted(set(revisions))
    found = await state.get_many(S, ["new", "refused", "half", "text", "n", "l", "max"])
    assert found == {"new": 1, "text": "x", "n": 7, "max": 2**63 - 1}
    assert store.meta(S).revision == results[4].revision
    assert len({entry.revision for entry in store.log()}) == len(store.log())


async def test_copies_in_a_group_read_their_own_source(sender: Sender, state: StateManager) -> None:
    """However the group numbers the scopes."""
    await state.set("user:u", "k", "of u")
    await state.set("user:w", "k", "of w")
    generation = b"g-1"
    copy = sender.commit(change(Op.COPY, b"k", b"\0\1\0" + generation), scopes=("user:t", "user:u"))
    sender.send((1, 0, sender.put("k", scopes=("user:x",))), (2, 0, sender.add()), (3, 0, copy))
    assert await state.get("user:t", "k") == "of u"


async def test_a_damaged_scope_record_refuses_writes_to_that_scope_alone(
    sender: Sender, state: StateManager, store: Store
) -> None:
    """Its values stay readable one by one."""
    await state.set(S, "k", 1)
    await state.set("user:u", "k", 1)
    store.damage(S, "$$", b"\x01\x02")
    first, second = sender.send(
        (1, 0, sender.put("k")), (2, 0, sender.put("k", scopes=("user:u",)))
    )
    assert first.startswith(b"CORRUPT")
    assert second[:1].isdigit()
    with pytest.raises(CorruptRecordError):
        await state.set(S, "new", 1)
    with pytest.raises(CorruptRecordError):
        await state.count(S)
    with pytest.raises(CorruptRecordError):
        await state.get_all(S)
    assert await state.get(S, "k") == 1
    assert await state.get("user:u", "k") == 1


@pytest.mark.parametrize("when", ["between", "all"])
async def test_a_flushed_script_cache_is_no_obstacle(
    state: StateManager, raw: Raw, when: str
) -> None:
    """The next call brings the script along."""
    await state.set(S, "k", 1)
    for i in range(3):
        if when == "all" or i == 1:
            raw("SCRIPT", "FLUSH")
        assert await state.increment(S, "n") == i + 1
        await state.append(S, "l", "x" * 100)
        await state.set(S, "big", "y" * 600_000)
        assert await state.exists(S, "k")
        assert await state.count(S) == 4
    assert await state.get(S, "l") == ["x" * 100] * 3


# --- a server without memory ----------------------------------------------------------------------


@pytest.fixture
async def full(own_server: Callable[..., EmbeddedServer]) -> AsyncIterator[tuple[Spell, Raw]]:
    """A client of a server of its own, which its test may fill up."""
    server = own_server()
    raw = Raw(str(server.socket))
    async with connect(server.url, namespace="full") as spell:
        yield spell, raw
        raw("CONFIG", "SET", "maxmemory", "0")
        Store(raw, "full").check()
    raw.close()


async def test_a_full_server_refuses_writes_and_takes_deletes(full: tuple[Spell, Raw]) -> None:
    """Refused means that nothing has changed; reads go on."""
    spell, raw = full
    state, store = spell.state, Store(raw, "full")
    await state.set_many(S, {f"k{i}": "x" * 1000 for i in range(20)}, ttl=1000)
    await state.append(S, "l", 1)
    await state.append("user:u", "l", *["y" * 1000] * 20)
    raw("CONFIG", "SET", "maxmemory", "1")
    dump = store.dump()
    for attempt in (
        state.set(S, "k1", 1),
        state.set(S, "new", 1),
        state.append(S, "l", 2),
        state.increment(S, "n"),
        state.merge(S, "m", {"a": 1}),
        state.set(S, "big", "x" * 600_000),
        state.expire(S, "k1", 5),
        state.copy_scope(S, "user:copy"),
        state.move_scope(S, "user:copy"),
        state.set_many(S, {"a": 1, "b": 2}),
    ):
        with pytest.raises(StoreFullError) as caught:
            await attempt
        assert not caught.value.may_have_happened
    with pytest.raises(StoreFullError):  # noqa: PT012 - it comes at the end of the block
        async with state.transaction() as tx:
            tx.set(S, "k1", 1)
            tx.delete(S, "k2")
    assert store.dump() == dump
    assert await state.get(S, "k1") == "x" * 1000
    assert await state.delete(S, "k1")
    assert await state.delete_many(S, ["k2", "k3"]) == 2
    async with state.transaction() as tx:
        tx.delete(S, "k4")
    assert await state.clear("user:u") == 1
    assert await state.count(S) == 17
    assert [change.op for change in await state.history(S, "k1")] == ["delete", "set"]


async def test_in_a_group_on_a_full_server_only_what_frees_memory_goes_through(
    full: tuple[Spell, Raw],
) -> None:
    """Each with its own outcome, in their order."""
    spell, raw = full
    state = spell.state
    await state.set_many(S, {"a": 1, "b": 2, "c": 3})
    sender = Sender(state, raw)
    raw("CONFIG", "SET", "maxmemory", "1")
    delete_a = sender.commit(change(Op.DELETE, b"a", b""))
    delete_b = sender.commit(change(Op.DELETE, b"b", b""))
    items = [sender.put("new"), delete_a, sender.put("c"), delete_b, sender.add()]
    outcomes = sender.send(*[(i + 1, 0, commit) for i, commit in enumerate(items)])
    for outcome, commit in zip(outcomes, items, strict=True):
        if commit in (delete_a, delete_b):
            assert read_outcome(outcome, commit).results == [b"1"]
        else:
            with pytest.raises(StoreFullError):
                read_outcome(outcome, commit)
    raw("CONFIG", "SET", "maxmemory", "0")
    assert await state.get_all(S) == {"c": 3}


async def test_a_full_server_still_sweeps(full: tuple[Spell, Raw]) -> None:
    """What expired makes room."""
    from fix_state import Expiring, sweep_all

    spell, raw = full
    expiring = Expiring(spell.state, raw)
    await expiring(S, k=1, l=[1])
    raw("CONFIG", "SET", "maxmemory", "1")
    assert await sweep_all(spell) == 2
    assert Store(raw, "full").field(S, "k") is None
