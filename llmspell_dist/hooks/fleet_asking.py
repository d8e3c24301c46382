"""Asks other processes to run a hook, and puts together what they answer."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from llmspell_dist.errors import SpellError
from llmspell_dist.hooks.effects import allowed_at
from llmspell_dist.hooks.emitting import by_the_fleet
from llmspell_dist.hooks.errors import FleetHookError
from llmspell_dist.hooks.fleet_calls import NOT_HERE, Answer, Request, Travel, combined, going_on
from llmspell_dist.hooks.fleet_inbox import FleetStats, Inbox, inbox_type
from llmspell_dist.hooks.fleet_model import FleetHook, FleetRun
from llmspell_dist.hooks.recording import keep_context
from llmspell_dist.hooks.results import Cancel, Fork
from llmspell_dist.ids import new_id

if TYPE_CHECKING:
    from llmspell_dist.events.manager import Events
    from llmspell_dist.hooks.context import HookContext
    from llmspell_dist.hooks.fleet_members import Members
    from llmspell_dist.hooks.results import HookResult
    from llmspell_dist.hooks.sealing import Sealer

__all__ = ["Asking", "queue_of"]

logger = logging.getLogger("llmspell_dist.hooks")

MAX_SENDING: Final = 1000
SEND_WITHIN_S: Final = 5.0
MAX_MESSAGE: Final = 200
LEFT_OUT_BYTES: Final = 2
"""So long is what is sealed if there is nothing in it."""


class Asking:
    """What this process asks of others."""

    def __init__(
        self,
        members: Members,
        inbox: Inbox,
        events: Events,
        sealer: Sealer,
        stats: FleetStats,
    ) -> None:
        self._members = members
        self._process = members.process
        self._inbox = inbox
        self._events = events
        self._sealer = sealer
        self._stats = stats
        self._sending: set[asyncio.Task[bool]] = set()

    async def ask(self, hook: FleetHook, ctx: HookContext) -> HookResult | None:
        """Have other processes run a hook; what they answer, if they are waited for."""
        targets = self._members.map.targets(self._process, hook.name, hook.point)
        if not targets:
            return None
        travel = going_on(hook, self._process, self._members.now_ms())
        if not isinstance(travel, Travel):
            self._stopped(hook, travel)
            return None
        request_id = new_id()
        reply_to = self._process if hook.await_remote else None
        secret = self._inbox.recorder is None or self._inbox.recorder.is_secret(ctx)
        sealed = self._sealer.seal(keep_context(ctx), request_id, secret=secret)
        if len(sealed) <= LEFT_OUT_BYTES and not (secret and not self._sealer.encrypts):
            self._stats.unsent += len(targets)
            return self._too_large(hook)
        request = Request(request_id, hook.name, hook.point, travel, reply_to, sealed)
        self._stats.asked += 1 if hook.run is FleetRun.ONE else len(targets)
        if hook.await_remote:
            answers = await self._answers(hook, request, targets, secret=secret)
            for answer in answers:
                if isinstance(answer.result, Fork):
                    ctx.fork(hook.name, answer.result)
            return combined(answers)
        types = _types(hook, targets)
        if len(self._sending) >= MAX_SENDING:
            self._stats.unsent += len(types)
            logger.warning("hook %s is not run elsewhere: too much is under way", hook.name)
            return None
        task = asyncio.create_task(self._send(hook, request, types))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        return None

    def _stopped(self, hook: FleetHook, limit: str) -> None:
        """Count what travels no further; one that must be asked cancels then, as a silent one."""
        if limit == "hops":
            self._stats.stopped_by_hops += 1
            problem = f"it may be asked {hook.max_hops} processes far, and this is further"
        else:
            self._stats.stopped_by_time += 1
            problem = "the time in which it may be asked is over"
        if hook.await_remote and not hook.continue_on_failure and hook.max_hops > 0:
            raise FleetHookError(hook.name, hook.point, problem)

    async def _send(self, hook: FleetHook, request: Request, types: list[str]) -> bool:
        data, left_s = request.as_data(), hook.timeout
        try:
            for one in types:
                with by_the_fleet():
                    await self._events.publish(one, data, ttl=left_s)
        except SpellError as error:
            self._stats.unsent += len(types)
            logger.warning("hook %s is not run elsewhere: %s", hook.name, error)
            return False
        return True

    def _too_large(self, hook: FleetHook) -> HookResult | None:
        """Say what becomes of an operation about which nobody can be asked: never a veto lost."""
        problem = "what it is told is too large to travel"
        if hook.await_remote and Cancel in allowed_at(hook.point):
            return Cancel(problem)
        logger.warning("hook %s at %s is not run elsewhere: %s", hook.name, hook.point, problem)
        return None

    async def _answers(
        self, hook: FleetHook, request: Request, targets: list[str], *, secret: bool
    ) -> list[Answer]:
        """Return what the others answer, one answer of each."""
        queue = self._inbox.expect(request.id)
        answers: dict[str, Answer] = {}
        most = 1 if hook.run is FleetRun.ONE else len(targets)
        left_s = (request.travel.deadline_ms - self._members.now_ms()) / 1000
        problem, message = None, ""
        try:
            async with asyncio.timeout(left_s):
                if not await self._send(hook, request, _types(hook, targets)):
                    problem = "it could not be sent"
                while problem is None and len(answers) < most:
                    answer = await queue.get()
                    if answer.process in targets:  # at the latest when it answered it was one
                        answers.setdefault(answer.process, answer)
        except TimeoutError:
            missing = most - len(answers)
            self._stats.unanswered += missing
            silent = ", ".join(map(self._name_of, (one for one in targets if one not in answers)))
            problem = (
                f"{missing} of {most} processes had not answered after {left_s:.2g} s ({silent})"
            )
        finally:
            self._inbox.forget(request.id)
        await self._leave_out_removed(hook, answers)
        self._stats.answered += len(answers)
        for process, answer in sorted(answers.items()):
            if answer.error is not None:
                self._stats.failed += 1
                if problem is None:
                    problem = f"in process {self._name_of(process)}: {answer.error.type}"
                    # A message may hold the data: it is for the caller, who has them, not the log.
                    message = "" if secret else shorten_text(answer.error.message)
        if problem is None:
            return list(answers.values())
        logger.warning("hook %s at %s: %s", hook.name, hook.point, problem)
        # A veto that came in all the same says more than that somebody else failed.
        vetoed = any(isinstance(one.result, Cancel) for one in answers.values())
        if not hook.continue_on_failure and not vetoed:
            reason = f"{problem}: {message}" if message else problem
            raise FleetHookError(hook.name, hook.point, reason)
        return list(answers.values())

    async def _leave_out_removed(self, hook: FleetHook, answers: dict[str, Answer]) -> None:
        """Leave out who took the hook away just now: that is no failure of it."""
        gone = [one for one in answers.values() if one.error is not None and one.error == NOT_HERE]
        if not gone:
            return
        with suppress(SpellError):
            await self._members.say()  # what it said of itself is known then
            known = self._members.map.processes
            for one in gone:
                process = known.get(one.process)
                if process is None or process.hook(hook.name, hook.point) is None:
                    del answers[one.process]

    def _name_of(self, process: str) -> str:
        return self._members.map.name_of(process)

    async def settle(self) -> None:
        """Wait for what is being sent, at most five seconds."""
        sending = tuple(self._sending)
        if sending:
            await asyncio.wait(sending, timeout=SEND_WITHIN_S)


def _types(hook: FleetHook, targets: list[str]) -> list[str]:
    """Return the types of the events by which processes are asked."""
    if hook.run is FleetRun.ONE:
        return [queue_of(hook)]
    return [inbox_type(process) for process in targets]


def shorten_text(text: str) -> str:
    """Return the beginning of a message, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_MESSAGE else line[: MAX_MESSAGE - 1] + "…"


def queue_of(hook: FleetHook) -> str:
    """Return the type and the name of the queue from which one process takes requests."""
    both = f"{hook.point}\0{hook.name}".encode()
    return f"hook.one.{hashlib.sha256(both).hexdigest()[:32]}"
