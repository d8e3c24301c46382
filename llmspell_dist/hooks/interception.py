"""Hooks around the operations on state: what each result does to each of them.

The table of point and result is in docs/hooks/results.md; `effects` says what is allowed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.errors import ConflictError, InvalidArgumentError, SpellError
from llmspell_dist.hooks.context import ComponentId, HookContext
from llmspell_dist.hooks.errors import InvalidHookResultError, OperationCancelledError
from llmspell_dist.hooks.executor import Waiting
from llmspell_dist.hooks.memory import ABSENT, CachedResult
from llmspell_dist.hooks.nesting import inside
from llmspell_dist.hooks.points import HookPoint
from llmspell_dist.hooks.results import Cache, Cancel, Redirect, Replace, Retry
from llmspell_dist.ids import new_id
from llmspell_dist.redis.commits import Commit, read_revision
from llmspell_dist.scope import Scope
from llmspell_dist.state.interception import (
    FollowedCommit,
    Instead,
    StateCall,
    arguments_of,
    followed,
)
from llmspell_dist.state.named import check_named, named_operation
from llmspell_dist.state.steps import CallerLeftError, CommitRequest, Pause

if TYPE_CHECKING:
    from llmspell_dist.hooks.executor import Ended, Executor
    from llmspell_dist.hooks.memory import ResultCache
    from llmspell_dist.hooks.queueing import HookQueue
    from llmspell_dist.hooks.registry import Chain, Registry
    from llmspell_dist.revision import Revision
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Steps
    from llmspell_dist.state.writes import Writes

__all__ = ["StateHooks"]

logger = logging.getLogger("llmspell_dist.hooks")
_STATE: Final = ComponentId("system", "state")
_BEFORE_READ, _AFTER_READ = HookPoint.BEFORE_STATE_READ, HookPoint.AFTER_STATE_READ
_BEFORE_WRITE, _AFTER_WRITE = HookPoint.BEFORE_STATE_WRITE, HookPoint.AFTER_STATE_WRITE
_SET: Final = ("scope", "key", "value", "ttl", "state_class", "schema_version", "ack")
_SET_DONE: Final = (*_SET, "result")
_CONFLICT: Final = HookPoint.STATE_CONFLICT


class StateHooks:
    """The hooks at the state's points, as the state's `Interceptor`."""

    def __init__(
        self,
        registry: Registry,
        executor: Executor,
        cache: ResultCache,
        queue: HookQueue,
        actor: str | None = None,
    ) -> None:
        self._actor = actor
        self._registry = registry
        self._executor = executor
        self._cache = cache
        self._queue = queue
        self.reading = self.writing = self.expiring = False
        self.inside: Callable[[], int] = inside
        registry.on_change(self._look)

    def _look(self) -> None:
        chain = self._registry.chain
        self._before_read, self._after_read = chain(_BEFORE_READ), chain(_AFTER_READ)
        if self._before_read:
            self._cache.watching = True
        self._before_write, self._after_write = chain(_BEFORE_WRITE), chain(_AFTER_WRITE)
        self._conflict = chain(_CONFLICT)
        self.expiring = bool(self._after_write)
        self._nothing_follows = not self._after_write
        self.reading = bool(self._before_read or self._after_read)
        self.writing = bool(self._before_write or self._after_write or self._conflict)

    # --- one operation

    def around_set(self, given: tuple[Any, ...], writes: Writes) -> Commit | _Followed | Steps[Any]:
        """Carry a `set` out: as its commit, if all hooks before it end at once and none follows."""
        asked = (_SET, given)
        context = HookContext.of_arguments(_BEFORE_WRITE, _STATE, asked, "set", self._actor)
        came = self._executor.inline(self._before_write, context)
        if came is None and context.forks is None:
            if context._data is not None:  # noqa: SLF001 - a property would cost as much as a hook
                given = tuple(arguments_of(context.data, _SET))
            prepared = writes.prepare_set(*given)
            if self._nothing_follows:
                return prepared
            if type(prepared) is Commit:
                return _Followed(self, context, prepared, given, writes)
        return self._set_in_steps(context, came, writes)

    def behind_set(self, behind: _Followed, revision: Any) -> Any:
        """Run the hooks behind a `set`; what its caller gets, or the steps that it takes."""
        chain, context = self._after_write, behind.context
        if context._data is None:  # noqa: SLF001
            context.succeeded(chain.point, (_SET_DONE, (*behind.given, revision)), revision)
        else:
            context.data["result"] = revision
            context.finished(chain.point, revision, None)
        came = self._executor.inline(chain, context)
        if came is None and not chain.queued and context.forks is None:
            return revision if context._data is None else context.data.get("result")  # noqa: SLF001
        call = self._followed_call(behind)
        return self._concluded(call, chain, revision, None, came)

    def failed_set(self, behind: _Followed, error: SpellError) -> Steps[Any]:
        """Run the hooks behind a `set` that failed; one may have it tried again."""
        call = self._followed_call(behind)
        came_of = yield from self._behind(call, None, error)
        if came_of is not _AGAIN:
            return came_of
        return (yield from self._around(call, None, begun=True))

    def _set_in_steps(
        self, context: HookContext, came: Ended | Waiting | None, writes: Writes
    ) -> Steps[Any]:
        """Go on with a `set` of which the hooks before it gave this."""
        return self._around(self._set_call(context, writes), came, begun=True)

    def _followed_call(self, behind: _Followed) -> StateCall:
        call = self._set_call(behind.context, behind.writes)
        call.left = behind.left
        behind.calls = (call,)
        return call

    def _set_call(self, context: HookContext, writes: Writes) -> StateCall:
        def carry_out(given: dict[str, Any]) -> Steps[Any]:
            prepared = writes.prepare_set(*arguments_of(given, _SET))
            if isinstance(prepared, Commit):
                outcome = yield CommitRequest(prepared)
                return read_revision(outcome, prepared, writes.core.server)
            return (yield from prepared)

        perform = partial(named_operation, writes.core)
        return StateCall("set", True, context.data, carry_out, perform, kept=context)

    def around(self, call: StateCall) -> Steps[Any]:
        """Carry an operation out, with the hooks before and behind it."""
        return self._around(call, None, begun=False)

    def _around(
        self,
        call: StateCall,
        came: Ended | Waiting | None,
        *,
        begun: bool,
    ) -> Steps[Any]:
        context = self._context(call)
        chain = self._before_write if call.writes else self._before_read
        instead = yield from self._before(call, chain, came, begun=begun)
        if instead is not None:
            return instead.value
        call.data = context.data  # a hook may have put another there
        while True:
            result, error = yield from self._attempted(call)
            if result is _AGAIN:
                continue
            waiting = context.forks
            if waiting is not None:
                if error is None:
                    yield from self._forked(call)
                context.forks = None  # what has not happened has nothing beside it
            came_of = yield from self._behind_unless_left(call, result, error)
            if came_of is not _AGAIN:
                return came_of
            if error is not None:
                context.forks = waiting
            elif (wanted := _cached(call)) is not None:
                self._cache.drop(_kept_as(wanted, call))

    def _attempted(self, call: StateCall) -> Steps[tuple[Any, SpellError | None]]:
        """Carry an operation out once; its result or its error, or `_AGAIN` after a conflict."""
        try:
            return (yield from self._carried(call)), None
        except ConflictError as conflict:
            answer = yield from self._on_conflict(call, conflict)
            if answer is None:
                return None, conflict
            return (answer if answer is _AGAIN else answer.value), None
        except SpellError as failed:
            return None, failed

    def _behind_unless_left(
        self, call: StateCall, result: Any, error: SpellError | None
    ) -> Steps[Any]:
        """Run the hooks behind an operation; where its caller left, that is all."""
        try:
            came_of = yield from self._behind(call, result, error)
        except SpellError as refused:
            if call.left:
                raise CallerLeftError from refused  # there is nobody to try again for
            raise
        if call.left:
            raise CallerLeftError
        return came_of

    def _carried(self, call: StateCall) -> Steps[Any]:
        """Carry an operation out, or answer from what an earlier one gave."""
        wanted = _cached(call)
        if wanted is None:
            return (yield from self._carry_out(call))
        data, key = call.data, _kept_as(wanted, call)
        found = self._cache.get(key)
        if found is None:
            # A default is this caller's: kept is that there is nothing.
            found = CachedResult((yield from self._kept(call, wanted, {**data, "default": ABSENT})))
        return data.get("default") if found.value is ABSENT else found.value

    def _kept(self, call: StateCall, wanted: Cache, data: dict[str, Any]) -> Steps[Any]:
        """Carry a read out, and keep what it gave."""
        key = _kept_as(wanted, call)
        if not wanted.until_written or call.lasting is None:
            result = yield from call.carry_out(data)
            self._cache.put(key, result, wanted.ttl)
            return result
        scope, name = arguments_of(data, ("scope", "key"))
        place = (Scope.coerce(scope).text, name)
        stamp = self._cache.stamp(place)
        result, lasts = yield from call.lasting(data)
        if lasts:
            self._cache.put(key, result, wanted.ttl, place, stamp)
        return result

    def _carry_out(self, call: StateCall) -> Steps[Any]:
        steps = call.carry_out(call.data)
        return followed(steps, (call,)) if call.writes and self._after_write else steps

    # --- batches

    def before(self, call: StateCall) -> Steps[Instead | None]:
        """Run the hooks before an operation of a batch."""
        self._context(call)
        chain = self._before_write if call.writes else self._before_read
        instead = yield from self._before(call, chain, None, begun=False)
        call.data = self._context(call).data  # a hook may have put another there
        if instead is None and (wanted := _cached(call)) is not None:
            found = self._cache.get(_kept_as(wanted, call))
            if found is not None and found.value is not ABSENT:
                return Instead((yield from self._behind(call, found.value, None)))
        return instead

    def behind(self, call: StateCall, result: Any, error: Exception | None) -> Steps[Any]:
        """Run the hooks behind an operation of a batch."""
        context = self._context(call)
        if error is None:
            wanted = _cached(call)
            if wanted is not None:
                self._cache.put(_kept_as(wanted, call), result, wanted.ttl)
            if context.forks is not None:
                yield from self._forked(call)
        else:
            context.forks = None  # they were for what has not happened
        return (yield from self._behind(call, result, error, raises=False))

    def conflict(self, call: StateCall, error: Exception) -> Steps[None]:
        """Run the hooks for a batch that met a conflict."""
        yield from self._on_conflict(call, error)

    def expired(
        self, core: Core, scope: str, keys: Sequence[str], revision: Revision
    ) -> Steps[None]:
        """Run the hooks behind writes for keys that this process's housekeeping removed.

        It has happened and nobody waits for it, so of what they say only `Fork` has an effect;
        what goes wrong is logged.
        """
        chain = self._after_write
        batch_id, size = new_id(), str(len(keys))
        for position, key in enumerate(keys):
            data = {"scope": scope, "key": key, "result": revision}
            context = HookContext.of_operation(_AFTER_WRITE, _STATE, data, "expired", self._actor)
            context.metadata = {
                "batch": "expired",
                "batch_id": batch_id,
                "batch_size": size,
                "batch_position": str(position),
            }
            context.finished(_AFTER_WRITE, revision, None)
            perform = partial(named_operation, core)
            call = StateCall("expired", True, data, _cannot_again, perform, kept=context)
            try:
                yield from self._behind_expiry(call, chain)
            except SpellError as error:
                logger.warning("a hook for a key that expired failed: %s", error)
            if chain.queued:
                yield from self._queue.put_all(chain, context)

    def _behind_expiry(self, call: StateCall, chain: Chain) -> Steps[None]:
        context: HookContext = call.kept
        came = self._executor.inline(chain, context)
        over = yield from self._executor.go_on(chain, context, came)
        if context.forks is not None:
            yield from self._forked_behind(call, chain)
        if context.failure is not None:
            raise context.failure
        if over is not None:
            said = f"it answered {type(over.result).__name__}; nobody waits for an expiry"
            raise InvalidHookResultError(over.hook.name, chain.point, said)

    # --- the chains

    def _context(self, call: StateCall) -> HookContext:
        context: HookContext | None = call.kept
        if context is None:
            point = _BEFORE_WRITE if call.writes else _BEFORE_READ
            context = call.kept = HookContext.of_operation(
                point, _STATE, call.data, call.name, self._actor
            )
            context.metadata = call.metadata
        return context

    def _before(
        self,
        call: StateCall,
        chain: Chain,
        came: Ended | Waiting | None,
        *,
        begun: bool,
    ) -> Steps[Instead | None]:
        context = self._context(call)
        given = call.data
        if chain.hooks:
            # What begun already has changed the data, but not what it was made of.
            made_of = context._given if begun else None  # noqa: SLF001
            given = dict(call.data) if made_of is None else dict(zip(*made_of, strict=True))
        while True:
            if not begun and chain.hooks:
                came = self._executor.inline(chain, context)
            over = yield from self._executor.go_on(chain, context, came)
            if context.forks is not None:
                self._check_forks(context, chain)
            if over is None:
                return None
            result, hook = over.result, over.hook
            kind = type(result)
            if kind is Cancel:
                raise OperationCancelledError(hook.name, chain.point, result.reason)
            if kind is Replace:
                self._check_fits(call, result.value, hook.name, chain)
                return Instead(result.value if call.fits is None else call.put(None, result.value))
            if kind is Redirect:
                self._redirect(call, chain, hook.name, result)
                return None
            if kind is Cache:
                context.answer = result
                return None
            yield from self._pause(call, over, chain)
            came, begun = None, False
            # All of them run again, on what was given: what they had made of it does not count.
            context.forks = None
            call.data.clear()
            call.data.update(given)
            context.data = call.data  # a hook may have put another there

    def _redirect(self, call: StateCall, chain: Chain, hook: str, to: Redirect) -> None:
        data = self._context(call).data
        if "scope" not in data or (to.key is not None and "key" not in data):
            said = f"{call.name} has no {'scope' if to.key is None else 'key'} to redirect"
            raise InvalidHookResultError(hook, chain.point, said)
        data["target" if "target" in data else "scope"] = to.target
        if to.key is not None:
            data["key"] = to.key

    def _pause(self, call: StateCall, over: Ended, chain: Chain) -> Steps[None]:
        """Wait for the next attempt; give up after the last."""
        name, retry = over.hook.name, over.result
        counted = f"{name} at {chain.point}"
        made = call.attempts[counted] = call.attempts.get(counted, 0) + 1
        if made >= retry.max_attempts:
            raise OperationCancelledError(name, chain.point, f"gave up after {made} attempts")
        yield Pause(retry.delay)  # if it is none, others of the event loop have their turn

    def _behind(
        self,
        call: StateCall,
        result: Any,
        error: Exception | None,
        *,
        raises: bool = True,
    ) -> Steps[Any]:
        """Run the hooks behind an operation; what its caller gets, or `_AGAIN`."""
        chain = self._after_write if call.writes else self._after_read
        if not chain:
            if error is not None and raises:
                raise error
            return result
        context = self._context(call)
        shown = result if call.writes or error is not None else call.seen(result)
        if call.fits is not None:
            context.data["value"] = None
        context.data[_answer_name(call)] = shown
        context.finished(chain.point, shown, error)
        came = self._executor.inline(chain, context)
        return (yield from self._concluded(call, chain, result, error, came, raises=raises))

    def _concluded(
        self,
        call: StateCall,
        chain: Chain,
        result: Any,
        error: Exception | None,
        came: Ended | Waiting | None,
        *,
        raises: bool = True,
    ) -> Steps[Any]:
        """Carry the hooks behind an operation to their end, and do what they say."""
        context: HookContext = call.kept
        name = _answer_name(call)
        shown = result if call.writes or error is not None else call.seen(result)
        over = yield from self._executor.go_on(chain, context, came)
        if context.failure is not None:
            over = None
        if context.forks is not None:
            yield from self._forked_behind(call, chain)
        failure, context.failure = context.failure, None
        if over is not None:
            if type(over.result) is Retry:
                again = yield from self._again(call, over, chain, error)
                if again:
                    context.data.pop(name, None)
                    return _AGAIN
            elif type(over.result) is Cancel:
                reason = over.result.reason
                raise OperationCancelledError(over.hook.name, chain.point, reason) from error
            else:
                context.data[name], error = over.result.value, None
        if chain.queued:
            yield from self._queue.put_all(chain, context)
        if failure is not None:
            raise failure
        if error is not None:
            if raises:
                raise error
            return result
        given = context.data.get(name)
        if given is shown:
            return result
        who = ", ".join(hook.name for hook in chain.hooks) if over is None else over.hook.name
        self._check_fits(call, given, who, chain)
        return given if call.writes else call.put(result, given)

    def _again(
        self,
        call: StateCall,
        over: Ended,
        chain: Chain,
        error: Exception | None,
    ) -> Steps[bool]:
        """Wait for another attempt; false if a failed operation has had all of them."""
        if call.left:
            return False
        if not call.redoable or (call.writes and error is None):
            said = "it answered Retry; that is for an operation alone that failed, or a read"
            raise InvalidHookResultError(over.hook.name, chain.point, said)
        try:
            yield from self._pause(call, over, chain)
        except OperationCancelledError:
            if error is None:
                raise
            return False
        return True

    def _on_conflict(self, call: StateCall, error: Exception) -> Steps[Any]:
        """Run the hooks for a conflict; None: it is raised, `_AGAIN`, or what the caller gets."""
        chain = self._conflict
        if not chain:
            return None
        context = self._context(call)
        context.finished(chain.point, None, error)
        waiting, context.forks = context.forks, None  # those of before: for when it has succeeded
        came = yield from self._executor.run(chain, context) if chain.hooks else _nothing()
        if context.forks is not None:
            self._check_forks(context, chain)
            yield from self._forked(call)
        context.forks = waiting
        if chain.queued:
            yield from self._queue.put_all(chain, context)
        if came is None or call.left:
            return None
        result, hook = came.result, came.hook
        if type(result) is Cancel:
            raise OperationCancelledError(hook.name, chain.point, result.reason) from error
        if not call.redoable:
            said = f"it answered {type(result).__name__}; a batch can only fail as a whole"
            raise InvalidHookResultError(hook.name, chain.point, said) from error
        if type(result) is Replace:
            return Instead(result.value)
        try:
            yield from self._pause(call, came, chain)
        except OperationCancelledError:
            return None
        return _AGAIN

    def _forked(self, call: StateCall) -> Steps[None]:
        """Carry out what hooks forked; how each went stands in the data as ``forked``."""
        context = self._context(call)
        forks, context.forks = context.forks or (), None
        done: dict[str, Any] = context.data.setdefault("forked", {})
        for _, fork in forks:
            for one in fork.operations:
                try:
                    done[one.id] = yield from call.perform(one.operation_type, one.parameters)
                except Exception as error:  # noqa: BLE001 - the operation itself has succeeded
                    done[one.id] = error
                except CallerLeftError as error:
                    if not call.writes:
                        raise
                    done[one.id] = error  # it has happened, so the others run

    def _forked_behind(self, call: StateCall, chain: Chain) -> Steps[None]:
        """As `_forked`, behind an operation: what is wrong is raised when all hooks have run."""
        context = self._context(call)
        try:
            self._check_forks(context, chain)
        except InvalidHookResultError as wrong:
            context.forks = None
            context.failure = context.failure or wrong
        else:
            yield from self._forked(call)

    @staticmethod
    def _check_fits(call: StateCall, answer: Any, hook: str, chain: Chain) -> None:
        must_be = None if call.fits is None else call.fits(answer)
        if must_be is not None:
            said = f"it answered {type(answer).__name__} to {call.name}, which must be {must_be}"
            raise InvalidHookResultError(hook, chain.point, said)

    @staticmethod
    def _check_forks(context: HookContext, chain: Chain) -> None:
        for hook, fork in context.forks or ():
            for one in fork.operations:
                try:
                    check_named(one.operation_type, one.parameters)
                except InvalidArgumentError as error:
                    said = f"it forked {one.id}: {error}"
                    raise InvalidHookResultError(hook, chain.point, said) from error


class _Followed(FollowedCommit):
    """The commit of a `set` behind which hooks run."""

    __slots__ = ("_hooks", "context", "given", "writes")

    def __init__(
        self,
        hooks: StateHooks,
        context: HookContext,
        commit: Commit,
        given: tuple[Any, ...],
        writes: Writes,
    ) -> None:
        super().__init__(commit)
        self._hooks = hooks
        self.context = context
        self.given = given
        self.writes = writes

    def ended(self, result: Any) -> Any:
        return self._hooks.behind_set(self, result)

    def failed(self, error: SpellError) -> Steps[Any]:
        return self._hooks.failed_set(self, error)


_AGAIN: Final = object()


def _nothing() -> Steps[None]:
    yield from ()


def _cannot_again(_: dict[str, Any]) -> Steps[Any]:
    raise AssertionError("what has expired cannot be carried out again")


def _answer_name(call: StateCall) -> str:
    """Return what the answer of an operation is called in the data."""
    return "value" if call.fits is None and not call.writes else "result"


def _cached(call: StateCall) -> Cache | None:
    """Return how a hook wants the result kept, if that has an effect here."""
    answer: Cache | None = call.kept.answer
    if answer is None or not call.cacheable:
        return None
    if answer.until_written and call.lasting is None:
        return None
    try:
        hash(_type_of(call))
    except TypeError:
        return None
    return answer


def _kept_as(wanted: Cache, call: StateCall) -> Hashable:
    return wanted.key, wanted.until_written, _type_of(call)


def _type_of(call: StateCall) -> Any:
    return call.data.get("as_type", call.as_type)
