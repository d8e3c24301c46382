"""Parameters of a query: read into what a route declares, or refused by name."""

from __future__ import annotations

import pytest
from msgspec import Struct

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.sidecar.parameters import read_query

pytestmark = pytest.mark.unit


class Shape(Struct, frozen=True, forbid_unknown_fields=True):
    """Of a route of these tests."""

    limit: int = 10
    prefix: str | None = None
    deep: bool = False
    scopes: list[str] = []


def test_parameters_get_their_types() -> None:
    """Percent-encoding and plus signs are undone; a list takes all that come."""
    read = read_query(b"limit=3&prefix=a%26b+c&deep=true&scopes=x&scopes=y", Shape)
    assert read == Shape(3, "a&b c", True, ["x", "y"])
    assert read_query(b"", Shape) == Shape()
    assert read_query(b"prefix=", Shape).prefix == ""


@pytest.mark.parametrize(
    ("query", "name"),
    [
        (b"limt=3", "limt"),
        (b"limit=3&limit=4", "limit"),
        (b"limit=three", "limit"),
        (b"deep=maybe", "deep"),
        (b"prefix=%ff", "query"),
        (b"prefix=%00", "prefix"),
        (b"prefix", "query"),
        (b"\xff=1", "query"),
        (b"&".join([b"scopes=x"] * 1001), "query"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(query: bytes, name: str) -> None:
    """Nothing is ignored."""
    with pytest.raises(InvalidArgumentError) as caught:
        read_query(query, Shape)
    assert name in caught.value.argument


def test_a_route_without_parameters_takes_none() -> None:
    """And says that there are none."""
    assert read_query(b"", None) is None
    with pytest.raises(InvalidArgumentError, match="there are none"):
        read_query(b"a=1", None)
