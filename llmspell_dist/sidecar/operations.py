"""Work that takes longer than a request: begun, looked at, followed, cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from msgspec import Struct

from llmspell_dist.backup.progress import Progress
from llmspell_dist.sidecar.errors import DrainingError, NotFoundError, TooManyRequestsError
from llmspell_dist.sidecar.problems import problem_of

if TYPE_CHECKING:
    from llmspell_dist.sidecar.services import Services

__all__ = ["Operation", "OperationDocument", "Operations", "Work"]

logger = logging.getLogger("llmspell_dist.sidecar")

Work = Callable[[Callable[[Progress], None]], Awaitable[Any]]
"""Is given what to tell its progress, and returns the document of its result."""
_MOST: Final = 64
_MOST_RUNNING: Final = 8
_KEPT_S: Final = 3600.0


class ProgressDocument(Struct, frozen=True):
    """How far it is."""

    phase: str
    bytes: int
    total_bytes: int | None
    records: int
    scopes: int
    seconds: float


class OperationDocument(Struct, frozen=True):
    """Something that takes longer than a request."""

    id: str
    kind: str
    status: str
    """``running``, ``succeeded``, ``failed`` or ``cancelled``."""
    started: datetime
    ended: datetime | None
    progress: ProgressDocument | None
    result: Any
    error: Any
    """The problem document of what it failed with."""


class Operation:
    """One of them."""

    def __init__(self, kind: str) -> None:
        self.id = uuid4().hex
        self.kind = kind
        self.status = "running"
        self.started = datetime.now(UTC)
        self.ended: datetime | None = None
        self.forgotten_at = float("inf")
        self.progress: Progress | None = None
        self.result: Any = None
        self.error: Any = None
        self.task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.status == "running"

    def tell(self, progress: Progress) -> None:
        """Take note of how far it is."""
        self.progress = progress
        self._wake()

    def end(self, status: str, *, result: Any = None, error: Any = None) -> None:
        """Take note of how it ended."""
        self.status, self.result, self.error = status, result, error
        self.ended = datetime.now(UTC)
        self.forgotten_at = monotonic() + _KEPT_S
        self._wake()

    def _wake(self) -> None:
        # Whoever waits holds the old one: nobody can miss a change.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def changes(self) -> AsyncIterator[OperationDocument]:
        """Yield how it stands, now and at each change, until it has ended."""
        while True:
            changed = self._changed
            yield self.document
            if not self.running:
                return
            await changed.wait()

    @property
    def document(self) -> OperationDocument:
        """What is told of it."""
        done = self.progress
        progress = None
        if done is not None:
            progress = ProgressDocument(
                done.phase.value,
                done.bytes,
                done.total_bytes,
                done.records,
                done.scopes,
                round(done.seconds, 3),
            )
        return OperationDocument(
            self.id,
            self.kind,
            self.status,
            self.started,
            self.ended,
            progress,
            self.result,
            self.error,
        )


class Operations:
    """Those of one sidecar: in memory, few at once, forgotten an hour after they ended."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._known: dict[str, Operation] = {}
        services.ending.append(self.close)

    def begin(self, kind: str, work: Work) -> Operation:
        """Begin one; `TooManyRequestsError` if too many are under way."""
        if self._services.draining:
            raise DrainingError
        self._tidy()
        if sum(one.running for one in self._known.values()) >= _MOST_RUNNING:
            raise TooManyRequestsError(_MOST_RUNNING, "operations are under way already")
        operation = Operation(kind)
        self._known[operation.id] = operation
        operation.task = asyncio.get_running_loop().create_task(_carry_out(operation, work))
        return operation

    def _tidy(self) -> None:
        now = monotonic()
        ended = [one for one in self._known.values() if not one.running]
        surplus = len(self._known) + 1 - _MOST
        for number, one in enumerate(ended):  # the oldest stand first
            if one.forgotten_at <= now or number < surplus:
                del self._known[one.id]

    def all(self) -> list[Operation]:
        """Return those that are known, the newest first."""
        self._tidy()
        return list(reversed(self._known.values()))

    def get(self, operation_id: str) -> Operation:
        """Return one; `NotFoundError` if there is none, or it ended long ago."""
        self._tidy()
        found = self._known.get(operation_id)
        if found is None:
            raise NotFoundError(f"operation {operation_id!r}")
        return found

    async def cancel(self, operation: Operation) -> None:
        """End one, and wait until it has ended."""
        if operation.task is not None and operation.running:
            operation.task.cancel()
            await asyncio.wait((operation.task,))
            if operation.running:  # it had not even begun
                operation.end("cancelled")

    async def close(self) -> None:
        """End all of them."""
        for operation in tuple(self._known.values()):
            await self.cancel(operation)


async def _carry_out(operation: Operation, work: Work) -> None:
    try:
        operation.end("succeeded", result=await work(operation.tell))
    except asyncio.CancelledError:
        operation.end("cancelled")
        raise
    except Exception as error:
        problem = problem_of(error)
        if problem.status == 500:
            logger.warning("operation %s (%s) failed", operation.id, operation.kind, exc_info=error)
        operation.end("failed", error=problem.document)
