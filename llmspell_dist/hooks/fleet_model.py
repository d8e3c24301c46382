"""Which processes there are and which hooks they have for the whole fleet. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from math import isfinite
from typing import Any, Final

import msgpack

from llmspell_dist.errors import InvalidArgumentError, SpellError
from llmspell_dist.hooks.effects import allowed_at
from llmspell_dist.hooks.points import point_of
from llmspell_dist.hooks.results import Cancel

__all__ = [
    "FleetHook",
    "FleetMap",
    "FleetProcess",
    "FleetRun",
    "checked_labels",
    "pack_process",
    "unpack_process",
]

FORMAT: Final = 1
MAX_LABELS: Final = 32
MAX_HOPS: Final = 16
MAX_TIMEOUT_S: Final = 86_400.0


class FleetRun(StrEnum):
    """Which processes run a fleet hook, of those that have registered it."""

    EVERY = "every"
    ONE = "one"
    LABELS = "labels"


@dataclass(frozen=True, slots=True)
class FleetHook:
    """A hook of one process that may run for what happens in another one."""

    name: str
    point: str
    run: FleetRun = FleetRun.EVERY
    labels: tuple[tuple[str, str], ...] = ()
    """With `run` labels: what a process must say of itself to run it."""
    max_hops: int = 3
    timeout: float = 30.0
    """Seconds after which nobody begins or waits any more."""
    await_remote: bool = False
    continue_on_failure: bool = True
    priority: int = 0
    """Where it stands among the hooks of the process that asks: lower runs first."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "point", str(point_of(self.point)))
        if type(self.max_hops) is not int or not 0 <= self.max_hops <= MAX_HOPS:
            rule = f"must be an int from 0 to {MAX_HOPS}"
            raise InvalidArgumentError("max_hops", self.max_hops, rule)
        limit = self.timeout
        fits = type(limit) in (int, float) and isfinite(limit) and 0 < limit <= MAX_TIMEOUT_S
        if not fits:
            rule = f"must be seconds over 0, at most {MAX_TIMEOUT_S:,.0f}"
            raise InvalidArgumentError("timeout", limit, rule)
        for name in ("await_remote", "continue_on_failure"):
            if type(getattr(self, name)) is not bool:
                raise InvalidArgumentError(name, getattr(self, name), "must be True or False")
        if type(self.priority) is not int:
            raise InvalidArgumentError("priority", self.priority, "must be an int")
        if not self.continue_on_failure and Cancel not in allowed_at(self.point):
            rule = "must be True at a point that allows no Cancel: it has happened"
            raise InvalidArgumentError("continue_on_failure", False, rule)

    def strictest(self, other: FleetHook) -> FleetHook:
        """Return what holds where two processes have different options under one name.

        Whoever guards something must not lose its veto because another process asked for less.
        """
        alike = self.run is other.run
        return replace(
            self,
            # Those that are asked by name are those that would take it from the queue, and more.
            run=self.run if alike else FleetRun.EVERY,
            labels=self.labels if alike else (),
            max_hops=max(self.max_hops, other.max_hops),
            timeout=max(self.timeout, other.timeout),
            await_remote=self.await_remote or other.await_remote,
            continue_on_failure=self.continue_on_failure and other.continue_on_failure,
            priority=min(self.priority, other.priority),
        )

    def differences(self, other: FleetHook) -> list[str]:
        """Return the options that are not the same in another process's hook of this name."""
        return [
            one.name for one in fields(self) if getattr(self, one.name) != getattr(other, one.name)
        ]

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether a process with these labels runs it."""
        return all(labels.get(name) == value for name, value in self.labels)


@dataclass(frozen=True, slots=True)
class FleetProcess:
    """One process of the fleet."""

    id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    hooks: tuple[FleetHook, ...] = ()
    name: str = ""
    """What its client calls itself, ``host:pid`` unless the options say otherwise."""

    def hook(self, name: str, point: str) -> FleetHook | None:
        """Return one of its hooks."""
        return next((one for one in self.hooks if one.name == name and one.point == point), None)


def checked_labels(labels: object) -> dict[str, str]:
    """Return labels: a mapping from text to text."""
    if not isinstance(labels, Mapping):
        raise InvalidArgumentError("labels", labels, "must be a mapping from names to values")
    if len(labels) > MAX_LABELS:
        raise InvalidArgumentError("labels", labels, f"must be at most {MAX_LABELS}")
    for name, value in labels.items():
        for part in (name, value):
            if type(part) is not str or not 0 < len(part) <= 128:
                rule = "must be text of 1 to 128 characters, names and values"
                raise InvalidArgumentError("labels", part, rule)
    return dict(sorted(labels.items()))


def pack_process(labels: Mapping[str, str], hooks: Iterable[FleetHook], name: str = "") -> bytes:
    """Return what a process says of itself; the same bytes for the same things."""
    said = {
        "n": name,
        "l": dict(sorted(labels.items())),
        "h": sorted(
            [
                one.name,
                one.point,
                str(one.run),
                [list(pair) for pair in one.labels],
                one.max_hops,
                float(one.timeout),
                one.await_remote,
                one.continue_on_failure,
                one.priority,
            ]
            for one in hooks
        ),
    }
    packed: bytes = msgpack.packb(said)
    return bytes((FORMAT,)) + packed


def unpack_process(process: str, packed: bytes) -> FleetProcess | None:
    """Return what a process said; None if it is of a later release, or damaged."""
    if packed[:1] != bytes((FORMAT,)):
        return None
    try:
        said: dict[str, Any] = msgpack.unpackb(packed[1:])
        hooks = tuple(
            FleetHook(
                name,
                point,
                FleetRun(run),
                tuple((key, value) for key, value in labels),
                *rest,
            )
            for name, point, run, labels, *rest in said["h"]
        )
        return FleetProcess(process, checked_labels(said["l"]), hooks, str(said["n"]))
    except (KeyError, TypeError, ValueError, SpellError, msgpack.UnpackException):
        return None


class FleetMap:
    """All processes, and who is to be asked for what; replaced as a whole when anything changes."""

    def __init__(self, processes: Iterable[FleetProcess] = ()) -> None:
        self.processes = {one.id: one for one in sorted(processes, key=lambda one: one.id)}

    def wanted(self, own: str) -> dict[tuple[str, str], FleetHook]:
        """Return the hooks by name and point for which others may have to be asked.

        Where processes have different options under one name, the strictest hold for all.
        """
        found: dict[tuple[str, str], FleetHook] = {}
        for process in self.processes.values():
            for hook in process.hooks:
                place = (hook.name, hook.point)
                known = found.get(place)
                found[place] = hook if known is None else known.strictest(hook)
        return {place: hook for place, hook in found.items() if self.targets(own, *place)}

    def name_of(self, process: str) -> str:
        """Return what people know a process by; its id if it is not there."""
        known = self.processes.get(process)
        return process if known is None or not known.name else known.name

    def targets(self, own: str, name: str, point: str) -> list[str]:
        """Return the other processes that are to run a hook when its point is reached in `own`.

        Of a hook for one process: nobody if `own` has it itself, else all that have it, of which
        one will.
        """
        having = [
            (process, hook)
            for process in self.processes.values()
            if (hook := process.hook(name, point)) is not None
        ]
        for_one = all(hook.run is FleetRun.ONE for _, hook in having)
        if for_one and any(process.id == own for process, _ in having):
            return []
        return [
            process.id
            for process, hook in having
            if process.id != own and hook.matches(process.labels)
        ]
