"""Which hooks stand at which point, and in which order they run."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.fork import child_safe_lock
from llmspell_dist.hooks.effects import GOING_ON, STATE_POINTS, allowed_at
from llmspell_dist.hooks.errors import DuplicateHookError, HookNotFoundError
from llmspell_dist.hooks.hook import HookStats, OnFailure, RegisteredHook
from llmspell_dist.hooks.metrics import Ring
from llmspell_dist.hooks.points import HookPoint, is_before, point_of

__all__ = ["Chain", "HookCounts", "Registry"]


_MOST_GONE: Final = 1000
"""So many hooks that are gone are remembered by what they counted: those that went last."""
_MOST_BACK: Final = 8
"""So many of one name and point are known again when they come back."""
_RETIRED: Final = 16
"""So many chains are kept that were replaced, for what is still running through them."""


Rings = dict[RegisteredHook, list[tuple[Ring, int]]]
"""By hook, the chains in which it ran, and its place there."""


class HookCounts(NamedTuple):
    """What all hooks of one name at one point have counted, those included that are gone."""

    runs: int = 0
    failures: int = 0
    skipped: int = 0

    def plus(self, hook: RegisteredHook, rings: Rings) -> HookCounts:
        """Return the counts with those of one hook."""
        return HookCounts(
            self.runs + hook.durations.count + sum(ring.runs for ring, _ in rings.get(hook, ())),
            self.failures + hook.failures,
            self.skipped + hook.skipped,
        )


class _Gone(NamedTuple):
    """What hooks of one name and point counted that are gone."""

    earlier: HookCounts = HookCounts()
    hooks: tuple[RegisteredHook, ...] = ()
    """Those that went last and may come back: what they count is not summed up yet."""

    def counts(self, rings: Rings) -> HookCounts:
        """Return what all of them counted."""
        found = self.earlier
        for hook in self.hooks:
            found = found.plus(hook, rings)
        return found


class Chain:
    """The hooks that run at a point now, in order; replaced as a whole when anything changes."""

    __slots__ = (
        "allowed",
        "behind",
        "calls",
        "direct",
        "hooks",
        "names_fixed",
        "point",
        "queued",
        "quiet",
        "ring",
        "slow_s",
    )

    def __init__(self, point: str, hooks: Iterable[RegisteredHook]) -> None:
        enabled = [hook for hook in hooks if hook.enabled]
        self.point = point
        self._set(hook for hook in enabled if not hook.queued)
        self.queued = tuple(_QueuedChain(point, hook) for hook in enabled if hook.queued)
        """Those that are queued, each a chain of its own."""
        self.allowed = allowed_at(point)
        self.behind = point == HookPoint.AFTER_STATE_WRITE
        """Whether it has happened: then all of them run, and an error is raised after that."""
        self.names_fixed = point in STATE_POINTS
        """Whether the context's data has just the names that the operation gave it."""

    def _set(self, hooks: Iterable[RegisteredHook]) -> None:
        self.hooks = tuple(hooks)
        """In line, in their order."""
        self.calls = tuple(hook.call for hook in self.hooks)
        self.direct = all(hook.direct for hook in self.hooks)
        """Whether they can be called one after the other without a question asked."""
        self.slow_s = min((hook.slow_s for hook in self.hooks), default=0.0)
        """If all together took less, none was slow."""
        self.quiet = True
        """Whether none has ever answered, failed or been slow: then not every run is measured."""
        self.ring = Ring()
        """How long they took, in runs in which all of them said to go on."""

    def __bool__(self) -> bool:
        return bool(self.hooks or self.queued)


class _QueuedChain(Chain):
    """One hook that runs when the operation is over, so all that it can say is to go on."""

    __slots__ = ()

    def __init__(self, point: str, hook: RegisteredHook) -> None:
        super().__init__(point, ())
        self._set((hook,))
        self.allowed = GOING_ON


class Registry:
    """Hooks by point, ordered by priority, then by when they were registered.

    Safe to share between threads: readers see a chain as it was or as it is.
    """

    def __init__(self) -> None:
        self._lock = child_safe_lock()
        self._hooks: dict[str, list[RegisteredHook]] = {}
        self._chains: dict[str, Chain] = {}
        self._retired: list[Chain] = []
        self._here: set[RegisteredHook] = set()
        self._gone: dict[tuple[str, str], _Gone] = {}
        self._enabled = True
        self._listeners: list[Callable[[], None]] = []

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have a function called after every change, and now."""
        self._listeners.append(listener)
        listener()

    def chain(self, point: str) -> Chain:
        """Return what runs at a point; false if nothing does."""
        found = self._chains.get(point)
        return Chain(point, ()) if found is None else found

    def stands(self, point: str) -> bool:
        """Whether anything runs at a point."""
        chain = self._chains.get(point)
        return chain is not None and bool(chain)

    # --- changing

    def add(self, hook: RegisteredHook) -> RegisteredHook:
        """Put a hook at its point; `DuplicateHookError` if one of that name is there."""
        if hook.queued and not _may_queue(hook.point):
            rule = "is for hooks after an operation; before it they run in line"
            raise InvalidArgumentError("queued", True, rule)
        if hook.queued and hook.fails_closed:
            rule = "must be ignore for a queued hook: the operation is over when it runs"
            raise InvalidArgumentError("on_failure", hook.on_failure, rule)
        if hook.point == HookPoint.AFTER_STATE_WRITE and hook.on_failure is OnFailure.CANCEL:
            rule = "must be ignore or raise behind a write: it has happened"
            raise InvalidArgumentError("on_failure", hook.on_failure, rule)
        with self._lock:
            there = self._hooks.setdefault(hook.point, [])
            if any(other.name == hook.name for other in there):
                raise DuplicateHookError(hook.name, hook.point)
            insort(there, hook, key=lambda one: one.priority)
            if hook.breaker is not None:
                hook.breaker.on_change(self.refresh)
            self._changed()
        return hook

    def remove(self, name: str, point: object = None) -> int:
        """Take a hook away, at one point or wherever it is; how many that were."""
        with self._lock:
            found = self._named(name, point)
            for hook in found:
                self._take_away(hook)
            self._changed()
        return len(found)

    def discard(self, hook: RegisteredHook) -> bool:
        """Take just this hook away, if it is here; whether it was."""
        with self._lock:
            there = any(one is hook for one in self._hooks.get(hook.point, ()))
            if there:
                self._take_away(hook)
                self._changed()
        return there

    def _take_away(self, hook: RegisteredHook) -> None:
        there = self._hooks[hook.point]
        there.remove(hook)
        if not there:
            del self._hooks[hook.point]

    def clear(self, point: object = None) -> int:
        """Take all hooks away, of one point or of all; how many that were.

        Those stay by which other processes are asked: their hooks are not this process's to clear.
        """
        where = None if point is None else point_of(point)
        gone = 0
        with self._lock:
            for one in list(self._hooks) if where is None else [where]:
                there = self._hooks.pop(one, [])
                staying = [hook for hook in there if getattr(hook.hook, "stays", False) is True]
                if staying:
                    self._hooks[one] = staying
                gone += len(there) - len(staying)
            self._changed()
        return gone

    def switch(self, name: str, point: object, *, enabled: bool) -> None:
        """Let a hook run, or not."""
        with self._lock:
            for hook in self._named(name, point):
                hook.enabled = enabled
            self._changed()

    @property
    def enabled(self) -> bool:
        """Whether hooks run at all."""
        return self._enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        with self._lock:
            self._enabled = bool(enabled)
            self._changed()

    def refresh(self) -> None:
        """Look again at what can be called without a question: a breaker has opened or closed."""
        with self._lock:
            self._changed()

    def _changed(self) -> None:
        self._keep_counts()
        self._retire()
        self._chains = (
            {point: Chain(point, hooks) for point, hooks in self._hooks.items() if hooks}
            if self._enabled
            else {}
        )
        for listener in self._listeners:
            listener()

    def _keep_counts(self) -> None:
        """Remember what hooks have counted that are gone: no counter may go down."""
        here = {hook for hooks in self._hooks.values() for hook in hooks}
        for hook in here - self._here:
            gone = self._gone.get((hook.name, hook.point))
            if gone is not None:
                rest = tuple(one for one in gone.hooks if one is not hook)
                self._gone[hook.name, hook.point] = gone._replace(hooks=rest)
        away = self._here - here
        rings = self._rings() if away else {}
        for hook in away:
            earlier, hooks = self._gone.pop((hook.name, hook.point), _Gone())
            if len(hooks) == _MOST_BACK:
                earlier, hooks = earlier.plus(hooks[0], rings), hooks[1:]
            self._gone[hook.name, hook.point] = _Gone(earlier, (*hooks, hook))
        while len(self._gone) > _MOST_GONE:
            del self._gone[next(iter(self._gone))]
        self._here = here

    def _retire(self) -> None:
        """Give what chains measured to their hooks, but not at once: runs may still go on."""
        self._retired += self._running()
        while len(self._retired) > _RETIRED:
            chain = self._retired.pop(0)
            for place, hook in enumerate(chain.hooks):
                hook.durations.take_all(chain.ring.samples(place), chain.ring.runs)

    # --- looking

    def _named(self, name: str, point: object) -> list[RegisteredHook]:
        where = None if point is None else point_of(point)
        found = [
            hook
            for at, hooks in self._hooks.items()
            if where is None or at == where
            for hook in hooks
            if hook.name == name
        ]
        if not found:
            if isinstance(name, HookPoint) or name in self._hooks or _is_point(name):
                rule = "must be the name of a hook, not a point; clear(point) takes all of a point"
                raise InvalidArgumentError("name", name, rule)
            raise HookNotFoundError(name, where)
        return found

    def at(self, point: object) -> list[RegisteredHook]:
        """Return the hooks of a point in their order, with the disabled ones."""
        where = point_of(point)
        with self._lock:
            return list(self._hooks.get(where, ()))

    def all(self) -> list[RegisteredHook]:
        """Return every hook."""
        with self._lock:
            return [hook for hooks in self._hooks.values() for hook in hooks]

    def stats(self) -> dict[str, list[HookStats]]:
        """Return how every hook has done, by point."""
        by_point: dict[str, list[HookStats]] = {}
        with self._lock:
            rings = self._rings()
            for hook in self.all():
                by_point.setdefault(hook.point, []).append(hook.stats(rings.get(hook, ())))
        return by_point

    def counts(self) -> dict[tuple[str, str], HookCounts]:
        """Return what hooks have counted, by name and point; of those that are gone too."""
        with self._lock:
            rings = self._rings()
            found = {place: gone.counts(rings) for place, gone in self._gone.items()}
            for hook in self.all():
                place = hook.name, hook.point
                found[place] = found.get(place, HookCounts()).plus(hook, rings)
        return found

    def _running(self) -> list[Chain]:
        """Return the chains that run now, those of queued hooks included."""
        found = self._chains.values()
        return [one for chain in found for one in (chain, *chain.queued) if one.hooks]

    def _rings(self) -> Rings:
        """Return where it stands how long hooks took, beside what they have themselves."""
        rings: Rings = {}
        for chain in (*self._running(), *self._retired):
            for place, hook in enumerate(chain.hooks):
                rings.setdefault(hook, []).append((chain.ring, place))
        return rings


def _is_point(name: object) -> bool:
    return type(name) is str and name in {point.value for point in HookPoint}


def _may_queue(point: str) -> bool:
    """Whether nobody waits for what hooks at a point say."""
    return not is_before(point) and point not in (
        HookPoint.STATE_CONFLICT,
        HookPoint.TOOL_VALIDATION,
    )
