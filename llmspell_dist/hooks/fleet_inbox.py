"""Runs hooks of this process for others that ask for it, and says what came of it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.context import CommitContext, entered
from llmspell_dist.errors import SpellError
from llmspell_dist.hooks.emitting import by_the_fleet
from llmspell_dist.hooks.fleet_calls import (
    NOT_HERE,
    Answer,
    Request,
    answer_of,
    request_of,
    under_way,
)
from llmspell_dist.hooks.fleet_running import run_for_another
from llmspell_dist.hooks.kept import RecordedFailure, keep_error
from llmspell_dist.hooks.recording import rebuild_context
from llmspell_dist.hooks.results import Cancel, Fork

if TYPE_CHECKING:
    from llmspell_dist.events.manager import Events
    from llmspell_dist.events.model import Event
    from llmspell_dist.hooks.hook import RegisteredHook
    from llmspell_dist.hooks.recorder import Recorder
    from llmspell_dist.hooks.running import AsyncRunner
    from llmspell_dist.hooks.sealing import Sealer

__all__ = ["FleetStats", "Inbox", "inbox_type"]

logger = logging.getLogger("llmspell_dist.hooks")

AT_ONCE: Final = 100
"""So many hooks run for others at a time; what comes beyond waits."""
MAX_WAITING: Final = 1000
"""So many requests wait; what comes beyond is dropped, as if it had not arrived."""


@dataclass(slots=True)
class FleetStats:
    """What this process asked of others and did for them."""

    asked: int = 0
    """Requests sent, one for each process."""
    answered: int = 0
    """Answers that came in time."""
    unanswered: int = 0
    """Processes that were waited for in vain."""
    failed: int = 0
    """Answers that said the hook failed."""
    ran: int = 0
    """Hooks run for others."""
    late: int = 0
    """Requests that came after their time, and were not carried out."""
    dropped: int = 0
    """Requests that found too many waiting already, and were not carried out."""
    stopped_by_hops: int = 0
    stopped_by_time: int = 0
    unsent: int = 0
    """Requests that could not be sent."""
    malformed: int = 0
    """Events that came and were no request and no answer."""


def inbox_type(process: str) -> str:
    """Return the type of the events for one process."""
    return f"hook.fleet.{process}"


class Inbox:
    """Takes requests and answers that come for this process."""

    def __init__(
        self,
        process: str,
        events: Events,
        sealer: Sealer,
        *,
        runner: AsyncRunner,
        find: Callable[[str, str], RegisteredHook | None],
        switched_on: Callable[[RegisteredHook], bool],
        now_ms: Callable[[], float],
        stats: FleetStats,
    ) -> None:
        self._process = process
        self._events = events
        self._sealer = sealer
        self._runner = runner
        self._find = find
        self._switched_on = switched_on
        self._now_ms = now_ms
        self.stats = stats
        self.recorder: Recorder | None = None
        self._waiting: dict[str, asyncio.Queue[Answer]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._backlog: deque[Event] = deque()
        self._heard: asyncio.Task[None] | None = None

    # --- answers

    def expect(self, request_id: str) -> asyncio.Queue[Answer]:
        """Return where the answers to a request will be."""
        queue = self._waiting[request_id] = asyncio.Queue()
        return queue

    def forget(self, request_id: str) -> None:
        """Let answers to a request be dropped from now on."""
        self._waiting.pop(request_id, None)

    # --- hearing

    async def open(self) -> None:
        """Hear from now on."""
        subscription = self._events.subscribe(inbox_type(self._process))
        await subscription.__aenter__()
        self._heard = asyncio.create_task(self._hear(subscription), name="llmspell-hook-inbox")

    async def _hear(self, subscription: Any) -> None:
        try:
            async for event in subscription:
                # Whatever comes may have been published by anybody: it must not end this.
                try:
                    self._take(event)
                except Exception as error:  # noqa: BLE001 - as said
                    self._cannot_read(error)
        finally:
            await subscription.__aexit__(None, None, None)

    def _take(self, event: Event) -> None:
        """Take what came, and wait for nothing: hooks may wait for the answer behind it."""
        if type(event.data) is dict and event.data.get("what") == "ran":
            self._answered(event.data)
        elif len(self._running) < AT_ONCE:
            self._start(event)
        elif len(self._backlog) < MAX_WAITING:
            self._backlog.append(event)
        else:
            self.stats.dropped += 1
            if self.stats.dropped == 1:
                said = "hooks are not run for other processes: %d run, and %d requests wait"
                logger.warning(said, AT_ONCE, MAX_WAITING)

    def _start(self, event: Event) -> None:
        task = asyncio.create_task(self._handle_live(event))
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _cannot_read(self, error: Exception) -> None:
        self.stats.malformed += 1
        logger.warning("an event for hooks of the fleet cannot be read: %s", error)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if self._backlog:
            self._start(self._backlog.popleft())
        if not task.cancelled() and task.exception() is not None:
            logger.warning("a hook was not run for another process: %s", task.exception())

    async def _handle_live(self, event: Event) -> None:
        await self.handle(event)

    def _answered(self, data: dict[str, Any]) -> None:
        answer = answer_of(data, self._sealer.open)
        waiting = self._waiting.get(answer.id)
        if waiting is not None:  # else it is too late, or came twice
            waiting.put_nowait(answer)

    async def handle(self, event: Event) -> None:
        """Run the hook that an event asks for, and answer if somebody waits."""
        try:
            request = request_of(event.data)
        except SpellError as error:
            self._cannot_read(error)
            return
        left_s = (request.travel.deadline_ms - self._now_ms()) / 1000
        if left_s <= 0:
            self.stats.late += 1
            return
        try:
            answer = await self._run(request, left_s)
        except Exception as error:
            logger.exception("hook %s was not run for another process", request.hook)
            answer = Answer(request.id, self._process, error=keep_error(error))
        if request.reply_to is None:
            self._note_unheard(request, answer)
            return
        sealed = self._sealer.seal(answer.parts(), request.id, secret=self._sealer.encrypts)
        with by_the_fleet():
            await self._events.publish(inbox_type(request.reply_to), answer.as_data(sealed))

    def _note_unheard(self, request: Request, answer: Answer) -> None:
        """Say in the log what nobody waits for, if it is more than that all is well."""
        said_of = (request.hook, request.travel.origin)
        if answer.error is not None:
            logger.warning("hook %s, run for process %s, failed: %s", *said_of, answer.error.type)
        elif isinstance(answer.result, Cancel | Fork):
            logger.warning(
                "hook %s, run for process %s, answered %s, which has no effect: it was registered "
                "without await_remote",
                *(*said_of, type(answer.result).__name__),
            )

    async def _run(self, request: Request, left_s: float) -> Answer:
        hook = self._find(request.hook, request.point)
        if hook is None:
            return Answer(request.id, self._process, error=NOT_HERE)
        try:
            told = self._sealer.open(request.context, request.id)
            ctx = None if told is None else rebuild_context(told)
        except (SpellError, KeyError, TypeError, ValueError, AttributeError) as error:
            return Answer(request.id, self._process, error=keep_error(error))
        if told is None or ctx is None:
            left_out = RecordedFailure(
                "ReplayError", "what the hook is told was left out or is encrypted"
            )
            return Answer(request.id, self._process, error=left_out)
        ctx.metadata["fleet.hops"] = str(request.travel.hops)
        ctx.metadata["fleet.origin"] = request.travel.origin
        limit_s = left_s if hook.timeout is None else min(left_s, hook.timeout)
        with (
            under_way(request.travel),
            entered(CommitContext(correlation_id=told["correlation_id"], causation_id=request.id)),
        ):
            came = await run_for_another(
                *(self._runner, hook, ctx, limit_s),
                switched_on=self._switched_on,
                recorder=self.recorder,
            )
        self.stats.ran += came.ran
        return Answer(request.id, self._process, came.result, came.error)

    async def close(self) -> None:
        """Hear no more; hooks that run for others are ended."""
        self._backlog.clear()
        heard, self._heard = self._heard, None
        tasks = [*self._running, *([] if heard is None else [heard])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
