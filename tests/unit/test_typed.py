from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any, Literal

import msgspec
import pydantic
import pytest

from llmspell_dist.errors import CodecError
from llmspell_dist.typed import from_builtin, to_builtin

pytestmark = pytest.mark.unit


class Color(Enum):
    """A type of a user."""

    RED = "red"


@dataclass
class Item:
    """A type of a user."""

    name: str
    price: float = 1.0
    color: Color = Color.RED


@dataclass(frozen=True)
class Order:
    """A type of a user."""

    items: list[Item]
    when: datetime
    notes: dict[str, str | int] = field(default_factory=dict)
    pair: tuple[int, str] = (1, "a")
    many: tuple[int, ...] = ()
    mode: Literal["x", "y"] = "x"
    best: Item | None = None
    tag: Annotated[str, "doc"] = ""
    anything: Any = None


class Inner(msgspec.Struct):
    """A type of a user."""

    count: int


class Outer(msgspec.Struct, rename="camel"):
    """A type of a user."""

    first_part: Inner
    when: datetime


class Model(pydantic.BaseModel):
    """A type of a user."""

    size: int
    parts: list[Item] = []
    alias_name: str = pydantic.Field(default="", alias="aliasName")


NOW = datetime(2024, 1, 1, tzinfo=UTC)
VALUES = [
    Order([Item("a"), Item("b", 2.0)], NOW, {"a": 1, "b": "x"}, (2, "b"), (1, 2), "y", Item("c")),
    Outer(Inner(3), NOW),
    Model(size=3, parts=[Item("a")], aliasName="x"),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda v: type(v).__name__)
def test_typed_value_comes_back_equal(value: Any) -> None:
    """Through plain values only."""
    plain = to_builtin(value)
    assert type(plain) is dict
    assert from_builtin(type(value), plain) == value


@pytest.mark.parametrize(
    ("expected", "data", "path"),
    [
        (Order, {"items": [{"name": "a"}, {"name": 1}], "when": NOW}, "$.items[1].name"),
        (Order, {"items": []}, "$.when"),
        (Item, {"name": "a", "nope": 1}, "$.nope"),
        (Item, {"name": "a", "color": "blue"}, "$.color"),
        (Order, {"items": [], "when": NOW, "mode": "z"}, "$.mode"),
        (Order, {"items": [], "when": NOW, "pair": (1,)}, "$.pair"),
        (Order, {"items": [], "when": NOW, "notes": {"a": None}}, "$.notes.a"),
        (Model, {"size": "x"}, "$.size"),
        (Outer, {"first_part": {"count": 1}, "nope": 1}, "$.nope"),
        (int, True, "$"),
        (list[int], [1, "x"], "$[1]"),
    ],
)
def test_data_that_does_not_fit_is_refused_with_the_field(
    expected: Any, data: Any, path: str
) -> None:
    """The path leads to the field."""
    with pytest.raises(CodecError) as caught:
        from_builtin(expected, data)
    assert caught.value.path == path


def test_plain_values_pass_unchanged() -> None:
    """Typed access costs nothing where there is nothing to do."""
    for value in (1, "x", None, [1, {2}], {"a": (1,)}, NOW):
        assert to_builtin(value) == value
    assert from_builtin(float, 3) == 3.0
    assert from_builtin(dict[str, int], {"a": 1}) == {"a": 1}


def test_value_that_contains_itself_is_refused() -> None:
    """Not a RecursionError."""
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(CodecError):
        to_builtin(circle)


def test_model_libraries_are_not_loaded() -> None:
    """They are optional, and slow to import."""
    code = "import sys, llmspell_dist.typed; print({'msgspec', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
