"""Records, byte by byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmspell_dist.errors import CorruptRecordError, UnsupportedFormatError
from llmspell_dist.records import (
    EMPTY_META,
    FORMAT,
    MAX_HEADER,
    MIN_HEADER,
    Head,
    Kind,
    StoredRecord,
    pack_record,
    unpack_head,
    unpack_meta,
    unpack_record,
)
from llmspell_dist.revision import Revision

pytestmark = pytest.mark.unit

ms48 = st.integers(0, 2**48 - 1)
revisions = st.builds(Revision, ms48, st.integers(0, 2**32 - 1))
records = st.builds(
    StoredRecord,
    kind=st.sampled_from([int(kind) for kind in Kind]),
    state_class=st.integers(0, 15),
    flags=st.just(0),
    schema_version=st.integers(0, 65_535),
    revision=revisions,
    created_ms=ms48,
    expires_ms=ms48,
    payload=st.binary(max_size=50),
)


def test_the_layout_is_pinned() -> None:
    """Bytes of yesterday's releases lie in Redis."""
    record = StoredRecord(
        1, 2, 4, 0x0304, Revision(0x050607080900, 0x0A0B0C0D), 0x11, 0x22, b"payload"
    )
    assert (
        pack_record(record)
        == bytes.fromhex("01 12 07 0304 050607080900 0a0b0c0d 000000000011 000000000022")
        + b"payload"
    )
    small = StoredRecord(2, 0, 0, 1, Revision(7, 0), 7, 0, b"5")
    assert pack_record(small) == bytes.fromhex("01 20 00 0001 000000000007 00000000") + b"5"
    assert len(pack_record(small)) == MIN_HEADER + 1
    assert len(pack_record(record)) == MAX_HEADER + 7


def test_numbers_of_kinds_are_pinned() -> None:
    """They stand in records; composites are those from list on."""
    assert [(k.name, int(k)) for k in Kind] == [
        ("VALUE", 1), ("NUMBER", 2), ("LIST", 3), ("MAP", 4), ("BLOB", 5),
    ]  # fmt: skip
    assert [kind for kind in Kind if kind.composite] == [Kind.LIST, Kind.MAP, Kind.BLOB]


@given(records, st.sampled_from([0, 4, 8, 12]))
def test_reading_inverts_writing(record: StoredRecord, codec_flags: int) -> None:
    """For every record; the flags say which optional parts there are."""
    raw = pack_record(record._replace(flags=codec_flags))
    found = unpack_record(raw, "agent:a", "k")
    assert found._replace(flags=found.flags & 12) == record._replace(flags=codec_flags)
    assert bool(found.flags & 1) == (record.created_ms != record.revision.ms)
    assert bool(found.flags & 2) == bool(record.expires_ms)
    assert len(raw) - len(record.payload) <= MAX_HEADER


@given(st.binary(max_size=60))
def test_any_bytes_are_a_record_or_a_named_error(raw: bytes) -> None:
    """Never anything else."""
    try:
        unpack_record(raw, "agent:a", "k")
    except CorruptRecordError as error:
        named = (error.scope, error.key, bool(error.reason))
    else:
        return
    assert named == ("agent:a", "k", True)


def test_a_newer_format_is_told_from_damage() -> None:
    """So that one knows to upgrade."""
    raw = bytes((FORMAT + 1,)) + b"x" * 30
    with pytest.raises(UnsupportedFormatError, match=f"format {FORMAT + 1}"):
        unpack_record(raw, "agent:a", "k")
    with pytest.raises(UnsupportedFormatError, match="scope format"):
        unpack_meta(raw + b"x" * 10, "agent:a")
    with pytest.raises(CorruptRecordError, match="unknown kind 9") as caught:
        unpack_record(b"\x01\x90" + b"\0" * 20, "agent:a", "k")
    assert type(caught.value) is CorruptRecordError


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**48 - 1),
    st.from_regex(r"[a-z0-9-]{1,20}", fullmatch=True),
)
def test_heads_of_composites_come_back(count: int, size: int, generation: str) -> None:
    """Count, bytes, generation."""
    packed = count.to_bytes(4, "big") + size.to_bytes(6, "big") + generation.encode()
    assert unpack_head(packed, "agent:a", "k") == Head(count, size, generation)


@pytest.mark.parametrize("raw", [b"", b"\0" * 9, b"\0" * 10 + b"\xff"])
def test_a_damaged_head_is_named(raw: bytes) -> None:
    """As a damaged record is."""
    with pytest.raises(CorruptRecordError, match="head"):
        unpack_head(raw, "agent:a", "k")


def test_what_a_scope_knows_of_itself_is_pinned() -> None:
    """32 bytes, and a policy behind them."""
    raw = (
        bytes.fromhex("01 000000000005 00000006 00000007 000000000008 0000000000000009 000a 0b")
        + b"policy"
    )
    meta = unpack_meta(raw, "agent:a")
    assert meta.revision == Revision(5, 6)
    assert (meta.count, meta.size, meta.fence, meta.schema_version, meta.flags) == (7, 8, 9, 10, 11)
    assert meta.policy == b"policy"
    assert unpack_meta(None, "agent:a") == EMPTY_META
    for damaged in (b"", raw[:31]):
        with pytest.raises(CorruptRecordError) as caught:
            unpack_meta(damaged, "agent:a")
        assert caught.value.key == "$$"
