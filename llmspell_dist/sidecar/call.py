"""A request as handlers see it: checked, decoded, and with everything that it may use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.sidecar.auth.errors import ForbiddenError
from llmspell_dist.sidecar.auth.grants import Principal, Verb
from llmspell_dist.sidecar.entity_tags import Tags, parse_tags

if TYPE_CHECKING:
    from llmspell_dist.client import Spell
    from llmspell_dist.sidecar.endpoint import Endpoint
    from llmspell_dist.sidecar.gate import Gate
    from llmspell_dist.sidecar.services import Services
    from llmspell_dist.state.manager import StateManager

__all__ = ["LEASE_HEADER", "Call"]

LEASE_HEADER: Final = b"llmspell-lease"
"""Under which lease a write is made: what acquiring it gave as ``handle``; several by commas."""

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Call:
    """One request. Handlers read it and return a `Reply`, or use `send` themselves."""

    __slots__ = (
        "_aside",
        "body",
        "client",
        "endpoint",
        "gate",
        "headers",
        "parameters",
        "principal",
        "query",
        "receive",
        "scope",
        "send",
        "services",
        "wanted",
    )

    def __init__(  # noqa: PLR0917 - made in one place
        self,
        endpoint: Endpoint,
        parameters: dict[str, str],
        principal: Principal,
        services: Services,
        headers: dict[bytes, bytes],
        wanted: str,
    ) -> None:
        self.endpoint = endpoint
        self.parameters = parameters
        """Of the path, decoded."""
        self.principal = principal
        self.services = services
        self.headers = headers
        """By lower-case name; of one that came twice, the values joined by a comma."""
        self.wanted = wanted
        """The media type to answer in."""
        self.query: Any = None
        """The Struct that the route declares."""
        self.body: Any = None
        """The Struct, or the value, that the route declares."""
        self.scope: MutableMapping[str, Any] = {}
        self.receive: Receive
        self.send: Send
        self.gate: Gate | None = None
        """Where it has its place among the requests of its client."""
        self.client = ""
        self._aside = False

    @property
    def spell(self) -> Spell:
        """The client behind everything."""
        return self.services.spell

    @property
    def state(self) -> StateManager:
        """The shared state, under the leases that the request carries."""
        carried = self.headers.get(LEASE_HEADER)
        return self.services.spell.state if carried is None else self.services.fenced(carried)

    def header(self, name: bytes) -> str | None:
        """Return a header's value as text."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    def require(self, verb: Verb, target: str) -> None:
        """Refuse unless whoever asks may do that."""
        if not self.principal.may(verb, target):
            raise ForbiddenError(verb, target)

    # --- its place among the requests of its client

    def step_aside(self) -> None:
        """Let others of this client work, while this one waits for something: to be called once.

        Raises `TooManyRequestsError` if too many of them wait so already.
        """
        if self.gate is not None and not self._aside:
            self.gate.step_aside(self.client)
            self._aside = True

    def leave(self) -> None:
        """Make room for the next one."""
        gate, self.gate = self.gate, None
        if gate is None:
            return
        if self._aside:
            gate.leave_aside(self.client)
        else:
            gate.leave(self.client)

    # --- conditions: RFC 9110, section 13

    @property
    def if_match(self) -> Tags | None:
        """The revisions of ``If-Match``; ``*`` for any; None without one."""
        return self._tags(b"if-match")

    @property
    def if_none_match(self) -> Tags | None:
        """The revisions of ``If-None-Match``; ``*`` for any; None without one."""
        return self._tags(b"if-none-match")

    def _tags(self, name: bytes) -> Tags | None:
        value = self.headers.get(name)
        return None if value is None else parse_tags(value.decode("latin-1"), name.decode())
