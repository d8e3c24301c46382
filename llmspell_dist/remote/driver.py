"""Carries steps out over a transport: the library's own operations, with requests to a sidecar."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from llmspell_dist.errors import AnswerLostError, InvalidArgumentError, SpellError
from llmspell_dist.remote.transport import NOTHING, Answer, RemoteOperation, Transport
from llmspell_dist.revision import Revision
from llmspell_dist.state.steps import Call, Pause

if TYPE_CHECKING:
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Steps

__all__ = ["Ask", "RemoteDriver", "asked"]

T = TypeVar("T")
_NONE: Final[frozenset[str]] = frozenset()


@dataclass(slots=True)
class Ask:
    """A request that steps wait for."""

    method: str
    path: tuple[str, ...]
    query: Mapping[str, Any] | None = None
    document: Any = NOTHING
    packed: bytes | None = None
    headers: Mapping[str, str] | None = None
    idempotent: bool = False
    accept: frozenset[str] = _NONE


def asked(ask: Ask) -> Steps[Answer]:
    """Send a request within steps; its answer."""
    answer: Answer = yield cast("Any", ask)
    return answer


class RemoteDriver:
    """Carries steps out over a transport; what it sends carries these leases, if any."""

    commit: Any = None
    """There are no commits here: the sidecar makes them."""

    def __init__(self, core: Core, transport: Transport, leases: str | None = None) -> None:
        self.core = core
        self.transport = transport
        self._fence = {} if leases is None else {"llmspell-lease": leases}

    async def submit(self, ask: Ask) -> Answer:
        """Send one request."""
        headers = self._fence | dict(ask.headers) if ask.headers else self._fence
        return await self.transport.request(
            ask.method,
            ask.path,
            query=ask.query,
            document=ask.document,
            packed=ask.packed,
            headers=headers,
            idempotent=ask.idempotent,
            accept=ask.accept,
        )

    async def run(self, steps: Steps[T]) -> T:
        """Carry an operation out and return its result."""
        go_on, given = steps.send, cast("Any", None)
        try:
            while True:
                request = go_on(given)
                try:
                    given = await self._one(request)
                    go_on = steps.send
                except SpellError as error:  # the steps may know what to do
                    go_on, given = steps.throw, error
        except StopIteration as done:
            result: T = done.value
            return result

    async def _one(self, request: Any) -> Any:
        if isinstance(request, Ask):
            return await self.submit(request)
        if isinstance(request, Pause):
            return await self.pause(request.seconds)
        assert isinstance(request, Call)  # noqa: S101 - remote parts ask for nothing else
        result = request.function(*request.arguments)
        return await result if isawaitable(result) else result

    async def pause(self, seconds: float) -> None:
        """Wait between two attempts."""
        await asyncio.sleep(seconds)

    async def settle(self, operation: object) -> Revision | None:
        """Carry a write with an unknown outcome out, unless it was.

        Returns None if it changed nothing, or if its answer does not name the revision.
        """
        if not isinstance(operation, RemoteOperation):
            rule = "must be the operation of an OutcomeUnknownError of a remote client"
            raise InvalidArgumentError("operation", operation, rule)
        try:
            answer = await self.transport.settle(operation)
        except AnswerLostError as settled:
            found: Revision | None = settled.revision
            return found
        document = answer.document
        said = document.get("revision") if isinstance(document, dict) else None
        return Revision.parse(said) if isinstance(said, str) else None

    def over(self, core: Core, leases: str | None = None) -> RemoteDriver:
        """Return a driver of another core, and other leases, over the same transport."""
        return RemoteDriver(core, self.transport, leases)
