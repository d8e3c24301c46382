"""Typed access: dataclasses, structs and models go in and come out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import pydantic
import pytest

from llmspell_dist import CodecError, StateManager

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]
S = "agent:alice"


@dataclass
class Step:
    """A dataclass in another."""

    name: str
    tries: int = 0


@dataclass
class Plan:
    """A dataclass."""

    goal: str
    steps: list[Step] = field(default_factory=list)


class PlanStruct(msgspec.Struct):
    """A msgspec struct."""

    goal: str
    steps: list[str] = []


class PlanModel(pydantic.BaseModel):
    """A pydantic model."""

    goal: str
    steps: list[str] = []


VALUES: list[Any] = [
    Plan("win", [Step("a"), Step("b", 2)]),
    PlanStruct("win", ["a"]),
    PlanModel(goal="win", steps=["a"]),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
async def test_a_model_comes_back_as_what_it_was(state: StateManager, value: Any) -> None:
    """By every call that takes `as_type`; without it as the plain dict that it is."""
    kind = type(value)
    await state.set(S, "k", value)
    assert await state.get(S, "k", as_type=kind) == value
    record = await state.get_record(S, "k", as_type=kind)
    assert record is not None
    assert record.value == value
    assert await state.get_many(S, ["k"], as_type=kind) == {"k": value}
    plain = await state.get(S, "k")
    assert plain["goal"] == "win"
    assert await state.get(S, "missing", as_type=kind) is None
    await state.append(S, "l", value)
    assert (await state.get(S, "l"))[0] == plain
    await state.merge(S, "m", {"f": value})
    assert await state.get(S, "m") == {"f": plain}
    async with state.transaction() as tx:
        tx.set(S, "tx", value)
        tx.append(S, "l", value)
        assert await tx.get(S, "tx", as_type=kind) == value
        assert await tx.get(S, "tx") == plain
    assert await state.get(S, "tx", as_type=kind) == value
    assert await state.get(S, "l") == [plain, plain]


async def test_a_whole_list_takes_models_too(state: StateManager) -> None:
    """In the step that converts it."""
    await state.set(S, "l", [1])
    await state.append(S, "l", Step("a"))
    assert await state.get(S, "l") == [1, {"name": "a", "tries": 0}]


async def test_a_value_of_another_shape_is_refused_with_its_path(state: StateManager) -> None:
    """At the reading; the stored value stays readable plainly."""
    await state.set(S, "k", {"goal": "win", "steps": [{"name": 5}]})
    with pytest.raises(CodecError) as caught:
        await state.get(S, "k", as_type=Plan)
    assert caught.value.path.startswith("$.steps[0]")
    assert await state.get(S, "k") == {"goal": "win", "steps": [{"name": 5}]}


async def test_update_works_on_plain_values_of_models(state: StateManager) -> None:
    """And may return a model."""
    await state.set(S, "k", Step("a"))
    await state.update(S, "k", lambda v: Step(v["name"], v["tries"] + 1))
    assert await state.get(S, "k", as_type=Step) == Step("a", 1)
