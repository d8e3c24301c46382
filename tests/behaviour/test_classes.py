"""State classes: a class decides what is done with a value, on every path."""

from __future__ import annotations

import hmac
import itertools
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest
from fix_state import Expiring, Store

from llmspell_dist import (
    LOCAL_FSYNC,
    MEMORY,
    ClassRules,
    CodecError,
    HistoryUnavailableError,
    InvalidArgumentError,
    LimitError,
    Options,
    StateClass,
    StateManager,
    WrongKindError,
    connect,
)
from llmspell_dist.client import Spell
from llmspell_dist.errors import CipherNotConfiguredError, CorruptRecordError
from llmspell_dist.redis.commits import Commit

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]
S = "agent:alice"
SECRET = "correct horse battery staple"  # what must never lie in Redis as it is


class ToyCipher:
    """Turns every byte around and signs: plain is told from encrypted, and moves are noticed."""

    def encrypt(self, plaintext: bytes, *, associated_data: bytes) -> bytes:
        turned = bytes(255 - byte for byte in plaintext)
        return hmac.digest(associated_data, turned, "sha256") + turned

    def decrypt(self, ciphertext: bytes, *, associated_data: bytes) -> bytes:
        tag, turned = ciphertext[:32], ciphertext[32:]
        if not hmac.compare_digest(tag, hmac.digest(associated_data, turned, "sha256")):
            raise ValueError("not authentic")
        return bytes(255 - byte for byte in turned)


@pytest.fixture
async def ciphered(url: str, namespace: str) -> AsyncIterator[Spell]:
    """A client that can encrypt, and has no rules."""
    options = Options(namespace=namespace, cipher=ToyCipher())
    async with connect(url, options=options) as spell:
        yield spell


async def class_of(state: StateManager, scope: str, key: str) -> StateClass:
    """Return the class of a record."""
    record = await state.get_record(scope, key)
    assert record is not None
    return record.state_class


async def test_argument_pattern_scope_and_kind_decide_in_this_order(
    url: str, namespace: str
) -> None:
    """On every call that may create a key."""
    rules = ClassRules(
        patterns=(("tmp:*", StateClass.EPHEMERAL),),
        scopes={"agent:alice": StateClass.BULK, "agent": StateClass.TRUSTED},
        default=StateClass.ARCHIVE,
    )
    async with connect(url, options=Options(namespace=namespace, classes=rules)) as spell:
        state = spell.state
        await state.set(S, "tmp:a", 1, state_class=StateClass.STANDARD)
        assert await class_of(state, S, "tmp:a") is StateClass.STANDARD
        for key, scope, expected in (
            ("tmp:b", S, StateClass.EPHEMERAL),
            ("k", S, StateClass.BULK),
            ("k", "agent:bob", StateClass.TRUSTED),
            ("k", "user:u", StateClass.ARCHIVE),
        ):
            await state.set(scope, key, 1)
            await state.set_many(scope, {key + "-many": 1})
            await state.increment(scope, key + "-n")
            await state.append(scope, key + "-l", 1)
            await state.merge(scope, key + "-m", {"a": 1})
            await state.update(scope, key + "-u", lambda _: 1)
            async with state.transaction() as tx:
                tx.set(scope, key + "-tx", 1)
                tx.append(scope, key + "-txl", 1)
                tx.increment(scope, key + "-txn")
            for suffix in ("", "-many", "-n", "-l", "-m", "-u", "-tx", "-txl", "-txn"):
                found = await class_of(state, scope, key + suffix)
                assert found is expected, (scope, key + suffix)


@pytest.mark.parametrize("state_class", list(StateClass))
async def test_a_value_of_any_class_is_listed_read_copied_and_deleted(
    ciphered: Spell, state_class: StateClass
) -> None:
    """Plainly, like any other."""
    state = ciphered.state
    values: dict[str, Any] = {"v": {"a": ["x" * 200]}, "n": 5, "t": "text", "big": "z" * 600_000}
    for key, value in values.items():
        await state.set(S, key, value, state_class=state_class)
    values["l"], values["m"] = [1, "a"], {"f": "g"}
    await state.append(S, "l", 1, "a", state_class=state_class)
    await state.merge(S, "m", {"f": "g"}, state_class=state_class)
    for key, value in values.items():
        assert await state.get(S, key) == value
        assert await class_of(state, S, key) is state_class
        assert await state.exists(S, key)
    assert await state.get_many(S, values) == values
    assert await state.get_all(S) == values
    assert {key: value async for key, value in state.items(S)} == values
    assert {key async for key in state.keys(S)} == set(values)
    await state.copy_scope(S, "user:copy")
    assert await state.get_all("user:copy") == values
    for key in values:
        assert await class_of(state, "user:copy", key) is state_class
    assert await state.increment(S, "n", 2) == 7
    assert await state.append(S, "l", 2) == 3
    assert await state.merge(S, "m", {"h": 1}) == 2
    assert (await state.get(S, "l"), await state.get(S, "m")) == ([1, "a", 2], {"f": "g", "h": 1})
    for key in values:
        assert await class_of(state, S, key) is state_class
        assert await state.delete(S, key)


@pytest.mark.parametrize("state_class", [StateClass.BULK, StateClass.EPHEMERAL])
async def test_a_class_that_keeps_values_out_of_the_log_has_no_past(
    state: StateManager, store: Store, state_class: StateClass
) -> None:
    """What happened is told, what was written is not."""
    revisions = {
        "v": await state.set(S, "v", SECRET, state_class=state_class),
        "n": await state.set(S, "n", 987_654_321, state_class=state_class),
    }
    await state.append(S, "l", SECRET, state_class=state_class)
    await state.merge(S, "m", {"a": SECRET}, state_class=state_class)
    await state.set(S, "w", [SECRET], state_class=state_class)
    await state.append(S, "w", SECRET)
    await state.increment(S, "n", state_class=state_class)
    await state.copy_scope(S, "user:copy")
    dump = store.dump()
    log = repr(dump[store.space.log("0")])
    assert SECRET not in log
    assert "987654321" not in log
    await state.set(S, "v", "new", state_class=state_class)
    await state.append(S, "l", "new")
    for key in ("v", "n", "l", "m", "w"):
        history = await state.history(S, key)
        assert history
        for change in history:
            assert not change.has_value
            assert change.value is None
            assert change.state_class is state_class
    for key, revision in revisions.items():
        with pytest.raises(HistoryUnavailableError) as caught:
            await state.get_at(S, key, revision)
        assert (caught.value.scope, caught.value.key) == (S, key)
    with pytest.raises(HistoryUnavailableError):
        await state.get_at(S, "l", (await state.history(S, "l"))[-1].revision)


async def test_ephemeral_values_live_an_hour_unless_told_otherwise(state: StateManager) -> None:
    """Counted from the first set; an update does not prolong it."""

    async def lives(key: str) -> timedelta | None:
        record = await state.get_record(S, key)
        assert record is not None
        # Whole seconds: the expiry counts from a moment within the same commit.
        if record.expires is None:
            return None
        return timedelta(seconds=round((record.expires - record.created).total_seconds()))

    ephemeral = StateClass.EPHEMERAL
    hour = timedelta(hours=1)
    await state.set(S, "k", 1, state_class=ephemeral)
    assert await lives("k") == hour
    await state.set(S, "k", 2, state_class=ephemeral)
    assert await lives("k") == hour
    await state.set(S, "own", 1, state_class=ephemeral, ttl=5)
    assert await lives("own") == timedelta(seconds=5)
    await state.set(S, "forever", 1, state_class=ephemeral, ttl=None)
    assert await lives("forever") is None
    await state.append(S, "l", 1, state_class=ephemeral)
    assert await lives("l") == hour
    await state.increment(S, "n", state_class=ephemeral)
    assert await lives("n") == hour
    async with state.transaction() as tx:
        tx.delete(S, "k")
        tx.set(S, "k", 3, state_class=ephemeral)
    assert await lives("k") == hour


async def test_archive_values_are_stored_compressed(state: StateManager, store: Store) -> None:
    """Where that makes them smaller."""
    text = "the quick brown fox " * 1000
    await state.set(S, "k", text, state_class=StateClass.ARCHIVE)
    await state.set(S, "big", text * 400, state_class=StateClass.ARCHIVE)
    await state.set(S, "tiny", "x", state_class=StateClass.ARCHIVE)
    assert len(store.field(S, "k") or b"") < 1000
    assert len(store.field(S, "big") or b"") < 50_000
    assert await state.get_all(S) == {"k": text, "big": text * 400, "tiny": "x"}
    revision = (await state.history(S, "k"))[0].revision
    await state.set(S, "k", "new")
    assert await state.get_at(S, "k", revision) == text


async def test_sensitive_values_without_a_cipher_are_refused(
    state: StateManager, store: Store
) -> None:
    """Whoever asks for the class: nothing is sent in the clear."""
    before = store.dump(without=())
    sensitive = StateClass.SENSITIVE
    for call in (
        lambda: state.set(S, "k", SECRET, state_class=sensitive),
        lambda: state.set(S, "k", "x" * 600_000, state_class=sensitive),
        lambda: state.set_if_absent(S, "k", SECRET, state_class=sensitive),
        lambda: state.compare_and_set(S, "k", SECRET, expected=None, state_class=sensitive),
        lambda: state.set_many(S, {"k": SECRET}, state_class=sensitive),
        lambda: state.append(S, "k", SECRET, state_class=sensitive),
        lambda: state.merge(S, "k", {"a": SECRET}, state_class=sensitive),
        lambda: state.increment(S, "k", 5, state_class=sensitive),
    ):
        with pytest.raises(CipherNotConfiguredError) as caught:
            await call()
        assert (caught.value.scope, caught.value.key) == (S, "k")
        assert SECRET not in str(caught.value)
    assert store.dump(without=()) == before


@pytest.mark.library_only("who has the cipher is the sidecar, which says so at the commit")
async def test_a_transaction_refuses_a_sensitive_value_at_once(state: StateManager) -> None:
    """Without a cipher it hears of it where it sets the value."""
    with pytest.raises(CipherNotConfiguredError):
        state.transaction().set(S, "k", SECRET, state_class=StateClass.SENSITIVE)


async def test_sensitive_values_lie_encrypted_everywhere(ciphered: Spell, store: Store) -> None:
    """In the record, in its elements and in the log, however they were written."""
    state, sensitive = ciphered.state, StateClass.SENSITIVE
    await state.set(S, "set", SECRET, state_class=sensitive)
    await state.set(S, "number", 9_876_543_210, state_class=sensitive)
    await state.set_many(S, {"many": [SECRET]}, state_class=sensitive)
    await state.set(S, "big", SECRET * 30_000, state_class=sensitive)
    await state.append(S, "list", SECRET, {"a": SECRET}, state_class=sensitive)
    await state.merge(S, "map", {"f": SECRET}, state_class=sensitive)
    # The class was given only when they were set:
    await state.set(S, "plain", [SECRET], state_class=sensitive)
    await state.append(S, "plain", SECRET + "1")
    await state.append(S, "plain", SECRET + "2")
    await state.set(S, "dict", {"f": SECRET}, state_class=sensitive)
    await state.merge(S, "dict", {"g": SECRET})
    await state.merge(S, "dict", {"h": SECRET}, remove=["f"])
    await state.append(S, "list", SECRET)
    await state.merge(S, "map", {"g": SECRET})
    assert await state.increment(S, "number") == 9_876_543_211
    await state.update(S, "set", lambda v: v + "!")
    async with state.transaction() as tx:
        tx.set(S, "tx", SECRET, state_class=sensitive)
        tx.append(S, "list", SECRET)
        tx.append(S, "standard", "open")
        tx.merge(S, "map", {"h": SECRET})
        tx.append(S, "many", SECRET)
        tx.increment(S, "number")
    await state.copy_scope(S, "user:copy")
    everything = store.everything()
    for plain in (SECRET.encode(), b"987654321"):
        assert plain not in everything
    expected: dict[str, Any] = {
        "set": SECRET + "!", "number": 9_876_543_212, "many": [SECRET, SECRET],
        "list": [SECRET, {"a": SECRET}, SECRET, SECRET],
        "plain": [SECRET, SECRET + "1", SECRET + "2"],
        "map": {"f": SECRET, "g": SECRET, "h": SECRET}, "dict": {"g": SECRET, "h": SECRET},
        "tx": SECRET, "standard": ["open"],
    }  # fmt: skip
    for scope in (S, "user:copy"):
        assert await state.get_many(scope, expected) == expected
        assert await state.get(scope, "big") == SECRET * 30_000
        for key in expected:
            is_open = key == "standard"
            assert await class_of(state, scope, key) is (
                StateClass.STANDARD if is_open else sensitive
            )
    history = await state.history(S, "list")
    assert [change.value for change in history] == [
        (SECRET,), (SECRET,), (SECRET, {"a": SECRET}),
    ]  # fmt: skip
    for change, length in zip(history, (4, 3, 2), strict=True):
        assert await state.get_at(S, "list", change.revision) == expected["list"][:length]
    first = (await state.history(S, "set"))[-1]
    assert await state.get_at(S, "set", first.revision) == SECRET
    first = (await state.history(S, "map"))[-1]
    assert await state.get_at(S, "map", first.revision) == {"f": SECRET}


async def test_an_encrypted_value_without_its_cipher_or_elsewhere_cannot_be_read(
    ciphered: Spell, state: StateManager, store: Store
) -> None:
    """The error says so, and the other keys stay readable."""
    await ciphered.state.set(S, "k", SECRET, state_class=StateClass.SENSITIVE)
    await state.set(S, "open", 1)
    with pytest.raises(CipherNotConfiguredError):
        await state.get(S, "k")
    assert await state.get(S, "open") == 1
    assert sorted([key async for key in state.keys(S)]) == ["k", "open"]
    raw = store.field(S, "k")
    assert raw is not None
    store.damage(S, "open", raw)
    with pytest.raises(CorruptRecordError) as caught:
        await ciphered.state.get(S, "open")
    assert (caught.value.scope, caught.value.key) == (S, "open")
    assert await ciphered.state.get(S, "k") == SECRET
    assert await state.delete(S, "k")


NOT_JSON: list[Any] = [
    (1,), {1}, b"x", {1: 2}, {"a\0": 1}, float("nan"), 2**64, [[[b""]]], object(),
]  # fmt: skip


async def test_external_values_must_have_the_shape_of_json(
    state: StateManager, store: Store
) -> None:
    """On every path that writes one; the error has the path of what is wrong."""
    await state.set(S, "l", [1], state_class=StateClass.EXTERNAL)
    await state.merge(S, "m", {"a": 1}, state_class=StateClass.EXTERNAL)
    before = store.dump(without=())
    external = StateClass.EXTERNAL
    tx = state.transaction()
    calls: list[Callable[[Any], Any]] = [
        lambda value: state.set(S, "k", value, state_class=external),
        lambda value: state.set_many(S, {"k": value}, state_class=external),
        lambda value: state.append(S, "k", value, state_class=external),
        lambda value: state.merge(S, "k", {"f": value}, state_class=external),
    ]
    for value in NOT_JSON:
        for call in calls:
            with pytest.raises(CodecError) as caught:
                await call(value)
            assert caught.value.path.startswith("$")
        with pytest.raises(CodecError):
            tx.set(S, "k", value, state_class=external)
    assert store.dump(without=()) == before
    for value in NOT_JSON:
        with pytest.raises(CodecError):
            await state.append(S, "l", value)
        with pytest.raises(CodecError):
            await state.merge(S, "m", {"b": value})
    assert await state.get_many(S, ["l", "m"]) == {"l": [1], "m": {"a": 1}}


async def test_external_values_have_limits_of_their_own(state: StateManager) -> None:
    """1 MiB and 32 levels."""
    deep: Any = 1
    for _ in range(33):
        deep = [deep]
    for value in (deep, "x" * (1 << 20)):
        with pytest.raises(LimitError):
            await state.set(S, "k", value, state_class=StateClass.EXTERNAL)
    await state.set(S, "k", {"a": [1, 2.5, None, True, "x"]}, state_class=StateClass.EXTERNAL)
    assert await state.get(S, "k") == {"a": [1, 2.5, None, True, "x"]}


@pytest.mark.library_only("it looks at the requests to the server")
async def test_critical_writes_wait_for_the_strongest_level_by_themselves(
    state: StateManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the call says otherwise; also where the class is a rule's or the record's."""
    lanes = state._driver.lanes
    asked: list[Any] = []
    commit = lanes.commit

    def watch(one: Commit, ack: Any = None) -> Any:
        asked.append(ack)
        return commit(one)

    monkeypatch.setattr(lanes, "commit", watch)
    for place in (state._driver, state):
        for name in ("commit", "_commit"):
            if hasattr(place, name):
                monkeypatch.setattr(place, name, watch)
    monkeypatch.setattr(state._driver.core, "durable_ack", LOCAL_FSYNC)
    critical = StateClass.CRITICAL
    await state.set(S, "k", 1, state_class=critical)
    await state.set_many(S, {"a": 1, "b": 2}, state_class=critical)
    await state.append(S, "l", 1, state_class=critical)
    await state.increment(S, "n", state_class=critical)
    await state.update(S, "k", lambda v: v + 1)
    await state.set(S, "plain", [1], state_class=critical)
    asked.clear()
    await state.append(S, "plain", 2)
    assert asked[-1] is LOCAL_FSYNC
    for call in (
        lambda: state.append(S, "l", 2),
        lambda: state.increment(S, "n"),
        lambda: state.update(S, "k", lambda v: v + 1),
    ):
        asked.clear()
        await call()
        assert asked[-1] is LOCAL_FSYNC
    asked.clear()
    async with state.transaction() as tx:
        tx.set(S, "k", 3, state_class=critical)
        tx.set(S, "other", 3)
    assert asked == [LOCAL_FSYNC]
    asked.clear()
    await state.set(S, "k", 1, state_class=critical, ack=MEMORY)
    await state.set(S, "standard", 1)
    assert LOCAL_FSYNC not in asked
    await state.set(S, "standard", 1, ack=LOCAL_FSYNC)
    assert asked[-1] is LOCAL_FSYNC


async def test_a_class_that_does_not_exist_is_refused(state: StateManager, store: Store) -> None:
    """With the names of those that do."""
    before = store.dump(without=())
    calls: list[Callable[[Any], Any]] = [
        lambda name: state.set(S, "k", 1, state_class=name),
        lambda name: state.append(S, "k", 1, state_class=name),
        lambda name: state.set_many(S, {"k": 1}, state_class=name),
        lambda name: state.increment(S, "k", state_class=name),
    ]
    for call, name in itertools.product(calls, ["secret", 1, b"bulk", object()]):
        with pytest.raises(InvalidArgumentError, match=r"state_class.*sensitive"):
            await call(name)
    assert store.dump(without=()) == before


async def test_only_numbers_under_encryption_can_be_added_to(ciphered: Spell) -> None:
    """By their value, since the server cannot look."""
    state = ciphered.state
    await state.set(S, "k", "text", state_class=StateClass.SENSITIVE)
    with pytest.raises(WrongKindError):
        await state.increment(S, "k")
    with pytest.raises(WrongKindError):
        async with state.transaction() as tx:
            tx.increment(S, "k")
    assert await state.get(S, "k") == "text"


async def test_inferred_rules_guess_the_class_from_the_key(
    url: str, namespace: str, expiring: Expiring
) -> None:
    """As the original system did, but followed on every path."""
    options = Options(namespace=namespace, classes=ClassRules.inferred(), cipher=ToyCipher())
    async with connect(url, options=options) as spell:
        for key, expected in (
            ("test:a", StateClass.TRUSTED), ("cache:a", StateClass.EPHEMERAL),
            ("api_token", StateClass.SENSITIVE), ("external:a", StateClass.EXTERNAL),
            ("a", StateClass.STANDARD),
        ):  # fmt: skip
            await spell.state.set(S, key, "v")
            assert await class_of(spell.state, S, key) is expected
            assert await spell.state.get(S, key) == "v"
