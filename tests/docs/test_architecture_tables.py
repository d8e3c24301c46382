"""The tables of docs/technical/state-architecture.md are what a real server holds.

A table with the columns offset, bytes, field and if is a layout: `cut` takes bytes apart by it, and
the tests compare the parts with what is known about them from elsewhere.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
from fix_state import until

import llmspell_dist
from llmspell_dist import (
    Lease,
    Options,
    Retention,
    Spell,
    StateClass,
    codec,
    config,
    keys,
    scope,
    ttl,
)
from llmspell_dist.changes import Op
from llmspell_dist.context import MAX_BYTES as CONTEXT_BYTES
from llmspell_dist.keys import KeySpace
from llmspell_dist.records import Kind, pack_record, unpack_record
from llmspell_dist.redis import commits, groups, ring, scripts
from llmspell_dist.redis.commits import ConditionMode, ScopeKey, TTLMode, change, condition
from llmspell_dist.revision import Revision
from llmspell_dist.scope import Scope
from llmspell_dist.state import core, large, partial, reads, scopes, staging

if TYPE_CHECKING:
    from fix_servers import Server

pytestmark = pytest.mark.integration

PAGE = Path(__file__).parents[2] / "docs" / "technical" / "state-architecture.md"
ALICE = "agent:alice"
Raw = Callable[..., Any]


# --- reading the page -----------------------------------------------------------------------------


def _tables() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield every table of the page with the words that stand before it."""
    before = ""
    header: list[str] = []
    rows: list[dict[str, str]] = []
    for line in [*PAGE.read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("|"):
            cells = [cell.strip() for cell in line[1:-1].split("|")]
            if not header:
                header = cells
            elif set(line) - set("|-: "):
                rows.append(dict(zip(header, cells, strict=True)))
        elif header:
            yield before, rows
            header, rows = [], []
        if line and not line.startswith("|"):
            before = line
    assert not header


TABLES = list(_tables())


def table(*columns: str) -> list[dict[str, str]]:
    """Return the one table whose columns begin so."""
    found = [rows for _, rows in TABLES if rows and list(rows[0])[: len(columns)] == list(columns)]
    assert len(found) == 1, (columns, len(found))
    return found[0]


def layout(first_field: str, second_field: str, after: str = "") -> list[dict[str, str]]:
    """Return the layout that begins with these fields, behind a line that begins so."""
    found = [
        rows
        for before, rows in TABLES
        if rows
        and before.startswith(after)
        and list(rows[0]) == ["offset", "bytes", "field", "if", "content"]
        and (rows[0]["field"], rows[1]["field"]) == (first_field, second_field)
    ]
    assert len(found) == 1, (first_field, second_field, len(found))
    return found[0]


def cut(rows: list[dict[str, str]], raw: bytes, start: int = 0) -> tuple[dict[str, bytes], int]:
    """Take bytes apart; the parts by field, and where the rest begins."""
    parts: dict[str, bytes] = {}
    at = start
    for row in rows:
        flag = row["if"]
        if flag and not parts["flags"][0] & int(flag):
            continue
        if row["offset"].isdigit() and not flag:
            assert int(row["offset"]) == at - start, row
        size = row["bytes"]
        if size == "rest":
            length = len(raw) - at
        elif size.isdigit():
            length = int(size)
        elif "×" in size:
            each, _, of = size.partition(" × ")
            length = int(each) * number(parts[of])
        else:
            length = number(parts[size])
        parts[row["field"]] = raw[at : at + length]
        assert len(parts[row["field"]]) == length, row
        at += length
    return parts, at


def number(raw: bytes) -> int:
    """Return the number that the bytes are."""
    return int.from_bytes(raw, "big")


RECORD = layout("format", "kind and class")
META = layout("format", "revision")
HEAD = layout("count", "size")
RING = layout("sequence", "fingerprint")
ITEM = layout("item flags", "conditions")
CONDITION = layout("mode", "revision")
FENCE = layout("lease index", "fenced scope")
HOLDER = layout("holder's token", "expires")
WAITER = layout("waiter's mode", "ttl")


FRAME = layout("operation", "kind and class", after="A frame")
CHANGE = layout("operation", "kind and class", after="Change head")


# --- real bytes -----------------------------------------------------------------------------------


@pytest.fixture
def raw(server: Server, namespace: str) -> Raw:
    """A function that sends a command, with a key of the shard after its prefix."""

    def call(name: str, key: str, *words: str | bytes | int) -> Any:
        return server.call(name, f"{namespace}:{{0}}:{key}", *words)

    return call


async def test_a_fresh_record_has_the_header_of_the_page(spell: Spell, raw: Raw) -> None:
    """Fifteen bytes, then the value as MessagePack."""
    revision = await spell.state.set(ALICE, "mood", "curious", schema_version=7)
    record, end = cut(RECORD, raw("HGET", ALICE, "mood"))
    assert end == 15 + len(msgpack.packb("curious"))
    assert record == {
        "format": b"\1",
        "kind and class": bytes((Kind.VALUE << 4 | StateClass.STANDARD,)),
        "flags": b"\0",
        "schema version": b"\0\7",
        "revision": revision.ms.to_bytes(6, "big") + revision.seq.to_bytes(4, "big"),
        "payload": msgpack.packb("curious"),
    }


async def test_a_rewritten_record_with_a_ttl_has_all_fields(
    spell: Spell, raw: Raw, server: Server
) -> None:
    """Created is that of the first write, expires is server time; 27 bytes of header."""
    state = spell.state
    first = await state.set(ALICE, "mood", "curious")
    while server.call("TIME")[0] and (await state.set(ALICE, "other", 1)).ms == first.ms:
        pass  # until the server's clock shows another millisecond
    revision = await state.set(ALICE, "mood", "busy", ttl=1000)
    raw_record = raw("HGET", ALICE, "mood")
    record, _ = cut(RECORD, raw_record)
    assert record["flags"] == b"\3"
    assert record["revision"] == revision.packed
    assert number(record["created"]) == first.ms
    assert abs(number(record["expires"]) - revision.ms - 1_000_000) < 50
    assert record["payload"] == msgpack.packb("busy")
    assert len(raw_record) == 27 + len(record["payload"])
    assert raw("ZSCORE", f"{ALICE}:ttl", "mood") in (
        float(number(record["expires"])),
        b"%d" % number(record["expires"]),
    )
    assert pack_record(unpack_record(raw_record, ALICE, "mood")) == raw_record


async def test_the_scope_record_has_the_layout_of_the_page(spell: Spell, raw: Raw) -> None:
    """Revision, number of keys, bytes; without leases the rest is zero."""
    await spell.state.set(ALICE, "mood", "curious")
    last = await spell.state.set(ALICE, "plan", "none")
    everything = raw("HMGET", ALICE, "mood", "plan")
    meta, end = cut(META, raw("HGET", ALICE, "$$"))
    assert end == 32
    assert meta["format"] == b"\1"
    assert meta["revision"] == last.packed
    assert number(meta["count"]) == 2
    assert number(meta["size"]) == len("mood") + len("plan") + sum(map(len, everything))
    assert not any((*meta["fence"], *meta["schema version"], *meta["flags"]))


async def test_a_fenced_scope_with_a_policy_has_both_in_its_record(spell: Spell, raw: Raw) -> None:
    """The token that wrote last, the flag, and the lease that every write needs."""
    async with spell.leases.acquire(ALICE) as lease:
        await lease.state.set(ALICE, "mood", "curious")
        await spell.leases.require(ALICE, lease=lease)
        meta, _ = cut(META, raw("HGET", ALICE, "$$"))
    assert number(meta["fence"]) == lease.token
    assert meta["flags"] == b"\1"
    assert meta["policy"] == b"\4main"


async def test_a_lease_has_the_fields_and_records_of_the_page(spell: Spell, raw: Raw) -> None:
    """Holder, waiter, last token, last release, ended holds; and no other field."""
    leases = spell.leases
    await (await leases.acquire(ALICE, name="cafe")).release()
    async with leases.acquire(ALICE, name="cafe", ttl=20, label="me", owner="ann") as lease:
        waiting = asyncio.create_task(leases.acquire(ALICE, name="cafe", owner="bob").__aenter__())
        await until(lambda: raw("ZCARD", f"{ALICE}:lease:cafe:q") == 1)
        flat = raw("HGETALL", f"{ALICE}:lease:cafe")
        waits = raw("HGET", "waits", "bob")
    await (await waiting).release()
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    patterns = [
        pattern
        for row in table("field of a lease", "content")
        for pattern in re.findall(r"`([^`]+)`", row["field of a lease"])
    ]
    for field in fields:
        name = field.decode("latin-1").partition(":")[0]
        assert name in {pattern.partition(":")[0] for pattern in patterns}, field
    holder, _ = cut(HOLDER, fields[b"x"])
    assert number(holder["holder's token"]) == lease.token == int(fields[b"t"])
    assert 0 <= number(holder["expires"]) - number(holder["since"]) - 20_000 < 1000
    assert (number(holder["ttl"]), number(holder["holds"])) == (20_000, 1)
    assert holder["owner"] == b"ann"
    assert msgpack.unpackb(holder["info"])[0] == "me"
    (nonce,) = [field[2:] for field in fields if field.startswith(b"w:")]
    waiter, _ = cut(WAITER, fields[b"w:" + nonce])
    assert (waiter["waiter's mode"], waiter["owner"]) == (b"x", b"bob")
    assert (number(waiter["ttl"]), number(waiter["deadline"])) == (10_000, 0)
    assert waits == nonce + raw_key(lease) + b"\n"
    ended = fields[b"h:1"]
    assert (fields[b"ended"], ended[0]) == (b"1", 1)
    assert number(ended[1:7]) >= number(cut(HOLDER, ended, 7)[0]["since"])
    assert fields[b"r"] == cut(HOLDER, ended, 7)[0]["nonces"]


def raw_key(lease: Lease) -> bytes:
    """Return the Redis key of a lease."""
    return lease.grant.claim.target.keys[0]


async def test_the_frames_of_a_log_entry_have_the_layout_of_the_page(
    spell: Spell, raw: Raw
) -> None:
    """The second frame of one scope does not repeat its name; chains lead to what was before."""
    before = await spell.state.set(ALICE, "mood", "curious", state_class=StateClass.BULK)
    with llmspell_dist.context(actor="tester", correlation_id="run-1"):
        async with spell.state.transaction() as tx:
            tx.set(ALICE, "mood", "busy", schema_version=3)
            tx.set(ALICE, "plan", 5, ttl=60)
            tx.set("global", "note", "x", state_class=StateClass.BULK)
    assert tx.revision is not None
    ((entry_id, fields),) = raw("XREVRANGE", "log", "+", "-", "COUNT", 1)
    assert entry_id == str(tx.revision).encode()
    assert fields[0::2] == [b"c", b"m", b"o"]
    assert msgpack.unpackb(fields[3]) == {"a": "tester", "c": "run-1"}
    frames = fields[1]
    assert frames[:1] == b"\1"
    rows = FRAME
    one, at = cut(rows, frames, 1)
    two, at = cut(rows, frames, at)
    assert one["operation"] == two["operation"] == bytes((Op.SET,))
    assert (one["scope"], one["key"]) == (ALICE.encode(), b"mood")
    assert (two["scope"], two["key"]) == (b"", b"plan")
    assert one["kind and class"] == bytes((Kind.VALUE << 4,))
    assert two["kind and class"] == bytes((Kind.NUMBER << 4,))
    assert one["schema version"] == b"\0\3"
    assert one["previous of the key"] == before.packed
    assert one["previous of the scope"] == two["previous of the scope"] == before.packed
    assert two["previous of the key"] == bytes(10)
    assert number(one["expires"]) == 0
    assert abs(number(two["expires"]) - tx.revision.ms - 60_000) < 50
    assert (one["payload"], two["payload"]) == (msgpack.packb("busy"), b"5")
    three, at = cut(rows[:-1], frames, at)
    assert at == len(frames)
    assert three["operation"] == bytes((Op.SET + 128,))
    assert number(three["payload length"]) == len(msgpack.packb("x"))
    assert three["scope"] == b"global"


async def test_a_ring_slot_has_the_layout_of_the_page(spell: Spell, raw: Raw) -> None:
    """Sequence, fingerprint, outcome; the log entry names client and sequence."""
    revision = await spell.state.set(ALICE, "mood", "curious")
    ((_, fields),) = raw("XREVRANGE", "log", "+", "-", "COUNT", 1)
    operation = fields[5]
    client, sequence = operation[:8].hex(), number(operation[8:])
    assert len(operation) == 14
    slot, _ = cut(RING, raw("HGET", f"ring:{client}", str(sequence % 1024)))
    assert number(slot["sequence"]) == sequence
    assert len(slot["fingerprint"]) == 8
    assert slot["outcome"] == str(revision).encode()
    assert raw("HGET", f"ring:{client}", "born") == b"1"
    assert 3_590_000 < raw("PTTL", f"ring:{client}") <= 3_600_000


async def test_a_composite_has_a_head_and_its_elements_beside_it(spell: Spell, raw: Raw) -> None:
    """A list, a map and a large value; a replaced generation lives on for three seconds."""
    state = spell.state
    await state.append(ALICE, "list", "a", {"b": 1})
    await state.merge(ALICE, "map", {"x": 1})
    await state.set(ALICE, "blob", b"z" * 600_000)
    seen = {}
    for key, kind in (("list", Kind.LIST), ("map", Kind.MAP), ("blob", Kind.BLOB)):
        record, _ = cut(RECORD, raw("HGET", ALICE, key))
        assert record["kind and class"] == bytes((kind << 4,))
        head, _ = cut(HEAD, record["payload"])
        generation = head["generation"].decode()
        assert re.fullmatch(r"[0-9a-f]{12}-[0-9]+", generation)
        seen[key] = (number(head["count"]), number(head["size"]), f"{ALICE}:p:{generation}")
    count, size, place = seen["list"]
    elements = raw("LRANGE", place, 0, -1)
    assert elements == [msgpack.packb("a"), msgpack.packb({"b": 1})]
    assert (count, size) == (2, sum(map(len, elements)))
    count, size, place = seen["map"]
    field, value = msgpack.packb("x"), msgpack.packb(1)
    assert raw("HGET", place, field) == value
    assert (count, size) == (1, len(field) + len(value))
    count, size, place = seen["blob"]
    chunks = raw("LRANGE", place, 0, -1)
    assert len(chunks[0]) == 5
    assert {len(chunk) for chunk in chunks[1:-1]} == {large.CHUNK_BYTES}
    assert b"".join(chunks) == msgpack.packb(b"z" * 600_000)
    assert (count, size) == (len(chunks), sum(map(len, chunks)))
    generations = {name.partition(":p:")[2].encode() for _, _, name in seen.values()}
    assert set(raw("SMEMBERS", f"{ALICE}:g")) == generations
    await state.delete(ALICE, "list")
    assert 0 < raw("PTTL", seen["list"][2]) <= 3_000
    assert len(raw("SMEMBERS", f"{ALICE}:g")) == 2


async def test_every_key_of_a_used_namespace_is_in_the_table(
    spell: Spell, server: Server, namespace: str
) -> None:
    """And has the type that the table says; nothing lies elsewhere."""
    state = spell.state
    await state.set(ALICE, "mood", 1, ttl=1000)
    await state.append(ALICE, "list", 1)
    await state.append("session:s", "list", 1)
    await state.clear("session:s")
    readers = await spell.leases.acquire(ALICE, name="cafe", mode="shared")
    waiting = asyncio.create_task(spell.leases.acquire(ALICE, name="cafe", owner="b").__aenter__())
    queue = f"{namespace}:{{0}}:{ALICE}:lease:cafe:q"
    await until(lambda: server.call("ZCARD", queue) == 1)
    shapes = {}
    for row in table("key", "type", "holds"):
        shape = re.escape(row["key"].strip("`"))
        shape = shape.replace("ns:", re.escape(namespace) + ":", 1).replace(r"\{s\}", r"\{0\}")
        shape = shape.replace("<scope>", r"[a-z]+(:[a-z]+)?").replace("<revision>", r"\d+-\d+")
        shape = re.sub(r"<(generation|name|client)>", r"[0-9a-f-]+", shape)  # a lease named so
        shapes[shape] = row["type"]
    used = set()
    for key in server.call("KEYS", f"{namespace}*"):
        fitting = [shape for shape in shapes if re.fullmatch(shape, key.decode())]
        # A shard's keys look like a scope of one word, which only `global` is.
        fitting = [s for s in fitting if not s.endswith(")?")] or fitting
        assert len(fitting) == 1, (key, fitting)
        assert server.call("TYPE", key).decode() in shapes[fitting[0]].split(" or "), key
        used.add(fitting[0])
    assert len(used) >= 14
    await readers.release()
    await (await waiting).release()


async def test_the_settings_of_a_shard_are_those_of_the_page(
    url: str, namespace: str, raw: Raw
) -> None:
    """Format, shard count, retention in the form of the page, holds as revisions."""
    keep = Retention(max_age=timedelta(hours=1), max_entries=500, cap_entries=5000)
    options = Options(namespace=namespace, retention=keep)
    async with llmspell_dist.connect(url, options=options) as spell:
        revision = await spell.state.set(ALICE, "mood", "curious")
        await spell.log.hold("archiver", at=revision)
    flat = raw("HGETALL", "ctl")
    settings = dict(zip(flat[::2], flat[1::2], strict=True))
    settings.pop(b"swept", None)
    assert settings == {
        b"format": b"1",
        b"shards": b"1",
        b"retention": b"500 3600000 5000",
        b"hold:archiver": str(revision).encode(),
    }


# --- requests -------------------------------------------------------------------------------------


def _words(request: bytes) -> list[bytes]:
    words, at = [], request.index(b"\r\n") + 2
    while at < len(request):
        end = request.index(b"\r\n", at)
        size = int(request[at + 1 : end])
        words.append(request[end + 2 : end + 2 + size])
        at = end + 4 + size
    return words


def test_the_request_of_a_group_has_the_layout_of_the_page() -> None:
    """Keys, client, names, then heads of items, conditions and changes."""
    space = KeySpace("ns")
    names = (Scope.parse(ALICE), Scope.parse("global"))
    at = [ScopeKey(space.scope(n), n.text.encode(), b"ns:{0}", n) for n in names]
    revision = Revision(1_700_000_000_000, 5)
    commit = commits.Commit(
        (at[0], at[1]),
        [change(Op.SET, b"key", b"value", kind=1, ttl_mode=TTLMode.SET, ttl_ms=60_000, scope=1)],
        [condition(ConditionMode.REVISION, b"other", revision)],
        b"meta",
    )
    client = b"00112233445566aa"
    words = _words(commits.pack_group(b"ns:{0}:ring:" + client, [(77, 5, commit)]))
    assert words[0] == b"EVALSHA"
    assert words[2] == b"5"
    assert words[3:8] == [
        b"ns:{0}:log",
        b"ns:{0}:due",
        b"ns:{0}:ring:" + client,
        *(s.hash for s in at),
    ]
    group, *rest = words[8:]
    assert group == bytes.fromhex(client.decode()) + b"\0\1" + b"\1" + b"\0\0"
    assert rest[:2] == [ALICE.encode(), b"global"]
    head, meta, first, other, second, key, payload = rest[2:]
    item, end = cut(ITEM, head)
    assert end == len(head) == 19
    assert (item["item flags"], item["conditions"], item["changes"]) == (b"\5", b"\0\1", b"\0\1")
    assert number(item["sequence"]) == 77
    assert item["fingerprint"] == commit.fingerprint
    assert (meta, other, key, payload) == (b"meta", b"other", b"key", b"value")
    said, end = cut(CONDITION, first)
    assert end == len(first) == 13
    assert (said["mode"], said["revision"], said["scope index"]) == (
        b"\1",
        revision.packed,
        b"\0\0",
    )
    asked, end = cut(CHANGE, second)
    assert end == len(second) == 20
    assert asked["operation"] == bytes((Op.SET,))
    assert (number(asked["key length"]), number(asked["payload length"])) == (3, 5)
    assert (number(asked["ttl mode"]), number(asked["ttl"])) == (TTLMode.SET, 60_000)
    assert asked["scope index"] == b"\0\1"


def test_a_commit_that_carries_a_lease_has_the_layout_of_the_page() -> None:
    """Its key behind the scopes, its fence behind the metadata, the flag in the head."""
    space = KeySpace("ns")
    scope = Scope.parse(ALICE)
    at = ScopeKey(space.scope(scope), scope.text.encode(), b"ns:{0}", scope)
    key = space.lease(scope, "main")
    own = commits.Fence(key, at.hash, 1234, b"ann", ALICE, "main")
    other = commits.Fence(space.lease(scope, "x"), b"", 99, b"bob", ALICE, "x")
    one = change(Op.DELETE, b"key", b"")
    commit = commits.Commit((at,), [one], (), b"meta", (own, other))
    client = b"00112233445566aa"
    words = _words(commits.pack_group(b"ns:{0}:ring:" + client, [(77, 0, commit)]))
    assert words[2] == b"6"
    assert words[6:9] == [at.hash, key, other.lease]
    assert words[9][11:] == b"\0\2"
    head, meta, fences = words[11:14]
    assert cut(ITEM, head)[0]["item flags"] == b"\x18"  # 16, and 8 since it only frees memory
    assert meta == b"meta"
    first, end = cut(FENCE, fences)
    second, end = cut(FENCE, fences, end)
    assert end == len(fences)
    assert (number(first["token"]), first["owner"], first["fenced scope"]) == (
        1234,
        b"ann",
        b"\0\0",
    )
    assert (number(second["token"]), second["owner"]) == (99, b"bob")
    assert (second["lease index"], number(second["fenced scope"])) == (b"\0\1", 65_535)


# --- numbers --------------------------------------------------------------------------------------


def test_kinds_classes_and_operations_have_the_numbers_of_the_page() -> None:
    """All of them, and no others."""
    kinds = {row["kind"]: int(row["number"]) for row in table("kind", "number")}
    assert kinds == {kind.name.lower(): int(kind) for kind in Kind}
    operations = {row["operation"]: int(row["number"]) for row in table("operation", "number")}
    assert operations == {op.name.lower(): int(op) for op in Op}
    text = PAGE.read_text(encoding="utf-8")
    for state_class in StateClass:
        assert re.search(rf"\| {state_class} \| {int(state_class)} \|", text), state_class


@pytest.mark.parametrize(
    ("row", "modes"),
    [(CHANGE, TTLMode), (CONDITION, ConditionMode)],
    ids=["ttl", "condition"],
)
def test_the_modes_are_those_of_the_code(row: list[dict[str, str]], modes: type[IntEnum]) -> None:
    """Every number is named, and no other."""
    (said,) = [one["content"] for one in row if one["field"].endswith("mode")]
    assert [int(mode) for mode in re.findall(r"\b\d\b", said)] == [int(mode) for mode in modes]


def test_the_outcome_codes_are_those_of_the_script() -> None:
    """The header of commit.lua lists the same."""
    said = [row["code"].strip("`") for row in table("code", "when", "becomes")]
    source = (scripts.scripts_folder() / "commit.lua").read_text(encoding="utf-8")
    header = re.search(r"^-- errors: (.*)$", source, re.MULTILINE)
    assert header is not None
    assert sorted(said) == sorted(header[1].split())


def _lua(script: str, pattern: str) -> int:
    source = (scripts.scripts_folder() / f"{script}.lua").read_text(encoding="utf-8")
    found = re.search(pattern, source)
    assert found is not None, (script, pattern)
    return int(found[1])


def test_the_limits_are_those_of_the_code() -> None:
    """Each line of the table, and no other."""
    defaults = config.Options()
    limits = {
        "bytes of a key": keys.MAX_KEY_BYTES,
        "bytes of scope and key together": keys.MAX_SCOPED_BYTES,
        "bytes of a printed scope": scope.MAX_SCOPE_BYTES,
        "bytes of an encoded namespace": keys.MAX_NAMESPACE_BYTES,
        "shards": keys.MAX_SHARDS,
        "changes in a commit": commits.MAX_CHANGES,
        "bytes of a commit": commits.MAX_COMMIT_BYTES,
        "keys of a batch": core.MAX_BATCH,
        "elements of an append": partial.MAX_ELEMENTS,
        "bytes of a value by default": defaults.max_value_bytes,
        "levels of a value by default": codec.DEFAULT_MAX_DEPTH,
        "bytes of a value that is not staged": large.INLINE_LIMIT,
        "bytes or characters of a piece": large.CHUNK_BYTES,
        "bytes of a converted value in the log": staging.LOGGED_LIMIT,
        "commits of a group": groups.GROUP_ITEMS,
        "bytes of a group": groups.GROUP_BYTES,
        "unresolved operations of a ring": ring.WINDOW,
        "milliseconds of a TTL": ttl.MAX_TTL_MS,
        "milliseconds that a replaced generation stays": _lua("lib/scope", r"GRACE_MS = (\d+)"),
        "milliseconds that a staged generation stays": _lua("stage", r"'PEXPIRE', KEYS.1., (\d+)"),
        "milliseconds that a ring stays": _lua("commit", r"'PEXPIRE', ring, (\d+)"),
        "keys of get_all": reads.ALL_KEYS,
        "bytes of get_all": reads.ALL_BYTES,
        "keys of a copy as one commit": scopes.COPY_BATCH,
        "bytes of a copy as one commit": scopes.COPY_BYTES,
        "bytes of an actor or correlation id": CONTEXT_BYTES,
    }
    said = {row["limit"]: int(row["value"].replace(",", "")) for row in table("limit", "value")}
    assert said == limits


def test_the_layouts_name_the_offsets_that_their_sizes_give() -> None:
    """A wrong offset in a row that no other test reads is found too."""
    for _, rows in TABLES:
        if not rows or list(rows[0])[:2] != ["offset", "bytes"]:
            continue
        for one, two in pairwise(rows):
            if two["offset"].isdigit() and one["bytes"].isdigit():
                assert int(one["offset"]) + int(one["bytes"]) == int(two["offset"]), two
