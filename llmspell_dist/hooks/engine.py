"""The parts of a client's hooks, wired; as steps, for both surfaces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmspell_dist.errors import InvalidArgumentError, SpellError
from llmspell_dist.hooks.context import ComponentId, HookContext, OperationContext
from llmspell_dist.hooks.errors import InvalidHookResultError, OperationCancelledError
from llmspell_dist.hooks.executor import Executor
from llmspell_dist.hooks.interception import StateHooks
from llmspell_dist.hooks.nesting import inside
from llmspell_dist.hooks.points import HookPoint, point_of
from llmspell_dist.hooks.results import CONTINUE, Cancel, HookResult, Replace
from llmspell_dist.state.interception import Instead

if TYPE_CHECKING:
    from llmspell_dist.hooks.memory import ResultCache
    from llmspell_dist.hooks.queueing import HookQueue, Queued
    from llmspell_dist.hooks.registry import Registry
    from llmspell_dist.hooks.results import ForkOperation
    from llmspell_dist.hooks.running import Runner
    from llmspell_dist.state.steps import Steps

__all__ = ["HookEngine", "HookOutcome"]


@dataclass(frozen=True, slots=True)
class HookOutcome:
    """What the hooks of a point said, as whoever ran them finds it."""

    result: HookResult
    """What ended the chain; `Continue` if nothing did."""
    data: dict[str, Any]
    """The data as the hooks left it."""
    hook: str | None
    """The hook that ended the chain."""
    context: HookContext

    @property
    def should_continue(self) -> bool:
        """Whether all hooks said to go on."""
        return self.hook is None

    @property
    def forks(self) -> tuple[ForkOperation, ...]:
        """What hooks wanted to be carried out beside it, by `Fork`."""
        return tuple(one for _, fork in self.context.forks or () for one in fork.operations)


class HookEngine:
    """Registry, executor, queue and what stands around the state."""

    def __init__(
        self,
        registry: Registry,
        runner: Runner,
        queue: HookQueue,
        cache: ResultCache,
        *,
        actor: str | None = None,
    ) -> None:
        self._actor = actor
        self.registry = registry
        self.executor = Executor(runner)
        self.cache = cache
        self.queue = queue
        self.state = StateHooks(registry, self.executor, self.cache, self.queue, actor)

    def run(
        self,
        point: HookPoint | str,
        component: ComponentId | str,
        data: Mapping[str, Any] | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
        operation: OperationContext | str | None = None,
        parent: HookContext | None = None,
        raise_cancel: bool = True,
    ) -> Steps[HookOutcome]:
        """Run the hooks of a point."""
        where = point_of(point)
        if type(component) is str:
            component = ComponentId("custom", component)
        if not isinstance(component, ComponentId):
            raise InvalidArgumentError("component", component, "must be a ComponentId or a name")
        if data is not None and not isinstance(data, Mapping):
            raise InvalidArgumentError("data", data, "must be a mapping of names to values")
        context = HookContext(
            where,
            component,
            dict(data or {}),
            metadata=dict(metadata or {}),
            operation=operation,
            parent=parent,
            correlation_id=None if parent is None else parent.correlation_id,
            actor=self._actor,
        )
        if isinstance(operation, OperationContext):
            context.error = operation.error
        chain = self.registry.chain(where)
        try:
            came = yield from self.executor.run(chain, context)
        except SpellError:
            if chain.behind and chain.queued:
                yield from self.queue.put_all(chain, context)
            raise
        if came is not None and raise_cancel and type(came.result) is Cancel:
            raise OperationCancelledError(came.hook.name, where, came.result.reason)
        if chain.queued:
            yield from self.queue.put_all(chain, context)
        if came is None:
            return HookOutcome(CONTINUE, context.data, None, context)
        return HookOutcome(came.result, context.data, came.hook.name, context)

    def wants(self, *points: str) -> bool:
        """Whether there are hooks at one of these points, and they run here: not inside a hook."""
        return any(map(self.registry.stands, points)) and inside() <= 0

    def at(
        self,
        point: str,
        component: tuple[str, str],
        data: Mapping[str, Any],
        *,
        error: BaseException | None = None,
        refusable: bool = False,
        replaceable: bool = False,
        operation: str | None = None,
        check: Callable[[dict[str, Any]], object] | None = None,
    ) -> Steps[tuple[dict[str, Any], Instead | None]]:
        """Run the hooks of a point for a service of the library."""
        around: OperationContext | str | None = operation
        if error is not None:
            around = OperationContext(operation or point, error=error)
        outcome = yield from self.run(
            *(point, ComponentId(*component), data), operation=around, raise_cancel=refusable
        )
        result = outcome.result
        for hook, fork in outcome.context.forks or ():
            raise _not_allowed(hook, point, fork)
        if type(result) is Replace and replaceable:
            return outcome.data, Instead(result.value)
        if outcome.hook is not None:
            raise _not_allowed(outcome.hook, point, result)
        if check is not None:
            try:
                check(outcome.data)
            except SpellError as wrong:
                raise self._unfit(outcome.context, wrong) from wrong
        return outcome.data, None

    def _unfit(self, context: HookContext, wrong: SpellError) -> InvalidHookResultError:
        """Return the error for data that makes no sense, naming who changed it last."""
        hooks = self.registry.chain(context.point).hooks
        changed_by = context.modified_by or ", ".join(hook.name for hook in hooks)
        said = f"what it made of the data cannot be: {wrong}"
        return InvalidHookResultError(changed_by, context.point, said)

    def run_queued(self, run: Queued) -> Steps[None]:
        """Run one hook that waited for its turn."""
        yield from self.executor.run(run.chain, run.context)


def _not_allowed(hook: str, point: str, result: HookResult) -> InvalidHookResultError:
    said = f"it answered {type(result).__name__}; the point does not allow that"
    return InvalidHookResultError(hook, point, said)
