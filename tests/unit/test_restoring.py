"""Restores without a server: what is chosen, how records are rewritten, what digests tell apart."""

from __future__ import annotations

import re
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmspell_dist.backup.digest import RecordDigest, ScopeDigest
from llmspell_dist.backup.restoring import Placement
from llmspell_dist.backup.restoring import applying as a
from llmspell_dist.backup.restoring import composites as c
from llmspell_dist.backup.restoring.rewriting import Rewriting
from llmspell_dist.records import RESTORED, Kind, StoredRecord, pack_record, unpack_record
from llmspell_dist.redis.scripts import scripts_folder
from llmspell_dist.revision import Revision
from llmspell_dist.scope import Scope

pytestmark = [pytest.mark.unit, pytest.mark.backup]
R = Revision(1_800_000_000_000, 7)
moments = st.one_of(st.just(R.ms), st.integers(1, 2**48 - 1))
records = st.builds(
    StoredRecord,
    st.sampled_from([int(kind) for kind in Kind]),
    st.integers(0, 7),
    st.sampled_from([0, 4, 8, 12, RESTORED]),
    st.integers(0, 65535),
    st.builds(Revision, moments, st.integers(0, 2**32 - 1)),
    moments,
    st.one_of(st.just(0), moments),
    st.binary(max_size=30),
)


@given(records, st.booleans(), st.one_of(st.none(), st.integers(-(2**40), 2**40)))
def test_a_record_is_rewritten_in_revision_and_flag_alone(
    stored: StoredRecord, marked: bool, shift_ms: int | None
) -> None:
    """The same bytes as if it were written anew."""
    rewriting = Rewriting(R.packed, "id", shift_ms=shift_ms, marked=marked)
    raw = pack_record(stored)
    found = rewriting.header(raw)
    assert found is not None
    head, expires, start = found
    new = unpack_record(head + raw[start:], "s", "k")
    flags = stored.flags & 12 | (RESTORED if marked else 0)
    expected = stored._replace(revision=R, flags=flags)
    if shift_ms is not None and stored.expires_ms:
        shifted = max(1, min(stored.expires_ms + shift_ms, 2**48 - 1))
        expected = expected._replace(expires_ms=shifted)
    assert new._replace(flags=new.flags & ~3) == expected
    assert head + raw[start:] == pack_record(expected)
    assert int.from_bytes(expires, "big") == expected.expires_ms


@pytest.mark.parametrize("raw", [b"", b"\1", b"\2" + bytes(30), b"\1\x10\3" + bytes(20)])
def test_what_is_no_record_is_not_rewritten(raw: bytes) -> None:
    """It is left out instead."""
    assert Rewriting(R.packed, "id", shift_ms=None, marked=True).header(raw) is None


def test_names_of_generations_tell_apart() -> None:
    """Restores, generations, and what a clear lies between."""
    one, two = (Rewriting(R.packed, name, shift_ms=None, marked=True) for name in ("a", "b"))
    names = {r.generation(g, n) for r in (one, two) for g in (b"x-1", b"x-2") for n in range(3)}
    assert len(names) == 12
    assert one.generation(b"x-1") == one.generation(b"x-1", 0)
    assert all(re.fullmatch(rb"[A-Za-z0-9_-]{1,64}", name) for name in names)


@given(
    st.one_of(
        st.lists(st.recursive(st.integers() | st.text(), st.lists, max_leaves=4), max_size=40),
        st.dictionaries(st.text(max_size=3), st.integers(0, 2**63) | st.binary(), max_size=40),
    )
)
def test_a_whole_value_is_cut_into_its_elements(value: Any) -> None:
    """As they would have been encoded one by one."""
    try:
        whole = msgpack.packb(value)
    except OverflowError:
        return
    parts = c.split_whole(whole, Kind.LIST if isinstance(value, list) else Kind.MAP)
    flat = value if isinstance(value, list) else [part for pair in value.items() for part in pair]
    assert parts == [msgpack.packb(part) for part in flat]
    assert c.split_whole(whole, Kind.MAP if isinstance(value, list) else Kind.LIST) is None


@pytest.mark.parametrize("whole", [b"", b"\xc0", b"\xdd\0\0", b"\xdd\0\0\0\2\1", b"\x92\1"])
def test_what_is_no_whole_value_is_not_cut(whole: bytes) -> None:
    """Cut off, or something else."""
    assert c.split_whole(whole, Kind.LIST) is None


def test_a_placement() -> None:
    """By keys, by class, to other places."""
    chosen = Placement(
        keys=["ab", "x"], classes=[0, 2],
        mapping=lambda text: Scope.parse(f"custom:{text[-1]}") if text == "agent:a" else None,
    )  # fmt: skip
    assert chosen.mapping("agent:a") == Scope.parse("custom:a")
    assert chosen.mapping("agent:b") is None
    assert chosen.mapping("user:alice") is None
    takes = chosen.record_filter()
    assert takes is not None
    assert [takes(key, 0) for key in (b"a", b"ab", b"x", b"xx")] == [False, True, True, False]
    assert [takes(b"x", state_class) for state_class in range(4)] == [True, False, True, False]
    everything = Placement()
    assert everything.mapping("agent:a") == Scope.parse("agent:a")
    assert everything.record_filter() is None


def test_changes_have_the_same_numbers_on_both_sides() -> None:
    """The order of the table in the script."""
    source = (scripts_folder() / "restore_apply.lua").read_text(encoding="utf-8")
    table = re.search(r"local CHANGES = \{(.*?)\}", source, re.DOTALL)
    assert table is not None
    names = dict(enumerate(re.findall(r"\w+", table[1]), 1))
    assert names == {
        a.PUT_VALUE: "put_value", c.REMOVE: "remove", a.TOUCH: "touch", a.APPEND: "append",
        a.MERGE: "merge", a.CLEAR: "clear", a.SET_POLICY: "set_policy", a.SET_TAIL: "set_tail",
        a.PUT_WHOLE: "put_whole", c.PUT_COMPOSITE: "put_composite",
        c.ADD_ELEMENTS: "add_elements", a.ADOPT: "adopt",
    }  # fmt: skip


# --- digests

STORED = StoredRecord(Kind.VALUE, 0, 0, 1, R, 5, 0, b"value")


def of(key: bytes, stored: StoredRecord, *parts: list[bytes], **options: Any) -> int:
    """Return the digest of a key."""
    digest = RecordDigest(key, stored, **options)
    for part in parts:
        digest.add(part)
    return digest.value()


def test_a_digest_is_of_what_a_restore_keeps() -> None:
    """Not of revision and flag; of everything else."""
    same = STORED._replace(revision=Revision(9, 9), flags=RESTORED)
    assert of(b"k", same) == of(b"k", STORED)
    changed: dict[str, Any] = {
        "kind": Kind.NUMBER, "state_class": 1, "flags": 4, "schema_version": 2,
        "created_ms": 6, "expires_ms": 1, "payload": b"valu",
    }  # fmt: skip
    others = [STORED._replace(**{name: value}) for name, value in changed.items()]
    assert len({of(b"k", one) for one in (STORED, *others)} | {of(b"kv", STORED)}) == 9
    assert of(b"k", others[4], created=False) == of(b"k", STORED, created=False)


def test_a_digest_of_elements_does_not_depend_on_the_pieces() -> None:
    """Of a map neither on the order."""
    head = STORED._replace(kind=Kind.LIST, payload=b"head")
    assert of(b"k", head, [b"a", b"b"]) == of(b"k", head, [b"a"], [b"b"])
    assert of(b"k", head, [b"a", b"b"]) != of(b"k", head, [b"b", b"a"])
    assert of(b"k", head, [b"ab"]) != of(b"k", head, [b"a", b"b"])
    head = STORED._replace(kind=Kind.MAP)
    assert of(b"k", head, [b"a", b"1", b"b", b"2"]) == of(b"k", head, [b"b", b"2"], [b"a", b"1"])
    assert of(b"k", head, [b"a", b"1", b"b", b"2"]) != of(b"k", head, [b"a", b"2", b"b", b"1"])


def test_a_digest_of_a_scope_does_not_depend_on_the_order() -> None:
    """It counts its keys."""
    one, two, three = ScopeDigest(), ScopeDigest(), ScopeDigest()
    for digest, numbers in ((one, (1, 2**256 - 1)), (two, (2**256 - 1, 1)), (three, (0,))):
        for number in numbers:
            digest.add(number)
    assert one == two
    assert one != three
    assert one.hex == three.hex == "0" * 64
    assert one.__eq__(1) is NotImplemented
    assert repr(three) == "<ScopeDigest of 1 keys, 000000000000>"
