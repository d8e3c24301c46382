"""Hooks for the whole fleet: run in every process, in one, or in those with certain labels."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from inspect import iscoroutinefunction
from math import inf
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.backoff import Backoff
from llmspell_dist.errors import ClosedError, InvalidArgumentError, SpellError
from llmspell_dist.fork import keep_forever, on_fork
from llmspell_dist.hooks.breaker import BreakerConfig
from llmspell_dist.hooks.effects import allowed_at
from llmspell_dist.hooks.errors import HookNotFoundError
from llmspell_dist.hooks.fleet_asking import Asking, queue_of
from llmspell_dist.hooks.fleet_inbox import FleetStats, Inbox
from llmspell_dist.hooks.fleet_members import Members
from llmspell_dist.hooks.fleet_model import (
    FleetHook,
    FleetMap,
    FleetProcess,
    FleetRun,
    checked_labels,
)
from llmspell_dist.hooks.hook import Priority, RegisteredHook
from llmspell_dist.hooks.points import point_of
from llmspell_dist.hooks.results import Cancel
from llmspell_dist.hooks.running import AsyncRunner, is_own_cancellation

if TYPE_CHECKING:
    from llmspell_dist.events.manager import Events
    from llmspell_dist.hooks.context import HookContext
    from llmspell_dist.hooks.points import HookPoint
    from llmspell_dist.hooks.recorder import Recorder
    from llmspell_dist.hooks.registration import Registration
    from llmspell_dist.hooks.results import HookResult
    from llmspell_dist.hooks.sealing import Sealer
    from llmspell_dist.redis.hub import Hub
    from llmspell_dist.state.driver import AsyncDriver

__all__ = ["Fleet"]

logger = logging.getLogger("llmspell_dist.hooks")

_PROXY: Final = "fleet:"
_REQUIRED: Final = "required:"


class Fleet:
    """Hooks that run for what happens in any process of the fleet.

    A process that has joined knows which hooks the others have, and asks them when one of its own
    points is reached: at a point that nobody has a hook for, that costs nothing. Functions never
    travel, only names: each process runs what it has registered itself.
    """

    def __init__(
        self,
        hooks: Registration,
        driver: AsyncDriver,
        hub: Hub,
        events: Events,
        *,
        sealer: Sealer,
        recorder: Callable[[], Recorder | None],
        heartbeat: float = 5.0,
        silent_after: float = 15.0,
    ) -> None:
        self._hooks = hooks
        self._driver = driver
        self._hub = hub
        self._events = events
        self._sealer = sealer
        self._recorder = recorder
        self._times = (heartbeat, silent_after)
        self._begin()
        on_fork(self)

    def _begin(self) -> None:
        heartbeat_s, silent_after_s = self._times
        self.process = os.urandom(8).hex()
        """What the others know this process by."""
        self.stats = FleetStats()
        self._own: dict[tuple[str, str], RegisteredHook] = {}
        self._proxies: dict[tuple[str, str], tuple[FleetHook, RegisteredHook | None]] = {}
        self._runner = AsyncRunner()
        self._lock = asyncio.Lock()
        self._members = Members(
            self._driver,
            self._hub,
            self.process,
            self._look,
            heartbeat_s=heartbeat_s,
            silent_after_s=silent_after_s,
        )
        self._inbox = Inbox(
            self.process,
            self._events,
            self._sealer,
            runner=self._runner,
            find=self._find,
            switched_on=lambda hook: hook.enabled and self._hooks.enabled,
            now_ms=self._members.now_ms,
            stats=self.stats,
        )
        self._consumers: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._asking = Asking(self._members, self._inbox, self._events, self._sealer, self.stats)

    # --- joining

    async def join(self, *, labels: Mapping[str, str] | None = None) -> None:
        """Take part: know the hooks of the others, and run this process's own for them.

        `labels`: what hooks with `run` labels are chosen by; they can be changed by joining again.
        When it returns, hooks of others run for what happens here.
        """
        async with self._lock:
            before = self._members.labels
            if labels is not None:
                self._members.labels = checked_labels(labels)
            if self._members.joined:
                if self._members.labels != before:
                    self._place_own()
                    await self._members.say()
                return
            self._inbox.recorder = self._recorder()
            await self._inbox.open()
            try:
                await self._members.join()
            except BaseException:
                await self._inbox.close()
                raise

    @property
    def joined(self) -> bool:
        """Whether this process takes part."""
        return self._members.joined

    def processes(self) -> list[FleetProcess]:
        """Return the processes that take part, as far as this one knows; itself among them."""
        return list(self._members.map.processes.values())

    # --- hooks

    async def add(
        self,
        point: HookPoint | str,
        hook: Any,
        *,
        name: str | None = None,
        run: str = "every",
        labels: Mapping[str, str] | None = None,
        max_hops: int = 3,
        timeout: float = 30.0,
        await_remote: bool = False,
        continue_on_failure: bool = True,
        **how: Any,
    ) -> RegisteredHook:
        """Register a hook that runs whenever its point is reached in any process that has joined.

        `run`: ``every`` process that has registered it, the one where it happens and all others;
        ``one`` of them, which is the one where it happens if it has it; or, with `labels`, those
        that have joined with such labels. Other arguments are those of `Hooks.register`.

        By default the others are told, and nobody waits for them: ``every`` and labels at most
        once, ``one`` at least once. With `await_remote` the operation waits for what they answer,
        and a `Cancel` there cancels it here; if one fails or has not answered after `timeout`
        seconds, `continue_on_failure` says whether the operation goes on or is cancelled.
        After `timeout` nobody begins to run it either. `max_hops`: what a hook does for another
        process can reach points again; so many times it may travel on.

        Joins if this process has not. Raises as `Hooks.register`.
        """
        how_to_run = _run_of(run, labels)
        chosen = tuple(checked_labels(labels or {}).items())
        options = {
            "timeout": timeout,
            "await_remote": await_remote,
            "continue_on_failure": continue_on_failure,
        }
        registered = RegisteredHook(
            point_of(point), hook, name=name, **_how_at_home(hook, options, how)
        )
        meant = FleetHook(
            registered.name,
            registered.point,
            how_to_run,
            chosen,
            max_hops,
            timeout,
            await_remote,
            continue_on_failure,
            registered.priority,
        )
        place = (meant.name, meant.point)
        await self.join()
        self._warn_of_other_options(meant)
        async with self._lock:
            local = meant.matches(self._members.labels)
            if local:
                self._hooks.add(registered)
            elif place in self._own:
                raise InvalidArgumentError("name", meant.name, "must be new at this point")
            self._own[place] = registered
            self._members.hooks[place] = meant
            try:
                await self._members.say()
                if how_to_run is FleetRun.ONE:
                    await self._serve_queue(place)
            except BaseException:
                self._forget_own(place)
                raise
        return registered

    __call__ = add

    def _warn_of_other_options(self, meant: FleetHook) -> None:
        for process in self.processes():
            there = process.hook(meant.name, meant.point)
            if there is None or process.id == self.process:
                continue
            differ = meant.differences(there)
            if differ:
                logger.warning(
                    "hook %s at %s has another %s in process %s: the strictest holds in all",
                    *(meant.name, meant.point, ", ".join(differ), process.name or process.id),
                )

    async def require(self, point: HookPoint | str, name: str) -> RegisteredHook:
        """Cancel operations of this process at a point while no process has the fleet hook `name`.

        Without it a veto ends when the processes that have it are forgotten, 15 seconds after the
        last one died. Joins if this process has not. `spell.hooks.unregister` with the name of what
        is returned ends it.
        """
        where = str(point_of(point))
        if Cancel not in allowed_at(where):
            raise InvalidArgumentError("point", where, "must be one that allows Cancel")
        required = RegisteredHook(
            where,
            _Required(lambda: self._is_there(name, where), name),
            name=_REQUIRED + name,
            priority=Priority.HIGHEST,
            on_failure="cancel",
            breaker=False,
        )
        await self.join()
        return self._hooks.add(required)

    def _is_there(self, name: str, point: str) -> bool:
        if not self.joined:
            return False
        own = self._hooks.find(name, point)
        here = own is not None and own is self._own.get((name, point)) and own.enabled
        return here or bool(self._members.map.targets(self.process, name, point))

    async def remove(self, name: str, point: HookPoint | str) -> None:
        """Take a hook of this process away; `HookNotFoundError` if it has none of that name."""
        place = (name, str(point_of(point)))
        async with self._lock:
            await self._take_away(place)
            await self._members.say()

    @asynccontextmanager
    async def replacing(self, name: str, point: HookPoint | str) -> AsyncIterator[None]:
        """Have a hook of this process away while another one of its name is put in its place.

        If the block raises, the hook is there again, also if no server answers: the others hear of
        it once that does. `HookNotFoundError` if this process has none of that name.
        """
        place = (name, str(point_of(point)))
        own, meant = None, None
        try:
            async with self._lock:
                own, meant = self._own.get(place), self._members.hooks.get(place)
                await self._take_away(place)
            yield
        except BaseException:
            if own is not None and meant is not None:
                self._put_back(place, own, meant)
            raise
        if place not in self._own:
            self._members.say_soon()

    async def _take_away(self, place: tuple[str, str]) -> None:
        if place not in self._own:
            raise HookNotFoundError(*place)
        self._forget_own(place)
        consumer = self._consumers.pop(place, None)
        if consumer is not None:
            consumer.cancel()
            await asyncio.gather(consumer, return_exceptions=True)

    def _put_back(self, place: tuple[str, str], own: RegisteredHook, meant: FleetHook) -> None:
        if place in self._own or not self.joined:
            return
        self._own[place], self._members.hooks[place] = own, meant
        if meant.matches(self._members.labels):
            self._hooks.add(own)
        if meant.run is FleetRun.ONE:
            self._consume(meant, None)
        self._members.say_soon()

    def _place_own(self) -> None:
        """Have this process's own hooks run here where its labels say so, and only there."""
        for place, meant in self._members.hooks.items():
            own = self._own[place]
            if not meant.matches(self._members.labels):
                self._hooks.discard(own)
            elif self._hooks.find(*place) is not own:
                self._hooks.add(own)

    def _forget_own(self, place: tuple[str, str]) -> None:
        own = self._own.pop(place, None)
        self._members.hooks.pop(place, None)
        if own is not None:
            self._hooks.discard(own)  # one of its name that stands here may be another

    def _find(self, name: str, point: str) -> RegisteredHook | None:
        return self._own.get((name, point))

    # --- asking others

    def _look(self, known: FleetMap) -> None:
        """Have a hook at each point for which others may have to be asked, and no more."""
        wanted = known.wanted(self.process)
        for place, (asked, proxy) in list(self._proxies.items()):
            if wanted.get(place) != asked:
                del self._proxies[place]
                if proxy is not None:
                    self._hooks.discard(proxy)
        for place, hook in wanted.items():
            if place not in self._proxies:
                proxy = None
                try:
                    proxy = self._hooks.register(
                        hook.point,
                        _Proxy(self._asking, hook),
                        name=_PROXY + hook.name,
                        priority=hook.priority,
                        timeout=hook.timeout + 1.0,
                        on_failure="ignore" if hook.continue_on_failure else "cancel",
                        breaker=False,
                    )
                except SpellError as error:  # it must not keep those behind it from being asked
                    logger.warning("hook %s of the fleet is not asked for: %s", hook.name, error)
                self._proxies[place] = hook, proxy

    # --- one of several

    async def _serve_queue(self, place: tuple[str, str]) -> None:
        hook = self._members.hooks[place]
        # Made here, so that nothing is lost between now and the task's first turn.
        self._consume(hook, await self._subscribed(hook))

    def _consume(self, hook: FleetHook, subscription: Any) -> None:
        self._consumers[hook.name, hook.point] = asyncio.create_task(
            self._work(hook, subscription), name="llmspell-hook-queue"
        )

    async def _subscribed(self, hook: FleetHook) -> Any:
        queue = queue_of(hook)
        subscription = self._events.subscribe(
            queue, durable=queue, claim_idle=min(30.0, max(hook.timeout / 3, 0.1))
        )
        return await subscription.__aenter__()

    async def _work(self, hook: FleetHook, subscription: Any) -> None:
        """Work on a queue; what ends its subscription passes, and then it is subscribed again."""
        backoff = Backoff(first_s=0.1, max_s=10.0)
        while True:
            try:
                if subscription is None:
                    subscription = await self._subscribed(hook)
                await self._take_all(subscription, backoff)
            except ClosedError:
                return
            except SpellError as error:
                logger.warning("hook %s does not run for others now: %s", hook.name, error)
            else:
                return
            subscription = None
            await asyncio.sleep(backoff.next_s())

    async def _take_all(self, subscription: Any, backoff: Backoff) -> None:
        try:
            async for event in subscription:
                backoff.reset()
                # Whatever came, and whatever becomes of it: the next one is taken.
                try:
                    await self._handle_queued(subscription, event)
                except (Exception, asyncio.CancelledError) as error:
                    if is_own_cancellation(error):
                        raise
                    logger.exception("a hook that one process runs")
        finally:
            await subscription.__aexit__(None, None, None)

    async def _handle_queued(self, subscription: Any, event: Any) -> None:
        try:
            await self._inbox.handle(event)
        except (Exception, asyncio.CancelledError) as error:
            if is_own_cancellation(error):
                raise
            await subscription.nack(event, error)  # it comes again, or goes to the dead letters
        else:
            await subscription.ack(event)

    # --- the end

    async def leave(self) -> None:
        """Take part no more: hooks of others do not run for what happens here, nor own for them.

        What is being sent is sent first, for at most five seconds.
        """
        await self._asking.settle()
        async with self._lock:
            consumers = list(self._consumers.values())
            self._consumers.clear()
            for consumer in consumers:
                consumer.cancel()
            await asyncio.gather(*consumers, return_exceptions=True)
            await self._members.leave()
            await self._inbox.close()
            await self._runner.close()
            self._look(FleetMap())
            for place in list(self._own):
                self._forget_own(place)

    close = leave

    def forget(self) -> None:
        """In a forked child: it is another process, which has not joined."""
        keep_forever(self._members, self._inbox, self._consumers, self._asking)
        self._look(FleetMap())
        for place in list(self._own):
            self._forget_own(place)
        self._begin()


class _Proxy:
    """Stands in this process for a hook that others have."""

    stays = True

    def __init__(self, asking: Asking, hook: FleetHook) -> None:
        self._asking = asking
        self._hook = hook

    async def execute(self, ctx: HookContext) -> HookResult | None:
        """Ask the others."""
        return await self._asking.ask(self._hook, ctx)


class _Required:
    """Lets nothing pass while no process has a hook."""

    stays = True

    def __init__(self, there: Callable[[], bool], name: str) -> None:
        self._there = there
        self._name = name

    def execute(self, ctx: HookContext) -> HookResult | None:
        """Cancel, unless some process has it."""
        del ctx
        if self._there():
            return None
        return Cancel(f"no process has the hook {self._name}, which is required here")


def _how_at_home(hook: object, meant: Mapping[str, Any], how: dict[str, Any]) -> dict[str, Any]:
    """Return how a hook is registered at home, where nothing else is said: as it is elsewhere."""
    timeout = meant["timeout"]
    at_home: dict[str, Any] = {}
    if type(timeout) in (int, float) and 0 < timeout < inf:
        # Slow is not what is slow for a hook in line: its limit is another one.
        at_home["breaker"] = BreakerConfig(slow_call_duration=max(timeout / 2, 0.05))
        if meant["await_remote"] and iscoroutinefunction(getattr(hook, "execute", hook)):
            at_home["timeout"] = timeout
    if meant["continue_on_failure"] is False:
        at_home["on_failure"] = "cancel"
    return {**at_home, **how}


def _run_of(run: object, labels: object) -> FleetRun:
    try:
        found = FleetRun(run)  # type: ignore[arg-type] # what is none raises
    except ValueError:
        rule = f"must be one of {', '.join(FleetRun)}"
        raise InvalidArgumentError("run", run, rule) from None
    if labels:
        if found is FleetRun.ONE:
            raise InvalidArgumentError("labels", labels, "do not go with run='one'")
        return FleetRun.LABELS
    if found is FleetRun.LABELS:
        raise InvalidArgumentError("labels", labels, "must say which processes are meant")
    return found
