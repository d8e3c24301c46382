"""A scope against a model of it: whatever the order of calls, both say the same."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fix_state import Raw, Store
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from llmspell_dist import ConflictError, HistoryUnavailableError, Revision, WrongKindError, connect
from llmspell_dist.client import Spell

pytestmark = pytest.mark.integration
S, T = "agent:model", "agent:copy"

keys = st.sampled_from(["a", "b", "é", "d"])
plain = st.one_of(
    st.none(), st.integers(-5, 5), st.floats(-2, 2), st.text(max_size=3),
    st.lists(st.integers(0, 3), max_size=3),
    st.dictionaries(st.sampled_from("xyz"), st.integers(0, 3), max_size=3),
)  # fmt: skip
large = st.integers(0, 3).map(lambda n: "L" * 530_000 + str(n))
values = st.one_of(plain, plain, plain, plain, plain, large)


class ScopeMachine(RuleBasedStateMachine):
    """One scope, its copy, and two dicts."""

    url = ""
    namespace = ""
    address: Any = None
    serial = 0

    def __init__(self) -> None:
        super().__init__()
        ScopeMachine.serial += 1
        namespace = f"{self.namespace}-{self.serial}"
        self.loop = asyncio.new_event_loop()
        self.spell: Spell = self.wait(self.open(namespace))
        self.state = self.spell.state
        self.raw = Raw(self.address)
        self.store = Store(self.raw, namespace)
        self.model: dict[str, Any] = {}
        self.copy: dict[str, Any] = {}
        self.revisions: dict[str, Revision] = {}
        self.past: dict[str, list[tuple[Revision, Any]]] = {}

    async def open(self, namespace: str) -> Spell:
        return await connect(self.url, namespace=namespace)

    def wait(self, call: Any) -> Any:
        return self.loop.run_until_complete(call)

    def note(self, key: str, value: Any) -> None:
        """The model has changed; the record knows at which revision."""
        self.model[key] = value
        record = self.wait(self.state.get_record(S, key))
        self.revisions[key] = record.revision
        self.past.setdefault(key, []).append((record.revision, value))

    def forget(self, *gone: str) -> None:
        for key in gone:
            self.model.pop(key, None)
            self.revisions.pop(key, None)

    @rule(key=keys, value=values)
    def put(self, key: str, value: Any) -> None:
        self.wait(self.state.set(S, key, value))
        self.note(key, value)

    @rule(key=keys, value=plain)
    def set_if_absent(self, key: str, value: Any) -> None:
        done = self.wait(self.state.set_if_absent(S, key, value))
        assert (done is None) == (key in self.model)
        if done is not None:
            self.note(key, value)

    @rule(key=keys, value=plain, stale=st.booleans())
    def compare_and_set(self, key: str, value: Any, stale: bool) -> None:
        expected = Revision(1, 1) if stale else self.revisions.get(key)
        try:
            self.wait(self.state.compare_and_set(S, key, value, expected=expected))
        except ConflictError:
            assert stale
        else:
            assert not stale
            self.note(key, value)

    @rule(key=keys)
    def delete(self, key: str) -> None:
        assert self.wait(self.state.delete(S, key)) == (key in self.model)
        self.forget(key)

    @rule(key=keys, by=st.one_of(st.integers(-3, 3), st.sampled_from([0.5, -1.5])))
    def increment(self, key: str, by: float) -> None:
        before = self.model.get(key, 0)
        try:
            total = self.wait(self.state.increment(S, key, by))
        except WrongKindError:
            assert type(before) not in (int, float)
        else:
            assert total == before + by
            self.note(key, total)

    @rule(key=keys, items=st.lists(plain, min_size=1, max_size=3))
    def append(self, key: str, items: list[Any]) -> None:
        before = self.model.get(key, [])
        try:
            length = self.wait(self.state.append(S, key, *items))
        except WrongKindError:
            assert type(before) is not list
        else:
            assert length == len(before) + len(items)
            self.note(key, [*before, *items])

    @rule(
        key=keys,
        fields=st.dictionaries(st.sampled_from("vwxyz"), plain, min_size=1, max_size=3),
        removed=st.sets(st.sampled_from("vwxyz"), max_size=2),
    )
    def merge(self, key: str, fields: dict[str, Any], removed: set[str]) -> None:
        before = self.model.get(key, {})
        try:
            count = self.wait(self.state.merge(S, key, fields, remove=removed))
        except WrongKindError:
            assert type(before) is not dict
        else:
            merged = {k: v for k, v in {**before, **fields}.items() if k not in removed}
            assert count == len(merged)
            self.note(key, merged)

    @rule(key=keys)
    def expire_and_persist(self, key: str) -> None:
        assert self.wait(self.state.expire(S, key, 1000)) == (key in self.model)
        assert self.wait(self.state.persist(S, key)) == (key in self.model)
        if key in self.model:
            self.note(key, self.model[key])

    @rule(changes=st.dictionaries(keys, plain, min_size=1, max_size=3), gone=keys)
    def transaction(self, changes: dict[str, Any], gone: str) -> None:
        async def run() -> None:
            async with self.state.transaction() as tx:
                assert await tx.get(S, gone, "none") == self.model.get(gone, "none")
                tx.delete(S, gone)
                for key, value in changes.items():
                    tx.set(S, key, value)

        self.wait(run())
        self.forget(gone)
        for key, value in changes.items():
            self.note(key, value)

    @rule(move=st.booleans())
    def transfer(self, move: bool) -> None:
        call = self.state.move_scope if move else self.state.copy_scope
        assert self.wait(call(S, T)) == len(self.model)
        self.copy |= self.model
        if move:
            self.forget(*list(self.model))

    @rule()
    def clear(self) -> None:
        assert self.wait(self.state.clear(S)) == len(self.model)
        self.forget(*list(self.model))

    @rule(key=keys)
    def look_back(self, key: str) -> None:
        for revision, value in self.past.get(key, [])[-3:]:
            try:
                found = self.wait(self.state.get_at(S, key, revision))
            except HistoryUnavailableError:
                # Elements that were moved or replaced; never a wrong value instead.
                assert type(value) in (list, dict, str)
            else:
                assert found == value

    @invariant()
    def same(self) -> None:
        for scope, model in ((S, self.model), (T, self.copy)):
            found = self.wait(self.state.get_many(scope, ["a", "b", "é", "d"]))
            assert found == model
            assert {k: type(v) for k, v in found.items()} == {k: type(v) for k, v in model.items()}
            assert self.wait(self.state.count(scope)) == len(model)
        self.store.check()

    def teardown(self) -> None:
        self.wait(self.spell.close())
        self.loop.close()
        self.raw.close()


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
def test_a_scope_behaves_as_its_model(server: Any, namespace: str) -> None:
    """Random sequences of every writing call, checked after each step."""

    class Machine(ScopeMachine):
        url = server.url
        address = server.address

    Machine.namespace = namespace
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=8,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            database=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )
