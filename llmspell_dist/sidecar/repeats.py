"""Requests that come a second time because a connection was lost: carried out once.

A client that numbers its writes (``LLMSpell-Request: <client>:<number>:<settled>``) may send one
again when it lost the answer, and says so (``LLMSpell-Repeat``, with the ``LLMSpell-Instance`` that
it was told last before it sent the write for the first time). What was under way goes on without
its client, and the repetition gets its answer. That costs no write to Redis: it is kept here, until
the client says that everything below `settled` has been answered. So only this sidecar knows: a
repetition that another one gets, or this one after a restart, or after it had to forget, is told
that nobody can say (`RepeatUnknownError`), and is not carried out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from hashlib import blake2s
from typing import TYPE_CHECKING, Final

from llmspell_dist.errors import (
    AckNotReachedError,
    AnswerLostError,
    InvalidArgumentError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from llmspell_dist.ids import new_id
from llmspell_dist.sidecar.errors import RepeatUnknownError
from llmspell_dist.sidecar.receiving import ClientGoneError
from llmspell_dist.sidecar.remembering import Memory, RememberedClient
from llmspell_dist.sidecar.reply import Reply, etag

if TYPE_CHECKING:
    from llmspell_dist.sidecar.call import Call
    from llmspell_dist.sidecar.services import Services

__all__ = ["Repeats"]

REQUEST: Final = b"llmspell-request"
REPEAT: Final = b"llmspell-repeat"
INSTANCE: Final = b"llmspell-instance"
_KEY: Final = b"idempotency-key"

CarryOut = Callable[[], Awaitable["Reply | None"]]


class Repeats:
    """Knows which writes of which client were carried out, as long as that can matter."""

    def __init__(self, _: Services | None = None) -> None:
        self._start = new_id()
        self._memory = Memory()

    def instance(self, label: str) -> str:
        """Return what a principal is told now: this start of this sidecar, and what it knows."""
        return f"{self._of(label)}.{self._memory.moment}"

    def _of(self, label: str) -> str:
        # Told to another principal, it says nothing about the writes of this one.
        return f"{self._start}.{blake2s(label.encode(), digest_size=8).hexdigest()}"

    async def run(self, call: Call, carry_out: CarryOut) -> Reply | None:
        """Carry a request out, or answer as the first sending is answered."""
        said = call.headers.get(REQUEST)
        if said is None:
            return await carry_out()
        name, number, settled = _parsed(said)
        label, memory = call.principal.label, self._memory
        known = memory.find(label, name)
        if known is not None:
            memory.settle(known, settled)
        again = call.headers.get(REPEAT)
        if again is not None and (known is None or number not in known.entries):
            since = self._moment(again, label)
            if since is None or not memory.never_made(label, name, number, since):
                raise RepeatUnknownError
        client = memory.client(label, name)
        task = client.entries.get(number)
        if task is None:
            task = self._begun(client, number, carry_out)
        elif task.done() and not task.cancelled() and task.exception() is not None:
            task = self._settled(client, number, task, call)
        # Whoever asked may be gone; what was begun ends all the same.
        reply = await asyncio.shield(task)
        if reply is None:
            return None
        told = (INSTANCE, self.instance(label).encode())
        return Reply(
            reply.document, reply.status, [*reply.headers, told], reply.media, reply.problem
        )

    def _moment(self, again: bytes, label: str) -> int | None:
        """Return when a principal was told that; None if it was another one, or another start."""
        start, _, moment = again.decode("latin-1").rpartition(".")
        if start != self._of(label) or not (moment.isascii() and moment.isdigit()):
            return None
        since = int(moment) if len(moment) < 20 else self._memory.moment + 1
        return since if since <= self._memory.moment else None

    def _begun(
        self, client: RememberedClient, number: int, carry_out: CarryOut
    ) -> asyncio.Task[Reply | None]:
        task = asyncio.ensure_future(carry_out())
        self._memory.keep(client, number, task)

        def ended(done: asyncio.Task[Reply | None]) -> None:
            error = None if done.cancelled() else done.exception()
            nothing = isinstance(error, ClientGoneError) or (
                isinstance(error, StoreUnavailableError) and not error.may_have_happened
            )
            if nothing:
                self._memory.drop(client, number, done)

        task.add_done_callback(ended)
        return task

    def _settled(
        self,
        client: RememberedClient,
        number: int,
        task: asyncio.Task[Reply | None],
        call: Call,
    ) -> asyncio.Task[Reply | None]:
        """Find out what became of a write of unknown outcome; other errors stay what they were."""
        error = task.exception()
        operation = getattr(error, "operation", None)
        # With a key the unknown commit may be the one that claims it, before the write itself.
        if operation is None or _KEY in call.headers:
            return task

        async def settle() -> Reply:
            # Imported here: its package names this module.
            from llmspell_dist.sidecar.routes.shapes import Revised  # noqa: PLC0415

            try:
                revision = await call.state.retry(operation)
            except AckNotReachedError:
                raise
            except StoreUnavailableError as still:
                raise OutcomeUnknownError(still.server, still.said, True, operation) from None
            if revision is None or call.endpoint.returns is not Revised:
                raise AnswerLostError(getattr(error, "server", ""), revision)
            return Reply(Revised(str(revision)), headers=[etag(revision)])

        return self._begun(client, number, settle)


def _parsed(said: bytes) -> tuple[str, int, int]:
    try:
        name, number, settled = said.decode("ascii").split(":")
        if 0 < len(name) <= 64 and number.isdigit() and settled.isdigit() and len(said) <= 128:
            return name, int(number), int(settled)
    except ValueError:
        pass
    rule = "must be <client>:<number>:<number below which all are settled>"
    raise InvalidArgumentError("llmspell-request", said.decode("latin-1"), rule)
