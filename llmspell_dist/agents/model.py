"""An agent's state as values: messages, tool statistics, metadata, and all of it together.

Nothing here does I/O. What is saved is loaded equal, so everything must be storable: contents,
variables and custom data are any values that the codec takes, and times are aware datetimes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableSequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from llmspell_dist.agents.execution import ExecutionState, ExecutionStatus
from llmspell_dist.errors import InvalidArgumentError

if TYPE_CHECKING:
    from llmspell_dist.agents.snapshot import Snapshot
    from llmspell_dist.revision import Revision

__all__ = [
    "AgentMetadata",
    "AgentState",
    "Clock",
    "Message",
    "Role",
    "ToolStats",
    "ToolUsage",
    "utc_now",
]

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the time of this machine, aware, UTC."""
    return datetime.now(UTC)


class Role(StrEnum):
    """Who said a message. The values stand in stored state and never change."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"

    @classmethod
    def coerce(cls, value: Role | str) -> Role:
        """Return the role, given as itself or by its value."""
        try:
            return cls(value)
        except ValueError:
            rule = f"must be one of {', '.join(cls)}"
            raise InvalidArgumentError("role", value, rule) from None


def aware(argument: str, moment: datetime | None) -> datetime | None:
    """Return a moment as it is; one without a time zone names no moment and is refused."""
    if moment is not None and (type(moment) is not datetime or moment.utcoffset() is None):
        rule = "must be an aware datetime: add a tzinfo, for example UTC"
        raise InvalidArgumentError(argument, moment, rule)
    return moment


def _text(argument: str, value: object) -> None:
    if type(value) is not str or not value:
        raise InvalidArgumentError(argument, value, "must be a str that is not empty")


def _dict(argument: str, value: object) -> None:
    if type(value) is not dict or any(type(name) is not str for name in value):
        raise InvalidArgumentError(argument, value, "must be a dict whose keys are str")


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: Any
    """Text, or whatever the model's interface has: a list of parts, a tool call."""
    timestamp: datetime
    metadata: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "role", Role.coerce(self.role))
        if self.timestamp is None:
            raise InvalidArgumentError("timestamp", None, "must be an aware datetime")
        aware("timestamp", self.timestamp)
        if self.metadata is not None:
            _dict("metadata", self.metadata)


@dataclass(slots=True)
class ToolStats:
    """How often a tool was called, and how long it took."""

    invocation_count: int = 0
    failed_count: int = 0
    total_duration_ms: float = 0
    last_used: datetime | None = None

    @property
    def average_duration_ms(self) -> float:
        """Milliseconds per call; 0 before the first."""
        return self.total_duration_ms / self.invocation_count if self.invocation_count else 0.0


@dataclass(slots=True)
class ToolUsage:
    """Tool calls of an agent, all together and by the tool's name."""

    successful: int = 0
    failed: int = 0
    tool_performance: dict[str, ToolStats] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All calls."""
        return self.successful + self.failed

    def record(self, tool: str, duration_ms: float, success: bool, at: datetime) -> None:
        """Count one call."""
        stats = self.tool_performance.setdefault(tool, ToolStats())
        stats.invocation_count += 1
        stats.total_duration_ms += duration_ms
        stats.last_used = at
        if success:
            self.successful += 1
        else:
            self.failed += 1
            stats.failed_count += 1


@dataclass(slots=True)
class AgentMetadata:
    """What an agent is, for people and for who looks for one."""

    name: str
    description: str | None = None
    version: str = "1.0.0"
    capabilities: list[str] = field(default_factory=list)
    provider_config: Any = None
    """How its model is reached: any storable value; keep secrets out of it."""
    tags: list[str] = field(default_factory=list)


@dataclass(slots=True)
class AgentState:
    """Everything that makes an agent go on where it was."""

    agent_id: str
    agent_type: str
    metadata: AgentMetadata
    creation_time: datetime
    last_modified: datetime
    conversation: MutableSequence[Message] = field(default_factory=list)
    context: dict[str, Any] = field(default_factory=dict)
    """Context variables."""
    tool_usage: ToolUsage = field(default_factory=ToolUsage)
    execution: ExecutionState = field(default_factory=ExecutionState)
    custom: dict[str, Any] = field(default_factory=dict)
    """Custom data."""
    hook_registrations: list[Any] = field(default_factory=list)
    last_hook_execution: datetime | None = None
    correlation_context: Any = None
    schema_version: int = 1
    stored: Snapshot | None = field(default=None, compare=False, repr=False)
    """What was loaded or saved last, which `save` compares with; None for a new agent."""

    @classmethod
    def new(
        cls,
        agent_id: str,
        agent_type: str,
        *,
        name: str | None = None,
        description: str | None = None,
        version: str = "1.0.0",
        capabilities: Iterable[str] = (),
        provider_config: Any = None,
        tags: Iterable[str] = (),
        now: Clock = utc_now,
    ) -> AgentState:
        """Return the state of an agent that has done nothing yet; its name is by default its id."""
        metadata = AgentMetadata(
            agent_id if name is None else name,
            description,
            version,
            list(capabilities),
            provider_config,
            list(tags),
        )
        at = now()
        state = cls(agent_id, agent_type, metadata, at, at)
        state.check()
        return state

    @property
    def revision(self) -> Revision | None:
        """The last commit of it that was loaded, saved or made by its handle, if any."""
        return None if self.stored is None else self.stored.revision

    @property
    def status(self) -> ExecutionStatus:
        """What the agent is doing."""
        return self.execution.status

    def touch(self, at: datetime | None = None) -> None:
        """Say that it was changed at a moment, by default now."""
        self.last_modified = aware("at", at) or utc_now()

    def add_message(
        self,
        role: Role | str,
        content: Any,
        *,
        metadata: dict[str, Any] | None = None,
        at: datetime | None = None,
    ) -> Message:
        """Add a message to the end of the conversation and return it."""
        message = Message(Role.coerce(role), content, utc_now() if at is None else at, metadata)
        self.conversation.append(message)
        self.touch(message.timestamp)
        return message

    def record_tool_usage(
        self, tool: str, duration_ms: float, success: bool, *, at: datetime | None = None
    ) -> None:
        """Count one call of a tool."""
        check_tool_call(tool, duration_ms, success)
        moment = aware("at", at) or utc_now()
        self.tool_usage.record(tool, duration_ms, success, moment)
        self.touch(moment)

    def transition(
        self,
        status: ExecutionStatus | str,
        reason: str | None = None,
        *,
        at: datetime | None = None,
    ) -> None:
        """Let the execution go to another status; `IllegalTransitionError` unless it may."""
        self.execution = self.execution.to(status, reason, agent_id=self.agent_id)
        self.touch(at)

    def check(self) -> None:
        """Refuse what no agent can be; values that cannot be stored are found when encoded."""
        for name in ("agent_id", "agent_type"):
            _text(name, getattr(self, name))
        for name in ("creation_time", "last_modified"):
            if getattr(self, name) is None:
                raise InvalidArgumentError(name, None, "must be an aware datetime")
        for name in ("creation_time", "last_modified", "last_hook_execution"):
            aware(name, getattr(self, name))
        for name in ("context", "custom"):
            _dict(name, getattr(self, name))
        for name, cls in (
            ("metadata", AgentMetadata),
            ("tool_usage", ToolUsage),
            ("execution", ExecutionState),
            ("hook_registrations", list),
        ):
            value = getattr(self, name)
            if type(value) is not cls:
                raise InvalidArgumentError(name, value, f"must be of type {cls.__name__}")
        _check_metadata(self.metadata)
        _check_usage(self.tool_usage)
        version = self.schema_version
        if type(version) is not int or not 1 <= version < 65_536:
            raise InvalidArgumentError("schema_version", version, "must be an int from 1 to 65,535")


def check_tool_call(tool: str, duration_ms: float, success: bool) -> None:
    """Refuse a tool call that cannot be counted."""
    _text("tool", tool)
    if type(duration_ms) not in (int, float) or not 0 <= duration_ms < 2**53:
        raise InvalidArgumentError("duration_ms", duration_ms, "must be a number from 0 to 2**53")
    if type(success) is not bool:
        raise InvalidArgumentError("success", success, "must be a bool")


def _check_metadata(metadata: AgentMetadata) -> None:
    for name in ("name", "version"):
        _text(name, getattr(metadata, name))
    if metadata.description is not None and type(metadata.description) is not str:
        raise InvalidArgumentError("description", metadata.description, "must be a str or None")
    for name in ("capabilities", "tags"):
        words = getattr(metadata, name)
        if type(words) is not list or any(type(word) is not str for word in words):
            raise InvalidArgumentError(name, words, "must be a list of str")


def _check_usage(usage: ToolUsage) -> None:
    if type(usage.tool_performance) is not dict:
        rule = "must be a dict of ToolStats by tool"
        raise InvalidArgumentError("tool_performance", usage.tool_performance, rule)
    counts: list[tuple[str, Any]] = [("successful", usage.successful), ("failed", usage.failed)]
    for tool, stats in usage.tool_performance.items():
        _text("tool", tool)
        if type(stats) is not ToolStats:
            raise InvalidArgumentError("tool_performance", stats, "must hold ToolStats")
        counts.append(("invocation_count", stats.invocation_count))
        counts.append(("failed_count", stats.failed_count))
        check_tool_call(tool, stats.total_duration_ms, True)
        aware("last_used", stats.last_used)
    for name, count in counts:
        if type(count) is not int or not 0 <= count < 2**63:
            raise InvalidArgumentError(name, count, "must be an int from 0 to 2**63-1")
