"""History repeated on a fuzzy scan is the state at the cut, whatever was written when.

Random writes through the public calls; every key is scanned at a moment of its own, its elements
later still; the log from before the scan is repeated up to a cut. What is put in place must then be
what was there at the cut.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import pytest
from fix_restore import (
    Restores,
    Value,
    contents,
    elements_of,
    log_items,
    record_items,
    twice,
    unlogged,
)
from fix_state import Raw, Store, until
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from llmspell_dist import Scope, StateClass, WrongKindError, connect
from llmspell_dist.backup.digest import ScopeDigest
from llmspell_dist.backup.items import Elements, Item, Logged, Missing, Record, ScopeStart
from llmspell_dist.backup.restoring import digest_of
from llmspell_dist.records import Kind, unpack_head, unpack_record
from llmspell_dist.state.housekeeping import sweep

pytestmark = [pytest.mark.integration, pytest.mark.backup]
SCOPES = ("agent:one", "session:two")
KEYS = ("a", "b", "c")

values = st.one_of(
    st.integers(-5, 5),
    st.text(max_size=3),
    st.lists(st.integers(0, 3), max_size=3),
    st.dictionaries(st.sampled_from("xyz"), st.integers(0, 3), max_size=3),
    st.sampled_from(["large L", "large M"]),
)
classes = st.sampled_from([None, None, None, StateClass.BULK, StateClass.EPHEMERAL])
ttls = st.sampled_from(["keep", "keep", None, 500, 900, 0.001])
several = st.lists(st.integers(), min_size=1, max_size=3)
scopes, keys = st.sampled_from(SCOPES), st.sampled_from(KEYS)
changes = st.one_of(
    st.tuples(st.just("set"), scopes, keys, values, ttls, classes),
    st.tuples(st.just("append"), scopes, keys, several, ttls),
    st.tuples(st.just("append"), scopes, keys, several, ttls),
    st.tuples(
        st.just("merge"), scopes, keys,
        st.dictionaries(st.sampled_from("xyz"), st.integers(0, 300), max_size=2),
        st.lists(st.sampled_from("xyzw"), max_size=2, unique=True), ttls,
    ),
    st.tuples(st.just("increment"), scopes, keys, st.integers(-3, 3)),
    st.tuples(st.just("expire"), scopes, keys, ttls.filter(lambda ttl: ttl != "keep")),
    st.tuples(st.just("delete"), scopes, keys),
    st.tuples(st.just("clear"), scopes),
    st.tuples(st.just("transfer"), scopes, st.booleans()),
    st.tuples(st.just("together"), keys, values),
    st.tuples(st.just("sweep")),
)  # fmt: skip


class World:
    """A namespace of its own that is written to and scanned."""

    serial = 0

    def __init__(self, server: Any, namespace: str) -> None:
        World.serial += 1
        self.server, self.namespace = server, f"{namespace}-{World.serial}"
        self.raw = Raw(server.address)
        self.store = Store(self.raw, self.namespace)
        self.copied = False

    async def open(self) -> None:
        self.spell = await connect(self.server.url, namespace=self.namespace)
        self.state = self.spell.state

    async def close(self) -> None:
        await self.spell.close()
        self.raw.close()

    async def change(self, one: tuple[Any, ...]) -> None:
        """Do one of the writing calls; one that does not fit what is there does nothing."""
        what, *given = one
        try:
            await getattr(self, f"do_{what}")(*given)
        except WrongKindError:
            return
        if 0.001 in [part for part in given if isinstance(part, float)]:
            over = self.raw.now_ms() + 1
            await until(lambda: self.raw.now_ms() > over)

    def ttl(self, ttl: Any) -> dict[str, Any]:
        return {} if ttl == "keep" else {"ttl": ttl}

    async def do_set(self, scope: str, key: str, value: Any, ttl: Any, state_class: Any) -> None:
        if str(value).startswith("large"):
            value = value[-1] * 530_000  # adopted in pieces, and not in the log
        await self.state.set(scope, key, value, state_class=state_class, **self.ttl(ttl))

    async def do_append(self, scope: str, key: str, items: list[int], ttl: Any) -> None:
        await self.state.append(scope, key, *items, **self.ttl(ttl))

    async def do_merge(
        self, scope: str, key: str, mapping: dict[str, int], gone: list[str], ttl: Any
    ) -> None:
        if mapping or gone:
            await self.state.merge(scope, key, mapping, remove=gone, **self.ttl(ttl))

    async def do_increment(self, scope: str, key: str, by: int) -> None:
        await self.state.increment(scope, key, by)

    async def do_expire(self, scope: str, key: str, ttl: Any) -> None:
        await (
            self.state.persist(scope, key) if ttl is None else self.state.expire(scope, key, ttl)
        )

    async def do_delete(self, scope: str, key: str) -> None:
        await self.state.delete(scope, key)

    async def do_clear(self, scope: str) -> None:
        await self.state.clear(scope)

    async def do_transfer(self, scope: str, move: bool) -> None:
        other = SCOPES[SCOPES.index(scope) - 1]
        self.copied = True
        await (self.state.move_scope if move else self.state.copy_scope)(scope, other)

    async def do_together(self, key: str, value: Any) -> None:
        async with self.state.transaction() as tx:
            for scope in SCOPES:
                tx.set(scope, key, value)

    async def do_sweep(self) -> None:
        await self.spell.state._driver.run(sweep(self.spell.state._driver.core, "0"))

    # -- what a backup reads

    def read(self, scope: str, key: str) -> bytes | None:
        return self.store.field(scope, key)

    def items(self, scope: str, key: str, record: bytes, whole: bool) -> list[Item]:
        """Return a record that was read before, with the elements as they are now."""
        stored = unpack_record(record, scope, key)
        if stored.kind < Kind.LIST:
            return [Record(key.encode(), record)]
        head = unpack_head(stored.payload, scope, key)
        parts = elements_of(self.raw, self.store.hash_of(scope), stored.kind, head.generation)
        if head.count and not parts:
            return [Record(key.encode(), record), Missing()]
        if stored.kind == Kind.LIST and not whole:
            parts = parts[: head.count]
        return [Record(key.encode(), record), Elements(stored.kind, parts)]

    def values(self) -> dict[str, dict[str, Value]]:
        now_ms = self.raw.now_ms()
        return {scope: contents(self.store, scope, now_ms=now_ms) for scope in SCOPES}


Moments = list[tuple[float, float, bool]]


Story = tuple[list[Any], list[Any], list[Any]]


async def play(world: World, story: Story, moments: Moments, *, again: bool) -> None:
    """Write, scan while writing goes on, write on; then restore every moment since the scan."""
    before, during, after = story
    for one in before:
        await world.change(one)
    world.copied = False
    log = world.store.log()
    begin = log[-1].revision if log else None
    scanned: dict[str, list[Item]] = {scope: [] for scope in SCOPES}
    reads: dict[tuple[str, str, int], bytes] = {}
    places = [(scope, key) for scope in SCOPES for key in KEYS]
    for step in range(len(during) + 1):
        for number, (first, later, whole) in enumerate(moments):
            scope, key = places[number % len(places)]
            at = int(first * (len(during) + 0.99))
            record = world.read(scope, key) if at == step else None
            if record is not None:
                reads[scope, key, number] = record
            then = at + int(later * (len(during) + 0.99 - at))
            if then == step and (scope, key, number) in reads:
                record = reads[scope, key, number]
                scanned[scope] += world.items(scope, key, record, whole)
        if step < len(during):
            await world.change(during[step])
    records: list[Item] = []
    for scope in SCOPES:
        records += [ScopeStart(scope.encode()), *scanned[scope]]
    cuts = [await look(world)]
    for one in after:
        await world.change(one)
        cuts.append(await look(world))
    for number, cut in enumerate(cuts):
        entries = log_items(world.store, begin, cut.end) if cut.end is not None else []
        await compare(world, records, entries, cut, number, again=again)


class Cut(NamedTuple):
    """The log's end, what is there, its digests, and every key as it can be attached."""

    end: Any
    live: dict[str, dict[str, Value]]
    digests: dict[str, ScopeDigest]
    attached: dict[tuple[str, str], list[Item]]


async def look(world: World) -> Cut:
    """Return everything of a moment."""
    log = world.store.log()
    attached: dict[tuple[str, str], list[Item]] = {}
    for scope in SCOPES:
        for key in KEYS:
            record = world.read(scope, key)
            if record is not None:
                base = world.store.hash_of(scope)
                attached[scope, key] = record_items(world.raw, base, key.encode(), record)
    driver = world.spell.state._driver
    digests = {
        scope: await driver.run(digest_of(driver.core, Scope.parse(scope), created=False))
        for scope in SCOPES
    }
    return Cut(log[-1].revision if log else None, world.values(), digests, attached)


async def compare(
    world: World,
    records: list[Item],
    entries: list[Logged],
    cut: Cut,
    number: int,
    *,
    again: bool,
) -> None:
    """Restore the cut to other scopes, and hold them against what was there."""
    names = {scope: Scope.parse(f"custom:cut{number}-{scope[:3]}") for scope in SCOPES}
    segment: list[Item] = list(entries)
    for scope, key in sorted(unlogged(entries)):
        segment += [ScopeStart(scope.encode()), *cut.attached.get((scope, key), [])]
    restores = Restores(world.spell, world.store)
    if again:
        run = restores.run
        restores.run = lambda steps: run(twice(steps))
    await restores.restore(records, [segment], mapping=names.get, scopes=SCOPES)
    assert restores.inexact == {}
    live, found = (
        cut.live,
        {
            scope: contents(world.store, names[scope].text, now_ms=world.raw.now_ms())
            for scope in SCOPES
        },
    )
    if world.copied:  # the log does not say when a copied key was created
        live, found = without_created(live), without_created(found)
    assert found == live
    for scope, name in names.items():
        read = await restores.run(digest_of(restores.core, name, created=False))
        assert read == cut.digests[scope]
    world.store.check()


def without_created(found: dict[str, dict[str, Value]]) -> dict[str, dict[str, Value]]:
    """Leave out when keys were created."""
    return {
        scope: {key: value._replace(created_ms=0) for key, value in of.items()}
        for scope, of in found.items()
    }


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that changes of a key come in several calls."""
    monkeypatch.setattr("llmspell_dist.backup.restoring.batches.BATCH_CHANGES", 3)
    monkeypatch.setattr("llmspell_dist.backup.restoring.composites.PIECE_ELEMENTS", 2)


EXAMPLE = (
    st.lists(changes, max_size=12),
    st.lists(changes, min_size=4, max_size=25),
    st.lists(changes, max_size=5),
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 1), st.booleans()),
        min_size=len(SCOPES) * len(KEYS),
        max_size=len(SCOPES) * len(KEYS) + 3,
    ),
    st.booleans(),
)


def run(server: Any, namespace: str, examples: int, *, derandomize: bool) -> None:
    """Play so many stories."""

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=derandomize,
        database=None,
        phases=(Phase.generate, Phase.shrink) if not derandomize else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(*EXAMPLE)
    def example(before: Any, during: Any, after: Any, moments: Moments, again: bool) -> None:
        async def whole() -> None:
            world = World(server, namespace)
            await world.open()
            try:
                await play(world, (before, during, after), moments, again=again)
            finally:
                await world.close()

        asyncio.run(whole())

    example()


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
def test_history_repeated_on_a_fuzzy_scan_is_the_state_at_the_cut(
    server: Any, namespace: str
) -> None:
    """Random writes, every key scanned at another moment, every cut compared."""
    run(server, namespace, 12, derandomize=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
def test_history_repeated_campaign(server: Any, namespace: str) -> None:
    """The same with many more."""
    run(server, namespace, 400, derandomize=False)
