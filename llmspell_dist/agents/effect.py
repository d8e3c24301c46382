"""One effect that runs once: claim, act, say how it ended; asynchronous."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from threading import Lock
from types import TracebackType
from typing import Any, Self

from llmspell_dist.agents.calling import LimitOverError, call_async
from llmspell_dist.agents.effect_steps import EffectSteps
from llmspell_dist.agents.effects import EffectRecord, EffectStatus
from llmspell_dist.agents.errors import (
    EffectInProgressError,
    EffectTakenOverError,
    EffectUnknownError,
)
from llmspell_dist.errors import (
    CodecError,
    InvalidArgumentError,
    LimitError,
    SpellError,
    mask_secrets,
)
from llmspell_dist.state.driver import AsyncDriver
from llmspell_dist.state.interception import Instead
from llmspell_dist.state.points import NO_POINTS, Points

__all__ = ["Effect"]

Limit = float | timedelta
_POINTS = ("BeforeToolExecution", "AfterToolExecution", "ToolError")


class Effect:
    """An effect that runs once: a mail, a payment, a call that must not repeat.

    As ``await effect.run(send, mail)``, or as a context manager: ``async with effect:``, then,
    unless `done`, act and say `commit` or `fail`; what was said is stored at the end of the block.
    A block that ends without a word, or by an exception that is not one of `failed_on`, leaves the
    outcome unknown.

    On the way in: what happened already is `done`, with its `result`. `EffectInProgressError`:
    somebody is at it, within the limit. `EffectUnknownError`: nobody knows whether it happened;
    find out, then `resolve` or `retry`. `EffectFailedError`: it failed.

    An object is for one at a time: who enters while its block or its `run` has not ended gets
    `EffectInProgressError`, whichever task or thread it is.
    """

    def __init__(
        self,
        driver: AsyncDriver,
        steps: EffectSteps,
        key: str,
        *,
        by: str,
        limit_ms: int,
        keep: Limit | None,
        failed_on: type[BaseException] | tuple[type[BaseException], ...],
        retry_failed: bool,
        points: Points = NO_POINTS,
    ) -> None:
        self._driver = driver
        self._steps = steps
        self._by = by
        self._limit_ms = limit_ms
        self._keep = keep
        self._failed_on = failed_on
        self._retry_failed = retry_failed
        self._points = points
        self._entered = Lock()
        self._claim: EffectRecord | None = None
        self._retried: EffectRecord | None = None
        """The claim that `retry` made, until it is used."""
        self._said: tuple[EffectStatus, Any, str | None] | None = None
        self._result: Any = None
        self.key = key
        """Which effect of the agent it is."""
        self.done = False
        """Whether it has happened."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.key!r} of {self._steps.agent_id!r}>"

    @property
    def result(self) -> Any:
        """The result, once it is `done`."""
        if not self.done:
            rule = "has no result yet: it has one once its block has ended, or `run` has returned"
            raise InvalidArgumentError("effect", self.key, rule)
        return self._result

    async def run(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Any:
        """Carry the effect out by calling a function, or return the result that it had before.

        A coroutine function is cancelled at the limit; the outcome then is unknown. A plain one
        runs in a thread with the context variables of the caller. It cannot be cancelled: at the
        limit the outcome is unknown, it goes on, and what it returns later is dropped.
        """
        if not callable(function):
            raise InvalidArgumentError("function", function, "must be callable")
        if not self._points.wants(*_POINTS):
            return await self._carried_out(function, arguments, named)
        data: dict[str, Any] = {"tool": self.key, "arguments": arguments, "named": named}
        data, instead = await self._at(_POINTS[0], data, refusable=True, replaceable=True)
        if instead is not None:
            return instead.value
        try:
            result = await self._carried_out(function, data["arguments"], data["named"])
        except Exception as error:
            await self._at(_POINTS[2], data, error=error)
            raise
        data, _ = await self._at(_POINTS[1], {**data, "result": result})
        return data["result"]

    async def _at(
        self,
        point: str,
        data: dict[str, Any],
        *,
        error: BaseException | None = None,
        refusable: bool = False,
        replaceable: bool = False,
    ) -> tuple[dict[str, Any], Instead | None]:
        """Let the hooks of a point run; what they cancel is not claimed."""
        steps = self._points.at(
            *(point, ("tool", self.key), {**data, "agent_id": self._steps.agent_id}),
            error=error,
            refusable=refusable,
            replaceable=replaceable,
        )
        return await self._driver.run(steps)

    async def _carried_out(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], named: Mapping[str, Any]
    ) -> Any:
        try:
            async with self:
                result = self._result
                if not self.done:
                    result = await call_async(self._limit_ms, function, arguments, named)
                    self.commit(result)
        except LimitOverError as over:
            seen = await self._driver.run(self._steps.look(self.key))
            record = seen.record
            if record is not None and record.status is EffectStatus.COMMITTED:
                raise seen.error(EffectTakenOverError) from None  # somebody resolved it meanwhile
            raise seen.error(EffectUnknownError, str(over)) from None
        return result

    def commit(self, result: Any = None) -> None:
        """Say that it happened; stored at the end of the block."""
        self._say(EffectStatus.COMMITTED, result, None)

    def fail(self, reason: str | BaseException) -> None:
        """Say that it certainly did not happen; stored at the end of the block."""
        text = _text_of(reason) if isinstance(reason, BaseException) else reason
        if type(text) is not str:
            raise InvalidArgumentError("reason", reason, "must be a str or an exception")
        self._say(EffectStatus.FAILED, None, text)

    def _say(self, status: EffectStatus, result: Any, reason: str | None) -> None:
        if self._claim is None:
            raise InvalidArgumentError(
                "effect", self.key, "must be claimed: say it inside its block"
            )
        self._said = status, result, reason

    async def __aenter__(self) -> Self:
        if not self._entered.acquire(blocking=False):
            raise self._busy()
        try:
            await self._enter()
        except BaseException:
            self._entered.release()
            raise
        return self

    async def _enter(self) -> None:
        steps, record = self._steps, None
        retried, self._retried = self._retried, None  # good for one block
        if retried is not None:
            record = await self._driver.run(steps.renew(retried, self._by, self._limit_ms))
        if record is None:
            record = await self._driver.run(
                steps.claim(self.key, self._by, self._limit_ms, self._retry_failed)
            )
        if record.status is EffectStatus.COMMITTED:
            self.done, self._result = True, record.result
        else:
            # Done before, perhaps, and forgotten since (`keep`).
            self._claim, self.done, self._result = record, False, None

    def _busy(self) -> EffectInProgressError:
        claim = self._claim
        return EffectInProgressError(
            self._steps.agent_id,
            self.key,
            status=EffectStatus.CLAIMED,
            claimed_by=self._by,
            token=self._steps.token,
            since=None if claim is None else claim.claimed_at,
            deadline=None if claim is None else claim.deadline,
            reason="by this very Effect object, which is for one at a time",
        )

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        claim, said = self._claim, self._said
        self._claim = self._said = None
        try:
            if claim is not None:
                await self._leave(claim, said, error)
        finally:
            self._entered.release()

    async def _leave(
        self,
        claim: EffectRecord,
        said: tuple[EffectStatus, Any, str | None] | None,
        error: BaseException | None,
    ) -> None:
        if said is None:
            if error is None:
                said = EffectStatus.UNKNOWN, None, "its block ended without saying how it ended"
            elif isinstance(error, self._failed_on):
                said = EffectStatus.FAILED, None, _text_of(error)
            else:
                said = EffectStatus.UNKNOWN, None, _text_of(error)
        try:
            # To its end: a second cancellation would leave a claim that looks as if it went on.
            await call_async(None, self._settle, (claim, *said), {})
        except SpellError:
            if error is None:
                raise
            # The exception of the block is what its user must see, and the claim that is left
            # behind says to everybody else that the outcome is unknown.

    async def _settle(
        self, claim: EffectRecord, status: EffectStatus, result: Any, reason: str | None
    ) -> None:
        steps = self._steps
        try:
            await self._driver.run(steps.settle(claim, status, result, reason, self._keep))
        except (CodecError, LimitError) as error:
            # It happened, and its result cannot be stored: somebody has to say what it was.
            unknown = EffectStatus.UNKNOWN
            await self._driver.run(steps.settle(claim, unknown, None, _text_of(error), None))
            raise
        if status is EffectStatus.COMMITTED:
            self.done, self._result = True, result

    async def resolve(self, result: Any = None) -> None:
        """Say that an effect of unknown outcome did happen, and with which result.

        `EffectInProgressError` while somebody is at it, `EffectCommittedError` if it has a result.
        """
        await self._driver.run(
            self._steps.resolve(self.key, self._by, self._limit_ms, result, self._keep)
        )
        self.done, self._result = True, result

    async def retry(self) -> None:
        """Say that an effect of unknown outcome did not happen, and claim it anew.

        `run` or the block that follows, of this very object, then carries it out, with its whole
        `limit` from there on, and once; unless another claimed or decided it in between.
        `EffectInProgressError` while somebody is at it, `EffectCommittedError` if it has a result.
        """
        if self._entered.locked():
            raise self._busy()
        self._retried = await self._driver.run(
            self._steps.retry(self.key, self._by, self._limit_ms)
        )


def _text_of(error: BaseException) -> str:
    said = str(error)
    if type(error) is LimitOverError:
        return said
    return mask_secrets(f"{type(error).__name__}: {said}" if said else type(error).__name__)
