"""Agents: their state, their processes, and effects that run once.

`Agents` (``spell.agents``) saves, loads, finds and runs agents; `AgentState` is all that one is.
How it lies in Redis: `llmspell_dist.agents.layout`.
"""

from __future__ import annotations

from llmspell_dist.agents.agent import Agent
from llmspell_dist.agents.effect import Effect
from llmspell_dist.agents.effects import EffectRecord, EffectStatus
from llmspell_dist.agents.errors import (
    AgentExistsError,
    AgentNotFoundError,
    EffectCommittedError,
    EffectError,
    EffectFailedError,
    EffectInProgressError,
    EffectTakenOverError,
    EffectUnknownError,
    IllegalTransitionError,
)
from llmspell_dist.agents.execution import TRANSITIONS, ExecutionState, ExecutionStatus
from llmspell_dist.agents.listing import AgentSummary
from llmspell_dist.agents.manager import Agents
from llmspell_dist.agents.model import (
    AgentMetadata,
    AgentState,
    Message,
    Role,
    ToolStats,
    ToolUsage,
)

__all__ = [
    "TRANSITIONS",
    "Agent",
    "AgentExistsError",
    "AgentMetadata",
    "AgentNotFoundError",
    "AgentState",
    "AgentSummary",
    "Agents",
    "Effect",
    "EffectCommittedError",
    "EffectError",
    "EffectFailedError",
    "EffectInProgressError",
    "EffectRecord",
    "EffectStatus",
    "EffectTakenOverError",
    "EffectUnknownError",
    "ExecutionState",
    "ExecutionStatus",
    "IllegalTransitionError",
    "Message",
    "Role",
    "ToolStats",
    "ToolUsage",
]
