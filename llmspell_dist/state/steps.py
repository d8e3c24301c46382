"""State operations as steps: generators that yield what to send and are sent the replies.

The generators do no I/O and know no event loop, so the async and the blocking surface run the very
same ones. A driver sends a `Command` or `ScriptCall` and gives back the raw reply; carries out a
`CommitRequest` and gives back its outcome; waits for a `Pause`; calls a `Call` (and awaits what it
returns, if it can be awaited) and gives back the result. Several reads in a list leave together and
give back a list of replies.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from llmspell_dist.ack import Ack
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.commits import Commit

__all__ = [
    "Call",
    "CallerLeftError",
    "CommitRequest",
    "FollowedRequest",
    "Pause",
    "Request",
    "Steps",
]


@dataclass(slots=True)
class CommitRequest:
    """A commit to carry out, acknowledged as `ack` says (None: when it is in memory)."""

    commit: Commit
    ack: Ack | None = None


@dataclass(slots=True)
class FollowedRequest(CommitRequest):
    """A commit behind which something is to be done, also if its caller is cancelled meanwhile."""

    calls: Sequence[Any] = ()
    """The `StateCall`s that it carries out; they are told that their caller has left."""


class CallerLeftError(BaseException):
    """Thrown into steps that go on behind a commit: their caller was cancelled while they waited.

    No `Exception`, for it is the end of whatever does not say what to do then.
    """


@dataclass(slots=True)
class Pause:
    """Wait this many seconds."""

    seconds: float


@dataclass(slots=True)
class Call:
    """Call a function of the user's."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


Request = (
    Command
    | ScriptCall
    | CommitRequest
    | FollowedRequest
    | Pause
    | Call
    | list[Command | ScriptCall]
)

T = TypeVar("T")
Steps = Generator[Request, Any, T]
"""Steps of an operation whose result is a `T`."""
