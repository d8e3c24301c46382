"""The shared state through a sidecar: the library's own state manager, over other parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from llmspell_dist.ack import Ack
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.remote.driver import Ask, RemoteDriver
from llmspell_dist.remote.reads import RemoteHistory, RemoteReads
from llmspell_dist.remote.scopes import RemoteScopes
from llmspell_dist.remote.transactions import RemoteTransactionSteps
from llmspell_dist.remote.transport import RemoteOperation
from llmspell_dist.remote.writes import RemotePartial, RemoteWrites
from llmspell_dist.state.manager import StateManager, Transaction

if TYPE_CHECKING:
    from llmspell_dist.redis.ring import Operation
    from llmspell_dist.remote.transport import Answer
    from llmspell_dist.revision import Revision
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.model import Record
    from llmspell_dist.watch.service import Watches

__all__ = ["RemoteState"]


class RemoteState(StateManager):
    """Shared state that no two workers overwrite by accident, through a sidecar.

    Every method of `StateManager`, with its promises. An unknown outcome is settled by `retry`
    here too, as long as the sidecar remembers the request: a day.
    """

    def __init__(self, driver: RemoteDriver, watches: Any = None) -> None:
        super().__init__(cast("Any", driver), watches=cast("Watches | None", watches))
        self._remote = driver
        core, reads = driver.core, RemoteReads(driver.core)
        parts: Any = (
            reads,
            RemoteWrites(core, reads),
            RemotePartial(core, reads),
            RemoteScopes(core, reads),
            RemoteHistory(core, reads),
        )
        self._reads, self._writes, self._partial, self._scopes, self._history = parts
        self._submit = cast("Any", self._asked)

    async def _asked(self, ask: Ask) -> Answer | None:
        answer = await self._remote.submit(ask)
        return None if answer.status == 404 else answer

    async def get_record(
        self, scope: str | Scope, key: str, *, as_type: type | None = None
    ) -> Record | None:
        """Return the value of a key with revision, times, class and schema version, or None."""
        return await self._run(self._reads.get_record(scope, key, as_type))

    def transaction(self, *, ack: Ack | None = None) -> Transaction:
        """Begin a transaction: ``async with state.transaction() as tx``."""
        if ack is not None and not isinstance(ack, Ack):
            raise InvalidArgumentError("ack", ack, "must be an Ack")
        steps = RemoteTransactionSteps(self._remote.core, self._reads, self._writes, self._partial)
        steps.ack = ack
        return Transaction(cast("Any", self._remote), steps)

    async def retry(self, operation: Operation | RemoteOperation) -> Revision | None:
        """Settle an unknown outcome: carry the operation out now, unless it was before.

        Returns None where the sidecar's answer names no revision, as that of an increment.
        """
        return await self._remote.settle(operation)
