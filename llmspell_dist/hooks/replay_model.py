"""What a replay is asked and what it says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.hooks.hook import checked_tags
from llmspell_dist.hooks.modifications import Modification, modifications_of

if TYPE_CHECKING:
    from llmspell_dist.hooks.comparator import Comparison
    from llmspell_dist.hooks.errors import ReplayDivergedError
    from llmspell_dist.hooks.kept import RecordedFailure
    from llmspell_dist.hooks.recording import Execution
    from llmspell_dist.hooks.results import HookResult

__all__ = ["BatchReport", "ReplayConfig", "ReplayMode", "Replayed"]


class ReplayMode(StrEnum):
    """What a replay may change, and what it may do."""

    EXACT = "exact"
    """The recorded context and inputs, the recorded version of the hook."""
    MODIFIED = "modified"
    """The recorded context with modifications; any version of the hook."""
    SIMULATE = "simulate"
    """As modified, and nothing that the hook does to state has effect."""
    DEBUG = "debug"
    """As modified, within a debugging session."""

    @classmethod
    def coerce(cls, value: object) -> ReplayMode:
        """Return the mode of that name."""
        try:
            return cls(value)  # type: ignore[arg-type] # what is none raises
        except ValueError:
            rule = f"must be one of {', '.join(cls)}"
            raise InvalidArgumentError("mode", value, rule) from None

    @classmethod
    def of_a_run(cls, value: object) -> ReplayMode:
        """Return the mode of that name, if it can be asked for: debug is of a session alone."""
        mode = cls.coerce(value)
        if mode is cls.DEBUG:
            rule = "must not be debug: that is what a session of `debug` does"
            raise InvalidArgumentError("mode", value, rule)
        return mode


@dataclass(frozen=True, slots=True)
class ReplayConfig:
    """How executions are replayed."""

    modifications: Mapping[str, Any] | Iterable[Modification] = ()
    """Changes to the recorded context; a mapping from paths to values will do."""
    compare_results: bool = True
    timeout: float | None = 30.0
    """Seconds that a hook may take; None: any time."""
    stop_on_error: bool = False
    """Whether a batch ends with the first hook that raised and had not, or cannot be replayed."""
    tags: tuple[str, ...] = ()
    new_inputs: Literal["refuse", "take"] = "refuse"
    """What becomes of an input that was not recorded: `ReplayDivergedError` in the hook, or the
    input is taken from outside and the difference noted. Exact and simulated replays refuse."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "modifications", modifications_of(self.modifications))
        object.__setattr__(self, "tags", checked_tags(self.tags))
        limit = self.timeout
        if limit is not None and (
            type(limit) not in (int, float) or not isfinite(limit) or limit <= 0
        ):
            raise InvalidArgumentError("timeout", limit, "must be seconds over 0, or None")
        if self.new_inputs not in ("refuse", "take"):
            raise InvalidArgumentError("new_inputs", self.new_inputs, "must be refuse or take")


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of one replay."""

    execution: Execution
    """What was recorded."""
    mode: ReplayMode
    result: HookResult | None = None
    error: RecordedFailure | None = None
    """What the hook raised, or why it could not be replayed."""
    ran: bool = True
    """Whether the hook was called."""
    duration: timedelta = timedelta(0)
    comparison: Comparison | None = None
    """None if it was not asked for, or the hook was not called."""
    divergence: ReplayDivergedError | None = None
    """The first input that was asked for otherwise than it was recorded."""
    refused_writes: tuple[str, ...] = ()
    """Simulate: the scopes that the hook wanted to write to."""
    gaps: tuple[str, ...] = ()
    """What could not be recorded, so that the hook was told less than the first time."""
    tags: tuple[str, ...] = ()

    @property
    def identical(self) -> bool:
        """Whether it took the same inputs and answered the same."""
        return (
            self.ran
            and self.divergence is None
            and (self.comparison is None or self.comparison.identical)
        )

    @property
    def first_difference(self) -> str | None:
        """The first difference in a sentence: of the inputs, else of the result."""
        if not self.ran:
            return "not replayed" if self.error is None else self.error.message
        if self.divergence is not None:
            return str(self.divergence)
        if self.comparison is not None and not self.comparison.identical:
            return str(self.comparison.first)
        return None


@dataclass(slots=True)
class BatchReport:
    """What became of a batch, in the order in which it was given."""

    replays: list[Replayed] = field(default_factory=list)
    total: int = 0
    stopped: bool = False
    """Whether it ended early, at an error."""
    missing: list[str] = field(default_factory=list)
    """Ids of executions that are not in the history any more."""

    @property
    def identical(self) -> int:
        """How many did the same."""
        return sum(one.identical for one in self.replays)

    @property
    def different(self) -> list[Replayed]:
        """Those that did not."""
        return [one for one in self.replays if not one.identical]

    @property
    def failed(self) -> int:
        """How many raised, could not be replayed, or are gone."""
        return sum(one.error is not None for one in self.replays) + len(self.missing)

    @property
    def first_difference(self) -> str | None:
        """The first difference, with the hook and the execution."""
        for one in self.replays:
            said = one.first_difference
            if said is not None:
                return f"{one.execution.replay_id} in {one.execution.id}: {said}"
        if self.missing:
            return f"{self.missing[0]} is not in the history any more"
        return None

    def __str__(self) -> str:
        said = f"{self.identical} of {self.total} identical"
        first = self.first_difference
        return said if first is None else f"{said}; first difference: {first}"
