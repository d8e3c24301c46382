"""Agents as documents: what their routes take and give, and back into the library's values."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta, Struct, field

from llmspell_dist.agents.effects import EffectRecord
from llmspell_dist.agents.execution import ExecutionState, ExecutionStatus
from llmspell_dist.agents.listing import AgentSummary
from llmspell_dist.agents.model import (
    AgentMetadata,
    AgentState,
    Message,
    Role,
    ToolStats,
    ToolUsage,
)

__all__ = [
    "AgentDocument",
    "AgentMetadataDocument",
    "AgentPage",
    "AgentSummaryDocument",
    "EffectDocument",
    "ExecutionDocument",
    "MessageDocument",
    "agent_document",
    "agent_state",
    "effect_document",
    "execution_document",
    "message",
    "message_document",
    "summary_document",
]


class MessageDocument(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One message of a conversation."""

    role: str
    content: Any
    timestamp: datetime
    metadata: dict[str, Any] | None = None


class AgentMetadataDocument(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an agent is."""

    name: str
    description: str | None = None
    version: str = "1.0.0"
    capabilities: list[str] = []
    provider_config: Any = None
    tags: list[str] = []


class ToolStatsDocument(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How often a tool was called, and how long it took."""

    invocation_count: int = 0
    failed_count: int = 0
    total_duration_ms: int | float = 0
    last_used: datetime | None = None


class ToolUsageDocument(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Tool calls of an agent."""

    successful: int = 0
    failed: int = 0
    tool_performance: dict[str, ToolStatsDocument] = {}


class ExecutionDocument(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an agent is doing, and why."""

    status: str = "idle"
    reason: str | None = None
    suspended_from: str | None = None


class AgentDocument(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that makes an agent go on where it was."""

    agent_id: str
    agent_type: str
    metadata: AgentMetadataDocument
    creation_time: datetime
    last_modified: datetime
    conversation: list[MessageDocument] = []
    missing: Annotated[
        int, Meta(ge=0, description="Earlier messages that are stored and do not stand here.")
    ] = 0
    context: dict[str, Any] = {}
    tool_usage: ToolUsageDocument = field(default_factory=ToolUsageDocument)
    execution: ExecutionDocument = field(default_factory=ExecutionDocument)
    custom: dict[str, Any] = {}
    hook_registrations: list[Any] = []
    last_hook_execution: datetime | None = None
    correlation_context: Any = None
    schema_version: int = 1
    revision: Annotated[
        str | None, Meta(description="The last commit of the agent, when it was loaded.")
    ] = None


class AgentSummaryDocument(Struct, frozen=True):
    """What an agent is and does, without its conversation."""

    agent_id: str
    agent_type: str
    metadata: AgentMetadataDocument
    execution: ExecutionDocument
    creation_time: datetime
    last_modified: datetime
    messages: int
    schema_version: int
    revision: str


class AgentPage(Struct, frozen=True):
    """Some of the agents, and where the next ones begin."""

    agents: list[AgentSummaryDocument]
    cursor: str | None


class EffectDocument(Struct, frozen=True):
    """One effect, as it is recorded."""

    agent_id: str
    key: str
    status: str
    claimed_by: str
    token: int | None
    claimed: str
    claimed_at: datetime
    deadline: datetime
    attempts: int
    result: Any
    reason: str | None
    revision: str | None


# --- there ----------------------------------------------------------------------------------------


def message_document(found: Message) -> MessageDocument:
    """Return a message as a document."""
    return MessageDocument(
        role=found.role.value,
        content=found.content,
        timestamp=found.timestamp,
        metadata=found.metadata,
    )


def execution_document(found: ExecutionState) -> ExecutionDocument:
    """Return what an agent does as a document."""
    before = found.suspended_from
    return ExecutionDocument(
        status=found.status.value,
        reason=found.reason,
        suspended_from=None if before is None else before.value,
    )


def _metadata_document(found: AgentMetadata) -> AgentMetadataDocument:
    return AgentMetadataDocument(
        name=found.name,
        description=found.description,
        version=found.version,
        capabilities=list(found.capabilities),
        provider_config=found.provider_config,
        tags=list(found.tags),
    )


def _usage_document(found: ToolUsage) -> ToolUsageDocument:
    tools = {
        name: ToolStatsDocument(
            invocation_count=stats.invocation_count,
            failed_count=stats.failed_count,
            total_duration_ms=stats.total_duration_ms,
            last_used=stats.last_used,
        )
        for name, stats in found.tool_performance.items()
    }
    return ToolUsageDocument(
        successful=found.successful, failed=found.failed, tool_performance=tools
    )


def agent_document(state: AgentState, tail: int | None = None) -> AgentDocument:
    """Return an agent's state as a document, with all messages that are here or the last `tail`."""
    messages = state.conversation
    left_out = 0 if tail is None else max(0, len(messages) - tail)
    return AgentDocument(
        agent_id=state.agent_id,
        agent_type=state.agent_type,
        metadata=_metadata_document(state.metadata),
        creation_time=state.creation_time,
        last_modified=state.last_modified,
        conversation=[message_document(one) for one in messages[left_out:]],
        missing=getattr(messages, "missing", 0) + left_out,
        context=state.context,
        tool_usage=_usage_document(state.tool_usage),
        execution=execution_document(state.execution),
        custom=state.custom,
        hook_registrations=state.hook_registrations,
        last_hook_execution=state.last_hook_execution,
        correlation_context=state.correlation_context,
        schema_version=state.schema_version,
        revision=None if state.revision is None else str(state.revision),
    )


def summary_document(found: AgentSummary) -> AgentSummaryDocument:
    """Return a summary as a document."""
    return AgentSummaryDocument(
        agent_id=found.agent_id,
        agent_type=found.agent_type,
        metadata=_metadata_document(found.metadata),
        execution=execution_document(found.execution),
        creation_time=found.creation_time,
        last_modified=found.last_modified,
        messages=found.messages,
        schema_version=found.schema_version,
        revision=str(found.revision),
    )


def effect_document(found: EffectRecord) -> EffectDocument:
    """Return an effect as a document."""
    return EffectDocument(
        agent_id=found.agent_id,
        key=found.key,
        status=found.status.value,
        claimed_by=found.claimed_by,
        token=found.token,
        claimed=str(found.claimed),
        claimed_at=found.claimed_at,
        deadline=found.deadline,
        attempts=found.attempts,
        result=found.result,
        reason=found.reason,
        revision=None if found.revision is None else str(found.revision),
    )


# --- and back -------------------------------------------------------------------------------------


def message(document: MessageDocument) -> Message:
    """Return the message of a document."""
    role = Role.coerce(document.role)
    return Message(role, document.content, document.timestamp, document.metadata)


def _execution(document: ExecutionDocument) -> ExecutionState:
    before = document.suspended_from
    return ExecutionState(
        ExecutionStatus.coerce(document.status),
        document.reason,
        None if before is None else ExecutionStatus.coerce(before),
    )


def agent_state(document: AgentDocument) -> AgentState:
    """Return the state of a document, which is of no stored agent yet."""
    said, usage, execution = document.metadata, document.tool_usage, document.execution
    tools = {
        name: ToolStats(
            stats.invocation_count, stats.failed_count, stats.total_duration_ms, stats.last_used
        )
        for name, stats in usage.tool_performance.items()
    }
    return AgentState(
        document.agent_id,
        document.agent_type,
        AgentMetadata(
            said.name,
            said.description,
            said.version,
            list(said.capabilities),
            said.provider_config,
            list(said.tags),
        ),
        document.creation_time,
        document.last_modified,
        [message(one) for one in document.conversation],
        document.context,
        ToolUsage(usage.successful, usage.failed, tools),
        _execution(execution),
        document.custom,
        list(document.hook_registrations),
        document.last_hook_execution,
        document.correlation_context,
        document.schema_version,
    )
