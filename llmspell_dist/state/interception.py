"""The seam at which operations on state can be seen, changed and refused; hooks stand behind it.

Each operation becomes a `StateCall`: its name, its arguments by name, and how to carry it out with
whatever these arguments are by then. `Interceptor.around` does that, with what is to happen before
and after. As long as its `reading` or `writing` is false, nothing of this is made.

Operations on several keys (batches, transactions, listings) are seen key by key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from llmspell_dist.errors import ConflictError, InvalidArgumentError, SpellError
from llmspell_dist.state.steps import CallerLeftError, CommitRequest, FollowedRequest

if TYPE_CHECKING:
    from llmspell_dist.redis.commits import Commit
    from llmspell_dist.revision import Revision
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Steps
    from llmspell_dist.state.writes import Writes

__all__ = [
    "NOTHING_SEEN",
    "FollowedCommit",
    "Instead",
    "Interceptor",
    "StateCall",
    "arguments_of",
    "followed",
]

T = TypeVar("T")


def _same(result: Any) -> Any:
    return result


def _instead(_: Any, value: Any) -> Any:
    return value


@dataclass(slots=True)
class StateCall:
    """One operation on one key, or on a scope (then `data` has no key)."""

    name: str
    """The method: ``set``, ``get``, …"""
    writes: bool
    data: dict[str, Any]
    """Its arguments: ``scope`` (text), ``key``, ``value`` (what is to be written), …"""
    carry_out: Callable[[dict[str, Any]], Steps[Any]]
    perform: Callable[[str, Mapping[str, Any]], Steps[Any]]
    """Carries out another operation of the same state, by name; nobody looks at that one."""
    seen: Callable[[Any], Any] = _same
    """Reads: the user's value in what `carry_out` gave."""
    put: Callable[[Any, Any], Any] = _instead
    """Reads: what `carry_out` gave with another value of the user's."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Of a batch: its name, id and size, and the position of this key in it."""
    fits: Callable[[Any], str | None] | None = None
    """Reads of what is known about values, not of values themselves: None if an answer will do,
    else what it must be. Of these the answer is seen as ``result``, and ``value`` is None."""
    redoable: bool = True
    """Whether doing it again can come to anything else."""
    attempts: dict[str, int] = field(default_factory=dict)
    """How often it was tried, by whoever asked for that."""
    left: bool = False
    """Whether its caller was cancelled: what is done is done, and nothing is tried again."""
    kept: Any = None
    """What the interceptor keeps between before and behind."""
    cacheable: bool = False
    """Whether its result may answer a later call: plain reads of values, which nothing is based on.

    A read of an `update` or a transaction must say what is there.
    """
    as_type: Any = None
    """Reads whose `data` has no ``as_type``: the type that the value is made to be."""
    lasting: Callable[[dict[str, Any]], Steps[tuple[Any, bool]]] | None = None
    """As `carry_out`, and whether the result holds until somebody writes: it has no expiry."""


def arguments_of(data: Mapping[str, Any], names: Iterable[str]) -> list[Any]:
    """Return the arguments as they are after the hooks; one that is gone is named."""
    try:
        return [data[name] for name in names]
    except KeyError as gone:
        rule = "must stay in the data: a hook removed it"
        raise InvalidArgumentError(str(gone.args[0]), None, rule) from None


def _not_again() -> ConflictError:
    return ConflictError(None, None, message="not tried again: the caller was cancelled")


def followed(
    steps: Steps[T], calls: Sequence[Any], not_again: Callable[[], BaseException] = _not_again
) -> Steps[T]:
    """Carry steps out whose commit is followed by something, whatever becomes of the caller.

    `calls`: what is told, by its ``left``, that the caller has gone; such as a `StateCall`. From
    then on nothing is tried again: what `not_again` gives is raised.
    """
    go_on: Callable[[Any], Any] = steps.send
    given: Any = None
    while True:
        try:
            request = go_on(given)
        except StopIteration as done:
            result: T = done.value
            return result
        if type(request) is CommitRequest:
            if calls[0].left:
                steps.close()
                raise not_again()
            request = FollowedRequest(request.commit, request.ack, calls)
        try:
            given, go_on = (yield request), steps.send
        except (SpellError, CallerLeftError) as error:
            given, go_on = error, steps.throw


class Instead:
    """What a caller gets of an operation that is not carried out."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class FollowedCommit:
    """A commit behind which something is to be done; for the hot path."""

    __slots__ = ("calls", "commit", "left")

    def __init__(self, commit: Commit) -> None:
        self.commit = commit
        self.calls: Sequence[StateCall] = ()
        """What it carries out, as soon as somebody asks."""
        self.left = False
        """Whether its caller was cancelled."""

    def ended(self, result: Any) -> Any:
        """Do it; what the caller gets, or a generator: the steps that it takes."""
        raise NotImplementedError

    def failed(self, error: SpellError) -> Steps[Any]:
        """Do it for a commit that failed."""
        raise NotImplementedError


class Interceptor(Protocol):
    """Stands between the state's methods and what carries them out."""

    reading: bool
    """Whether reads are looked at now."""
    writing: bool
    """Whether writes are looked at now."""

    expiring: bool
    """Whether somebody wants to know which keys have expired."""

    @property
    def inside(self) -> Callable[[], int]:
        """Gives what is positive inside what the interceptor itself calls: nobody looks there."""

    def around(self, call: StateCall) -> Steps[Any]:
        """Carry an operation out, with all that stands before and behind it."""

    def around_set(
        self, given: tuple[Any, ...], writes: Writes
    ) -> Commit | FollowedCommit | Steps[Any]:
        """Carry a `set` with these arguments out: as its commit, if nothing has to wait."""

    def before(self, call: StateCall) -> Steps[Instead | None]:
        """Do what stands before an operation of a batch; changes `call.data`."""

    def behind(self, call: StateCall, result: Any, error: Exception | None) -> Steps[Any]:
        """Do what stands behind an operation of a batch; what its caller gets."""

    def conflict(self, call: StateCall, error: Exception) -> Steps[None]:
        """Do what is to be done when a batch met a conflict; the error is raised afterwards."""

    def expired(
        self, core: Core, scope: str, keys: Sequence[str], revision: Revision
    ) -> Steps[None]:
        """Do what is to be done when this process has removed keys that had expired."""


class _NothingSeen:
    """No interceptor: as nothing is looked at, nothing else is ever asked of it."""

    reading = writing = expiring = False

    @property
    def inside(self) -> Callable[[], int]:
        return int

    def _never(self, *_: Any) -> Any:
        raise AssertionError("asked although nothing is looked at")

    around = around_set = before = behind = conflict = expired = _never


NOTHING_SEEN: Final[Interceptor] = _NothingSeen()
