"""Exit codes, and which error has which."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from llmspell_dist.agents.errors import (
    AgentNotFoundError,
    EffectError,
    IllegalTransitionError,
)
from llmspell_dist.backup.errors import (
    BackupError,
    BackupInProgressError,
    BackupNeededError,
    BackupNotFoundError,
    RestoreRefusedError,
    TargetError,
)
from llmspell_dist.errors import (
    CipherNotConfiguredError,
    ClassChangedError,
    CodecError,
    ConflictError,
    CorruptRecordError,
    CrossShardError,
    HistoryDivergedError,
    HistoryUnavailableError,
    InvalidArgumentError,
    LeaseError,
    LeaseNotHeldError,
    LimitError,
    NamespaceMismatchError,
    OperationReusedError,
    SpellError,
    StagedElementsLostError,
    StoreUnavailableError,
    WrongKindError,
)
from llmspell_dist.events.errors import (
    EventError,
    PublishError,
    SubscriptionExistsError,
    SubscriptionNotFoundError,
)
from llmspell_dist.hooks.errors import (
    ExecutionNotFoundError,
    ReplayError,
    ScheduleNotFoundError,
)
from llmspell_dist.remote.errors import OperationLostError
from llmspell_dist.security.errors import KeyProviderError, KeyProviderUnavailableError
from llmspell_dist.sidecar.auth.errors import (
    AccessFileError,
    ForbiddenError,
    UnauthenticatedError,
    UnsafeBindError,
)
from llmspell_dist.sidecar.errors import (
    BodyError,
    DrainingError,
    NotFoundError,
    RouteNotFoundError,
    SlowRequestError,
    TooManyRequestsError,
)
from llmspell_dist.watch.errors import WaitTimeoutError

__all__ = ["EXIT_CODES", "Exit", "exit_of"]


class Exit(IntEnum):
    """What a script can tell from how the command ended."""

    OK = 0
    NO = 1
    USAGE = 2
    CONFLICT = 3
    UNAVAILABLE = 4
    DATA = 5
    PROBLEMS = 10
    WARNINGS = 11
    INTERNAL = 70
    INTERRUPTED = 130
    PIPE = 141
    TERMINATED = 143


EXIT_CODES: Final[dict[Exit, str]] = {
    Exit.OK: "done, or yes",
    Exit.NO: "not found, hidden, not held, or the answer is no",
    Exit.USAGE: "wrong usage or bad input; nothing was sent",
    Exit.CONFLICT: "another writer was first, or a lease stands in the way; nothing was changed",
    Exit.UNAVAILABLE: "the server, a sidecar or the place of backups is out of reach or refuses",
    Exit.DATA: "the data cannot be given: damaged, not proved, no history, no cipher, no key",
    Exit.PROBLEMS: "doctor found problems",
    Exit.WARNINGS: "doctor found warnings, no problems",
    Exit.INTERNAL: "a bug in this program",
    Exit.INTERRUPTED: "ended by Ctrl-C",
    Exit.PIPE: "the reader of the output went away",
    Exit.TERMINATED: "a backup command was ended by SIGTERM",
}
"""What each code means, as the help and docs/cli.md have it."""

_BY_ERROR: Final[tuple[tuple[type[SpellError], Exit], ...]] = (
    (StoreUnavailableError, Exit.UNAVAILABLE),
    (WaitTimeoutError, Exit.NO),
    (ConflictError, Exit.CONFLICT),
    (OperationReusedError, Exit.CONFLICT),
    (ClassChangedError, Exit.CONFLICT),
    (AgentNotFoundError, Exit.NO),
    (IllegalTransitionError, Exit.CONFLICT),
    (EffectError, Exit.CONFLICT),
    (LeaseNotHeldError, Exit.NO),
    (LeaseError, Exit.CONFLICT),
    (StagedElementsLostError, Exit.UNAVAILABLE),
    (CorruptRecordError, Exit.DATA),
    (HistoryUnavailableError, Exit.DATA),
    (HistoryDivergedError, Exit.DATA),
    (CipherNotConfiguredError, Exit.DATA),
    (NamespaceMismatchError, Exit.DATA),
    (ExecutionNotFoundError, Exit.NO),
    (ScheduleNotFoundError, Exit.NO),
    (ReplayError, Exit.DATA),
    (PublishError, Exit.UNAVAILABLE),
    (SubscriptionExistsError, Exit.CONFLICT),
    (SubscriptionNotFoundError, Exit.NO),
    (EventError, Exit.DATA),
    (TargetError, Exit.UNAVAILABLE),
    (BackupNotFoundError, Exit.NO),
    (BackupInProgressError, Exit.CONFLICT),
    (BackupNeededError, Exit.CONFLICT),
    (RestoreRefusedError, Exit.CONFLICT),
    (BackupError, Exit.DATA),
    (KeyProviderUnavailableError, Exit.UNAVAILABLE),
    (KeyProviderError, Exit.DATA),
    (UnauthenticatedError, Exit.UNAVAILABLE),
    (ForbiddenError, Exit.UNAVAILABLE),
    (TooManyRequestsError, Exit.UNAVAILABLE),
    (DrainingError, Exit.UNAVAILABLE),
    (SlowRequestError, Exit.UNAVAILABLE),
    (RouteNotFoundError, Exit.UNAVAILABLE),
    (OperationLostError, Exit.UNAVAILABLE),
    (NotFoundError, Exit.NO),
    (AccessFileError, Exit.USAGE),
    (UnsafeBindError, Exit.USAGE),
    (InvalidArgumentError, Exit.USAGE),
    (BodyError, Exit.USAGE),
    (CodecError, Exit.USAGE),
    (LimitError, Exit.USAGE),
    (WrongKindError, Exit.USAGE),
    (CrossShardError, Exit.USAGE),
)


def exit_of(error: SpellError) -> Exit:
    """Return the exit code of an error."""
    for cls, code in _BY_ERROR:
        if isinstance(error, cls):
            return code
    return Exit.INTERNAL
