"""Shared state for many LLM agent processes, on Redis or Valkey.

::

    async with llmspell_dist.connect("redis://localhost") as spell:
        await spell.state.set("agent:alice", "mood", "curious")
"""

from __future__ import annotations

from llmspell_dist.ack import LOCAL_FSYNC, MEMORY, REPLICATED_ALL, Ack, replicated
from llmspell_dist.classes import ClassRules, StateClass
from llmspell_dist.client import Spell, connect
from llmspell_dist.config import Options
from llmspell_dist.context import CommitContext, context, current_context
from llmspell_dist.errors import (
    AckNotReachedError,
    CipherNotConfiguredError,
    CircularReferenceError,
    ClassChangedError,
    ClosedError,
    CodecError,
    ConflictError,
    CorruptRecordError,
    CrossShardError,
    DeadlockError,
    HistoryDivergedError,
    HistoryUnavailableError,
    InvalidArgumentError,
    InvalidKeyError,
    InvalidScopeError,
    InvalidTTLError,
    InvalidURLError,
    LeaseAlreadyHeldError,
    LeaseError,
    LeaseLostError,
    LeaseNotHeldError,
    LeaseRequiredError,
    LeaseUnavailableError,
    LimitError,
    NamespaceMismatchError,
    NumberOverflowError,
    OperationReusedError,
    OutcomeUnknownError,
    SpellError,
    StagedElementsLostError,
    StaleFencingTokenError,
    StoreAuthenticationError,
    StoreBusyError,
    StoreFullError,
    StoreLoadingError,
    StoreMisconfiguredError,
    StorePermissionError,
    StoreProtocolError,
    StoreReadOnlyError,
    StoreTimeoutError,
    StoreUnavailableError,
    UnsupportedFormatError,
    UpdateConflictError,
    WrongEventLoopError,
    WrongKindError,
)
from llmspell_dist.leases.group import LeaseGroup
from llmspell_dist.leases.holding import Lease
from llmspell_dist.leases.manager import Leases
from llmspell_dist.leases.model import (
    LeaseHolder,
    LeaseHow,
    LeaseInfo,
    LeaseMode,
    LeasePast,
    LeaseWaiter,
    WaitEdge,
    WaitGraph,
)
from llmspell_dist.retention import Retention
from llmspell_dist.revision import Revision
from llmspell_dist.scope import Scope, ScopeKind
from llmspell_dist.state.manager import StateManager, Transaction
from llmspell_dist.state.model import Change, Page, Record, ScopeStat
from llmspell_dist.state.writes import ANY
from llmspell_dist.ttl import KEEP

__version__ = "0.1.0"

__all__ = [
    "ANY",
    "KEEP",
    "LOCAL_FSYNC",
    "MEMORY",
    "REPLICATED_ALL",
    "Ack",
    "AckNotReachedError",
    "Change",
    "CipherNotConfiguredError",
    "CircularReferenceError",
    "ClassChangedError",
    "ClassRules",
    "ClosedError",
    "CodecError",
    "CommitContext",
    "ConflictError",
    "CorruptRecordError",
    "CrossShardError",
    "DeadlockError",
    "HistoryDivergedError",
    "HistoryUnavailableError",
    "InvalidArgumentError",
    "InvalidKeyError",
    "InvalidScopeError",
    "InvalidTTLError",
    "InvalidURLError",
    "Lease",
    "LeaseAlreadyHeldError",
    "LeaseError",
    "LeaseGroup",
    "LeaseHolder",
    "LeaseHow",
    "LeaseInfo",
    "LeaseLostError",
    "LeaseMode",
    "LeaseNotHeldError",
    "LeasePast",
    "LeaseRequiredError",
    "LeaseUnavailableError",
    "LeaseWaiter",
    "Leases",
    "LimitError",
    "NamespaceMismatchError",
    "NumberOverflowError",
    "OperationReusedError",
    "Options",
    "OutcomeUnknownError",
    "Page",
    "Record",
    "Retention",
    "Revision",
    "Scope",
    "ScopeKind",
    "ScopeStat",
    "Spell",
    "SpellError",
    "StagedElementsLostError",
    "StaleFencingTokenError",
    "StateClass",
    "StateManager",
    "StoreAuthenticationError",
    "StoreBusyError",
    "StoreFullError",
    "StoreLoadingError",
    "StoreMisconfiguredError",
    "StorePermissionError",
    "StoreProtocolError",
    "StoreReadOnlyError",
    "StoreTimeoutError",
    "StoreUnavailableError",
    "Transaction",
    "UnsupportedFormatError",
    "UpdateConflictError",
    "WaitEdge",
    "WaitGraph",
    "WrongEventLoopError",
    "WrongKindError",
    "connect",
    "context",
    "current_context",
    "replicated",
]
