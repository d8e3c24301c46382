"""Who makes a request, whether they may, and whether a browser made it behind their back."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.sidecar.auth.errors import ForbiddenError, UnauthenticatedError
from llmspell_dist.sidecar.auth.sources import is_loopback
from llmspell_dist.sidecar.errors import ForeignPageError

if TYPE_CHECKING:
    from llmspell_dist.sidecar.auth.grants import Principal, Verb
    from llmspell_dist.sidecar.call import Call
    from llmspell_dist.sidecar.endpoint import Endpoint
    from llmspell_dist.sidecar.services import Services

__all__ = ["Admission"]

logger = logging.getLogger("llmspell_dist.sidecar.auth")

_KNOWN_HOSTS: Final = 64


class Admission:
    """The checks that stand before every route."""

    def __init__(self, services: Services) -> None:
        self._access = services.access
        self._nobody = services.nobody
        self._observer = services.observer
        self._hosts: set[bytes] = set()
        self._targets: dict[Endpoint, tuple[tuple[Verb, str, str | None], ...]] = {}

    def known(
        self, scope: MutableMapping[str, Any], headers: dict[bytes, bytes], endpoint: Endpoint
    ) -> Principal | None:
        """Return who it is, if that can be told without waiting."""
        if endpoint.public:
            return self._nobody
        said = headers.get(b"authorization")
        principal = self._access.cached(
            None if said is None else said.decode("latin-1"), scope.get("llmspell.peer")
        )
        if principal is not None and principal.kind == "anonymous":
            self._check_page(scope, headers)
        return principal

    async def authenticate(
        self, scope: MutableMapping[str, Any], headers: dict[bytes, bytes]
    ) -> Principal:
        """Return who it is; `UnauthenticatedError` if that cannot be told."""
        said = headers.get(b"authorization")
        try:
            principal = await self._access.authenticate(
                None if said is None else said.decode("latin-1"), scope.get("llmspell.peer")
            )
        except UnauthenticatedError as error:
            self._observer.unauthenticated()
            logger.info("credentials were not accepted: %s", error.reason)
            raise
        if principal.kind == "anonymous":
            self._check_page(scope, headers)
        return principal

    def check(self, call: Call) -> None:
        """Raise `ForbiddenError` unless the route's rights are there."""
        endpoint = call.endpoint
        targets = self._targets.get(endpoint)
        if targets is None:
            targets = self._targets[endpoint] = _targets(endpoint)
        may, parameters = call.principal.may, call.parameters
        for verb, template, name in targets:
            target = template.format_map(parameters) if name is None else parameters[name]
            if not may(verb, target):
                self._observer.forbidden()
                raise ForbiddenError(verb, target)

    def _check_page(self, scope: MutableMapping[str, Any], headers: dict[bytes, bytes]) -> None:
        """Refuse what a page from elsewhere sends: a browser on this machine carries it here.

        It says whence it comes by ``Origin``; and a page whose name was made to mean this machine
        (DNS rebinding) is known by the ``Host``. Whoever has credentials is no page.
        """
        host = headers.get(b"host", b"")
        if host not in self._hosts and "llmspell.peer" not in scope:
            if not _is_here(host):
                raise ForeignPageError("host", host.decode("latin-1"))
            if len(self._hosts) < _KNOWN_HOSTS:
                self._hosts.add(host)
        origin = headers.get(b"origin")
        if origin is not None and origin.partition(b"://")[2] != host:
            raise ForeignPageError("origin", origin.decode("latin-1"))
        if headers.get(b"sec-fetch-site") == b"cross-site":
            raise ForeignPageError("sec-fetch-site", "cross-site")


def _targets(endpoint: Endpoint) -> tuple[tuple[Verb, str, str | None], ...]:
    """Return verb and target of each right; a target that is one parameter is looked up as that."""
    found = []
    for need in endpoint.needs:
        inner = need.target[1:-1]
        alone = need.target == f"{{{inner}}}" and "{" not in inner
        found.append((need.verb, need.target, inner if alone else None))
    return tuple(found)


def _is_here(host: bytes) -> bool:
    """Return whether a Host header names this machine by itself, not by a name of somebody's."""
    name, colon, port = host.decode("latin-1").rpartition(":")
    if not colon or port.endswith("]"):  # what stands there is no port
        name, port = host.decode("latin-1"), "0"
    if not (port.isascii() and port.isdigit()):
        return False
    if name.startswith("["):
        return name.endswith("]") and is_loopback(name[1:-1])
    return ":" not in name and is_loopback(name)
