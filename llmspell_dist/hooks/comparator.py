"""Where two executions of a hook differ: what was answered then, and what is answered now.

Pure: two outcomes in, a `Comparison` out. Times and durations are no difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import IntEnum, StrEnum
from typing import Any, Final

from llmspell_dist.errors import shorten
from llmspell_dist.hooks.kept import RecordedFailure, keep
from llmspell_dist.hooks.results import CONTINUE, Cancel, HookResult

__all__ = ["Comparison", "Difference", "DifferenceType", "Severity", "compare_outcomes"]

MAX_DIFFERENCES: Final = 100
IGNORED: Final = frozenset({"timestamp", "duration", "duration_us"})
"""Names of parts that differ from run to run and mean nothing."""


class Severity(IntEnum):
    """How much a difference matters, the more the higher."""

    INFO = 0
    """The same to whoever called the operation, as a reason in other words."""
    WARNING = 1
    """Other data of the same shape."""
    ERROR = 2
    """Parts that are there in one only, or of another type; another error."""
    CRITICAL = 3
    """Another decision: the operation would go another way."""


class DifferenceType(StrEnum):
    """What is different as a whole."""

    VARIANT = "VariantMismatch"
    """Another kind of result."""
    DATA = "DataMismatch"
    """The same kind with other data."""
    ERROR = "ErrorMismatch"
    """One raised, or both raised something else."""
    CANCELLATION = "CancellationMismatch"
    """One cancelled the operation and the other did not, or for another reason."""
    MULTIPLE = "Multiple"
    """Several of these."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One place at which two outcomes differ."""

    path: str
    """``result.data.amount``, ``error.message``, ``context.metadata.x``."""
    original: Any
    replayed: Any
    severity: Severity

    def __str__(self) -> str:
        return f"{self.path}: {shorten(self.original)} became {shorten(self.replayed)}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """How an outcome compares with the one that was recorded."""

    type: DifferenceType | None
    """None: they are identical."""
    differences: tuple[Difference, ...] = ()
    """In the order of the parts; at most 100."""
    similarity_score: float = 1.0
    """The share of equal parts, from 0 to 1."""

    @property
    def identical(self) -> bool:
        """Whether there is no difference."""
        return self.type is None

    @property
    def first(self) -> Difference | None:
        """The first difference."""
        return self.differences[0] if self.differences else None

    @property
    def severity(self) -> Severity | None:
        """That of the difference which matters most."""
        return max((one.severity for one in self.differences), default=None)

    @property
    def summary(self) -> str:
        """All of it in a sentence."""
        if self.type is None:
            return "identical"
        count = len(self.differences)
        more = "" if count == 1 else f", and {count - 1} more"
        return f"{self.type}: {self.first}{more} ({self.similarity_score:.0%} alike)"


class _Walk:
    """Compares part by part, and counts."""

    def __init__(self) -> None:
        self.equal = 0
        self.unequal = 0
        self.found: list[Difference] = []

    def differ(self, path: str, original: Any, replayed: Any, severity: Severity) -> None:
        self.unequal += 1
        if len(self.found) < MAX_DIFFERENCES:
            self.found.append(Difference(path, original, replayed, severity))

    def parts(self, path: str, original: Any, replayed: Any) -> None:
        """Compare two values of any kind."""
        cls = type(original)
        if cls is not type(replayed):
            self.differ(path, original, replayed, Severity.ERROR)
        elif cls is dict:
            self._maps(path, original, replayed)
        elif cls in (list, tuple):
            for place in range(max(len(original), len(replayed))):
                inner = f"{path}[{place}]"
                if place >= len(replayed):
                    self.differ(inner, original[place], None, Severity.ERROR)
                elif place >= len(original):
                    self.differ(inner, None, replayed[place], Severity.ERROR)
                else:
                    self.parts(inner, original[place], replayed[place])
            if not original and not replayed:
                self.equal += 1
        elif original == replayed or (original != original and replayed != replayed):  # noqa: PLR0124 - NaN
            self.equal += 1
        else:
            self.differ(path, original, replayed, Severity.WARNING)

    def _maps(self, path: str, original: dict[Any, Any], replayed: dict[Any, Any]) -> None:
        names = [name for name in {**original, **replayed} if name not in IGNORED]
        for name in names:
            inner = f"{path}.{name}"
            if name not in replayed:
                self.differ(inner, original[name], None, Severity.ERROR)
            elif name not in original:
                self.differ(inner, None, replayed[name], Severity.ERROR)
            else:
                self.parts(inner, original[name], replayed[name])
        if not names:
            self.equal += 1


def compare_outcomes(
    original: tuple[HookResult | None, RecordedFailure | None],
    replayed: tuple[HookResult | None, RecordedFailure | None],
) -> Comparison:
    """Return where two outcomes differ; each is a result or an error."""
    walk = _Walk()
    types = list(_types(walk, original, replayed))
    if not types:
        return Comparison(None)
    whole = types[0] if len(types) == 1 else DifferenceType.MULTIPLE
    score = walk.equal / (walk.equal + walk.unequal)
    return Comparison(whole, tuple(walk.found), round(score, 4))


def _types(
    walk: _Walk,
    original: tuple[HookResult | None, RecordedFailure | None],
    replayed: tuple[HookResult | None, RecordedFailure | None],
) -> Iterator[DifferenceType]:
    (was, was_error), (now, now_error) = original, replayed
    if was_error is not None or now_error is not None:
        if _errors(walk, was_error, now_error):
            yield DifferenceType.ERROR
        if was_error is not None and now_error is not None:
            return
        # One answered: what it answered is a difference only if it stops the operation.
        if isinstance(was, Cancel) or isinstance(now, Cancel):
            yield DifferenceType.CANCELLATION
        return
    was, now = was or CONTINUE, now or CONTINUE
    if was.name != now.name:
        walk.differ("result", was.name, now.name, Severity.CRITICAL)
        cancelled = isinstance(was, Cancel) or isinstance(now, Cancel)
        yield DifferenceType.CANCELLATION if cancelled else DifferenceType.VARIANT
        return
    walk.equal += 1
    before = walk.unequal
    for one in fields(was):
        path, left, right = f"result.{one.name}", getattr(was, one.name), getattr(now, one.name)
        if one.name == "reason":
            if left != right:
                walk.differ(path, left, right, Severity.INFO)
            else:
                walk.equal += 1
        else:
            walk.parts(path, keep(left), keep(right))
    if walk.unequal > before:
        yield DifferenceType.CANCELLATION if isinstance(was, Cancel) else DifferenceType.DATA


def _errors(walk: _Walk, was: RecordedFailure | None, now: RecordedFailure | None) -> bool:
    """Compare two errors; whether they differ."""
    if was is None or now is None:
        walk.differ(
            "error",
            None if was is None else f"{was.type}: {was.message}",
            None if now is None else f"{now.type}: {now.message}",
            Severity.CRITICAL,
        )
        return True
    before = walk.unequal
    if was.type != now.type:
        walk.differ("error.type", was.type, now.type, Severity.ERROR)
    else:
        walk.equal += 1
    if was.message != now.message:
        walk.differ("error.message", was.message, now.message, Severity.WARNING)
    else:
        walk.equal += 1
    return walk.unequal > before
