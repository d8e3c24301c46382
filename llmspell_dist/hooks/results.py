"""What a hook can answer: the nine results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, ClassVar, Final

from llmspell_dist.errors import InvalidArgumentError

__all__ = [
    "CONTINUE",
    "Cache",
    "Cancel",
    "Continue",
    "Fork",
    "ForkOperation",
    "HookResult",
    "Modified",
    "Redirect",
    "Replace",
    "Retry",
    "Skipped",
]


MAX_FORKED: Final = 16


@dataclass(frozen=True, slots=True)
class HookResult:
    """What a hook answers; None is the same as `Continue`."""

    name: ClassVar[str] = ""
    should_continue: ClassVar[bool] = False
    """Whether the next hook of the chain runs."""


@dataclass(frozen=True, slots=True)
class Continue(HookResult):
    """Go on as if there were no hook."""

    name: ClassVar[str] = "continue"
    should_continue: ClassVar[bool] = True


CONTINUE: Final = Continue()


@dataclass(frozen=True, slots=True)
class Modified(HookResult):
    """Go on with other data: what is named here replaces those parts of the context's data."""

    data: Mapping[str, Any]
    name: ClassVar[str] = "modified"
    should_continue: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.data, Mapping):
            raise InvalidArgumentError("data", self.data, "must be a mapping of names to values")


@dataclass(frozen=True, slots=True)
class Cancel(HookResult):
    """Do not carry the operation out; its caller gets `OperationCancelledError`."""

    reason: str
    name: ClassVar[str] = "cancel"

    def __post_init__(self) -> None:
        if type(self.reason) is not str or not self.reason:
            raise InvalidArgumentError("reason", self.reason, "must be text")


@dataclass(frozen=True, slots=True)
class Redirect(HookResult):
    """Carry the operation out elsewhere: in the scope `target`, under `key` if it is given."""

    target: str
    key: str | None = None
    name: ClassVar[str] = "redirect"


@dataclass(frozen=True, slots=True)
class Replace(HookResult):
    """Do not carry the operation out; its caller gets this result."""

    value: Any
    name: ClassVar[str] = "replace"


@dataclass(frozen=True, slots=True)
class Retry(HookResult):
    """Try again after `delay` seconds, at most `max_attempts` times in all."""

    delay: float = 1.0
    max_attempts: int = 3
    name: ClassVar[str] = "retry"

    def __post_init__(self) -> None:
        fits = type(self.delay) in (int, float) and isfinite(self.delay) and self.delay >= 0
        if not fits:
            raise InvalidArgumentError("delay", self.delay, "must be seconds of at least 0")
        if type(self.max_attempts) is not int or self.max_attempts < 1:
            rule = "must be an int of at least 1"
            raise InvalidArgumentError("max_attempts", self.max_attempts, rule)


@dataclass(frozen=True, slots=True)
class ForkOperation:
    """An operation to carry out beside the one that the hook saw."""

    id: str
    operation_type: str
    """A method of the state manager: ``set``, ``append``, …"""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Its arguments by name."""


@dataclass(frozen=True, slots=True)
class Fork(HookResult):
    """Go on, and carry out these operations beside it."""

    operations: tuple[ForkOperation, ...]
    """At most 16, each with an id of its own."""
    name: ClassVar[str] = "fork"
    should_continue: ClassVar[bool] = True

    def __post_init__(self) -> None:
        operations = tuple(self.operations)
        ids = {one.id for one in operations if isinstance(one, ForkOperation)}
        if not operations or len(operations) > MAX_FORKED or len(ids) < len(operations):
            rule = (
                f"must be 1 to {MAX_FORKED} operations (ForkOperation), each with an id of its own"
            )
            raise InvalidArgumentError("operations", operations, rule)
        object.__setattr__(self, "operations", operations)

    @classmethod
    def joined(cls, forks: Iterable[Fork]) -> Fork:
        """Return several as one; an id that was there before gets a number: ``x``, ``x#2``."""
        taken: set[str] = set()
        operations = []
        for one in (one for fork in forks for one in fork.operations):
            name, number = one.id, 2
            while name in taken:
                name, number = f"{one.id}#{number}", number + 1
            taken.add(name)
            operations.append(one if name == one.id else replace(one, id=name))
        whole = cls.__new__(cls)  # each was checked when it was made
        object.__setattr__(whole, "operations", tuple(operations))
        return whole


@dataclass(frozen=True, slots=True)
class Cache(HookResult):
    """Answer from this process's memory, if it holds `key`; else keep the result for `ttl` s.

    Only reads of values, `get` and `get_many`, are answered so, and kept by key and type; other
    reads, and those of an `update` or a transaction, go to the server as if nothing was said.
    """

    key: str
    ttl: float
    until_written: bool = False
    """For `get`: no longer than this client has not written the key; what expires is not kept."""
    name: ClassVar[str] = "cache"

    def __post_init__(self) -> None:
        if type(self.key) is not str or not self.key:
            raise InvalidArgumentError("key", self.key, "must be text that is not empty")
        if type(self.ttl) not in (int, float) or not isfinite(self.ttl) or self.ttl <= 0:
            raise InvalidArgumentError("ttl", self.ttl, "must be seconds over 0")
        if type(self.until_written) is not bool:
            raise InvalidArgumentError("until_written", self.until_written, "must be True or False")


@dataclass(frozen=True, slots=True)
class Skipped(HookResult):
    """Go on: the hook had nothing to do here."""

    reason: str = ""
    name: ClassVar[str] = "skipped"
    should_continue: ClassVar[bool] = True
