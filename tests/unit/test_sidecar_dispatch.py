"""The routes as a tree: one walk, decoded segment by segment."""

from __future__ import annotations

from typing import Any

import pytest

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.sidecar.dispatch import Dispatcher
from llmspell_dist.sidecar.endpoint import Endpoint
from llmspell_dist.sidecar.errors import MethodNotAllowedError, RouteNotFoundError
from llmspell_dist.sidecar.routes import all_endpoints

pytestmark = pytest.mark.unit


def endpoint(method: str, path: str, **more: Any) -> Endpoint:
    """Return a route whose handler nobody calls."""
    return Endpoint(method, path, None, (), **more)  # type: ignore[arg-type]


@pytest.fixture
def routes() -> Dispatcher:
    """A few routes that stand near one another."""
    return Dispatcher(
        [
            endpoint("GET", "/a/{x}"),
            endpoint("PUT", "/a/{x}"),
            endpoint("GET", "/a/fixed"),
            endpoint("GET", "/a/{x}/b/{y}"),
            endpoint("GET", "/w", socket=True),
        ]
    )


def test_a_parameter_is_one_decoded_segment(routes: Dispatcher) -> None:
    """An encoded slash stays inside it, and what was encoded twice is decoded once."""
    assert routes.find("GET", "/a/x%2Fb%2Fy").parameters == {"x": "x/b/y"}
    assert routes.find("GET", "/a/%252F").parameters == {"x": "%2F"}
    assert routes.find("GET", "/a/1/b/2").parameters == {"x": "1", "y": "2"}


def test_a_fixed_segment_goes_before_a_parameter(routes: Dispatcher) -> None:
    """`/a/fixed` is not the value ``fixed``."""
    assert routes.find("GET", "/a/fixed").endpoint.path == "/a/fixed"


@pytest.mark.parametrize(
    "path", ["", "/", "/a", "/a/", "a/x", "//a/x", "/a//b/y", "/a/x/b", "/b/x"]
)
def test_other_paths_are_not_found(routes: Dispatcher, path: str) -> None:
    """Empty segments are no values."""
    with pytest.raises(RouteNotFoundError):
        routes.find("GET", path)


def test_other_methods_are_told_what_there_is(routes: Dispatcher) -> None:
    """WebSockets are no method."""
    with pytest.raises(MethodNotAllowedError) as raised:
        routes.find("DELETE", "/a/x")
    assert raised.value.allowed == ["GET", "HEAD", "PUT"]
    with pytest.raises(RouteNotFoundError):
        routes.find("GET", "/w")
    assert routes.socket("/w").endpoint.socket


@pytest.mark.parametrize("segment", ["%00", "%ff", "%c0%ae", "%ed%a0%80", "\xff"])
def test_what_is_no_text_is_refused(routes: Dispatcher, segment: str) -> None:
    """NUL, and bytes that are not UTF-8."""
    with pytest.raises(InvalidArgumentError):
        routes.find("GET", f"/a/{segment}")


def test_what_is_known_is_not_another_ones(routes: Dispatcher) -> None:
    """Methods, paths and long paths keep apart, however often they are asked for."""
    for _ in range(2):
        assert routes.find("GET", "/a/1").endpoint.method == "GET"
        assert routes.find("PUT", "/a/1").endpoint.method == "PUT"
        for number in range(3000):
            assert routes.find("GET", f"/a/{number}").parameters == {"x": str(number)}
        long = "x" * 3000
        assert routes.find("GET", f"/a/{long}").parameters == {"x": long}


def test_two_handlers_of_one_path_are_a_mistake() -> None:
    """Also if their parameters have other names."""
    with pytest.raises(ValueError, match="two routes"):
        Dispatcher([endpoint("GET", "/a/{x}"), endpoint("GET", "/a/{y}")])


def test_every_route_of_the_sidecar_is_found() -> None:
    """By a path of its own, with its parameters."""
    find = Dispatcher(all_endpoints()).find
    for one in all_endpoints():
        path = "/".join("x" if part.startswith("{") else part for part in one.path.split("/"))
        assert find("WEBSOCKET" if one.socket else one.method, path).endpoint is one
