"""Finds the route of a path in one walk, whatever their number; paths are compared still encoded.

A segment is decoded after it was cut out, so ``workflow:w1%2Fstep:plan`` is one segment, and no
encoded slash or dot can reach another route.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_to_bytes

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.scope import Scope
from llmspell_dist.sidecar.endpoint import Endpoint
from llmspell_dist.sidecar.errors import MethodNotAllowedError, PathTooLongError, RouteNotFoundError

__all__ = ["Dispatcher", "Found"]

MAX_PATH: Final = 4096
_SCOPE: Final = "scope"
_WEBSOCKET: Final = "WEBSOCKET"
_KNOWN: Final = 2048
_KNOWN_LENGTH: Final = 256


class Found(NamedTuple):
    """A route, and the parameters of its path, decoded. Shared: not to be changed."""

    endpoint: Endpoint
    parameters: dict[str, str]


class _Node:
    __slots__ = ("fixed", "methods", "names", "parameter")

    def __init__(self) -> None:
        self.fixed: dict[str, _Node] = {}
        self.parameter: _Node | None = None
        self.methods: dict[str, Any] = {}


class Dispatcher:
    """All routes, as a tree of their segments."""

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self._root = _Node()
        self._known: dict[tuple[str, str], Found] = {}
        for endpoint in endpoints:
            self._add(endpoint)

    def _add(self, endpoint: Endpoint) -> None:
        node, names = self._root, []
        for segment in endpoint.path.split("/")[1:]:
            if segment.startswith("{"):
                names.append(segment[1:-1])
                node.parameter = node = node.parameter or _Node()
            else:
                node = node.fixed.setdefault(segment, _Node())
        method = _WEBSOCKET if endpoint.socket else endpoint.method
        if method in node.methods:
            raise ValueError(f"two routes for {method} {endpoint.path}")
        node.methods[method] = (endpoint, tuple(names))

    def find(self, method: str, path: str) -> Found:
        """Return the route; `RouteNotFoundError` or `MethodNotAllowedError` if there is none.

        `PathTooLongError` if it is longer than any path that means something.

        What was found lately is known: the same few keys are asked for again and again.
        """
        found = self._known.get((method, path))
        if found is None:
            found = self._walk(method, path)
            if len(self._known) >= _KNOWN:
                self._known.clear()
            if len(path) <= _KNOWN_LENGTH:
                self._known[method, path] = found
        return found

    def _walk(self, method: str, path: str) -> Found:
        if len(path) > MAX_PATH:
            raise PathTooLongError(len(path), MAX_PATH)
        node, given = self._root, []
        for segment in path.split("/")[1:]:
            found = node.fixed.get(segment)
            if found is None:
                found = node.parameter
                if found is None or not segment:
                    raise RouteNotFoundError(path)
                given.append(segment)
            node = found
        if not node.methods:
            raise RouteNotFoundError(path)
        route = node.methods.get(method)
        if route is None:
            allowed = {name for name in node.methods if name != _WEBSOCKET}
            if not allowed:
                raise RouteNotFoundError(path)
            if "GET" in allowed:
                allowed.add("HEAD")
            raise MethodNotAllowedError(method, sorted(allowed))
        endpoint, names = route
        return Found(endpoint, dict(zip(names, map(_decoded, given, names), strict=True)))

    def socket(self, path: str) -> Found:
        """Return the WebSocket of a path."""
        return self.find(_WEBSOCKET, path)


def _decoded(segment: str, name: str) -> str:
    """Return a segment without its percent-encoding; it must be UTF-8, without a NUL."""
    if not segment.isascii():
        raise InvalidArgumentError(name, segment, "must be percent-encoded where it is not ASCII")
    if "%" not in segment:
        return segment
    try:
        text = unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise InvalidArgumentError(name, segment, "must be percent-encoded UTF-8") from None
    if "\0" in text:
        raise InvalidArgumentError(name, segment, "must not hold a NUL")
    # Rights are asked about the one spelling that the store uses: this may be another (NFC).
    return Scope.parse(text).text if name == _SCOPE else text
