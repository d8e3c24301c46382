"""Declares a route once: path, who may, what goes in and out; the rest is made from that.

The dispatcher, the checks of rights, the reading of parameters and the OpenAPI document all read
the same `Endpoint`. A service adds its routes by a module with a `Registry` of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.errors import SpellError
from llmspell_dist.sidecar.auth.grants import Verb

if TYPE_CHECKING:
    from llmspell_dist.sidecar.call import Call
    from llmspell_dist.sidecar.reply import Reply

__all__ = ["EVERYTHING", "VALUE", "Endpoint", "Handler", "Needs", "Registry", "Value"]

Handler = Callable[["Call"], Awaitable["Reply | None"]]
"""Returns the reply; None if it has answered by itself, as streams do."""
EVERYTHING: Final = "*"
"""The target of grants for what belongs to no scope."""


class Value:
    """Stands for a user's value in a declaration: any JSON, or any MessagePack of ours."""


VALUE: Final = Value


@dataclass(frozen=True, slots=True)
class Needs:
    """A right without which a route refuses."""

    verb: Verb
    target: str = EVERYTHING
    """What it must be granted on; ``{name}`` stands for a parameter of the path."""


@dataclass(frozen=True, slots=True, eq=False)
class Endpoint:
    """One method of one path."""

    method: str
    path: str
    handler: Handler
    needs: tuple[Needs, ...]
    """All of them are checked before anything else is looked at."""
    asks: tuple[Verb, ...] = ()
    """What the handler checks by itself, for targets that stand in the body or the query."""
    query: type | None = None
    """A Struct whose fields are the parameters of the query."""
    body: type | None = None
    """A Struct, or `VALUE`; None: there must be no body."""
    returns: type | None = None
    """What a success answers: a Struct, `VALUE`; None: nothing (204)."""
    errors: tuple[type[SpellError], ...] = ()
    """What can go wrong beside what can everywhere."""
    media: str = "text/plain"
    """The media type of what is no document, where `returns` is None and it is public."""
    streams: str | None = None
    """The media type of a stream that it answers with."""
    socket: bool = False
    """Whether it is a WebSocket."""
    public: bool = False
    """Whether it is served to everybody: no state stands behind it."""
    headers: tuple[str, ...] = ()
    """Request headers that mean something here."""
    statuses: dict[int, str] = field(default_factory=dict)
    """Further answers that are no errors."""
    tag: str = ""

    @property
    def summary(self) -> str:
        """What it does, in one sentence: the docstring of its handler."""
        return (self.handler.__doc__ or "").strip().partition("\n")[0]

    @property
    def description(self) -> str:
        """The rest of that docstring."""
        lines = (self.handler.__doc__ or "").strip().splitlines()[1:]
        return "\n".join(line.strip() for line in lines).strip()

    @property
    def name(self) -> str:
        """The operation's id: what its handler is called."""
        return self.handler.__name__


class Registry:
    """The routes of one service."""

    def __init__(self, tag: str, about: str) -> None:
        self.tag = tag
        self.about = about
        self._endpoints: list[Endpoint] = []

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._endpoints)

    def route(
        self, method: str, path: str, *needs: Needs, **declared: Any
    ) -> Callable[[Handler], Handler]:
        """Register a handler; `declared` are the fields of `Endpoint`."""

        def register(handler: Handler) -> Handler:
            self._endpoints.append(Endpoint(method, path, handler, needs, tag=self.tag, **declared))
            return handler

        return register
