"""What a hook takes from outside: the clock, ids, chance, answers of other systems.

A hook that takes them through its context can be replayed: a recorded run keeps what it was given,
and a replay gives it the same again, in the same order. `Live` is what every context has; it keeps
nothing. `Recording` keeps what `Live` would have given. `Injected` gives back what was kept, and
says at which call the hook asked for something else.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from inspect import isawaitable
from typing import Any, Final, Protocol

from llmspell_dist.hooks.errors import ReplayDivergedError
from llmspell_dist.hooks.kept import RecordedFailure, keep, keep_error
from llmspell_dist.ids import new_id

__all__ = ["LIVE", "Injected", "Inputs", "Live", "RecordedInput", "Recording"]

UNFINISHED: Final = "the run ended before the answer was there"


class Inputs(Protocol):
    """Where a hook's context takes its inputs from."""

    def now(self) -> datetime:
        """Return the time: aware, UTC."""

    def new_id(self) -> str:
        """Return an id that nobody else has."""

    def random(self) -> float:
        """Return a number from 0 up to 1, without 1."""

    def call(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Return what a function answers; an awaitable if it is one."""


class Live:
    """Inputs as they are."""

    def now(self) -> datetime:
        """Return the time of this machine."""
        return datetime.now(UTC)

    def new_id(self) -> str:
        """Return a new id."""
        return new_id()

    def random(self) -> float:
        """Return a random number."""
        return random.random()

    def call(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call the function."""
        del name
        return function(*args, **kwargs)


LIVE: Final = Live()


@dataclass(slots=True)
class RecordedInput:
    """One input that a hook took."""

    kind: str
    """``now``, ``new_id``, ``random`` or ``call``."""
    name: str = ""
    """Of a call: what it was called."""
    arguments: Any = None
    """Of a call: ``[positional, named]``, as they can be kept."""
    value: Any = None
    error: RecordedFailure | None = None
    """What the call raised."""
    awaited: bool = False
    """Whether the answer was waited for."""

    @property
    def asked(self) -> str:
        """What was asked for, as it stands in messages; values are not shown."""
        if self.kind != "call":
            return f"{self.kind}()"
        positional, named = self.arguments or ([], {})
        parts = [*("…" for _ in positional), *(f"{name}=…" for name in named)]
        return f"call({', '.join([repr(self.name), *parts])})"


class Recording(Live):
    """Inputs as they are, each kept as it is given.

    `clock`, `ids` and `chance` are where they come from.
    """

    def __init__(
        self,
        clock: Callable[[], datetime] = LIVE.now,
        ids: Callable[[], str] = new_id,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.taken: list[RecordedInput] = []
        self._clock, self._ids, self._chance = clock, ids, chance

    def now(self) -> datetime:
        """Return the time and keep it."""
        moment = self._clock()
        self.taken.append(RecordedInput("now", value=moment))
        return moment

    def new_id(self) -> str:
        """Return an id and keep it."""
        made = self._ids()
        self.taken.append(RecordedInput("new_id", value=made))
        return made

    def random(self) -> float:
        """Return a number and keep it."""
        number = self._chance()
        self.taken.append(RecordedInput("random", value=number))
        return number

    def call(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call the function and keep what it answers, or raises.

        Its place in the order is that of the call, however long the answer takes.
        """
        # Kept before the call, which may change them.
        entry = RecordedInput("call", name, keep([list(args), kwargs]))
        self.taken.append(entry)
        try:
            answer = function(*args, **kwargs)
        except BaseException as error:
            entry.error = keep_error(error)
            raise
        if isawaitable(answer):
            entry.awaited = True
            entry.error = RecordedFailure("TimeoutError", UNFINISHED)
            return self._awaited(entry, answer)
        entry.value = keep(answer)
        return answer

    async def _awaited(self, entry: RecordedInput, answer: Awaitable[Any]) -> Any:
        try:
            value = await answer
        except BaseException as error:
            entry.error = keep_error(error)
            raise
        entry.value, entry.error = keep(value), None
        return value


class Injected:
    """Inputs as they were recorded: of each kind and name in the order in which they were taken.

    Inputs of different kinds and names may come in another order than they did, and calls of one
    name with other arguments too: a hook that waits for several answers side by side asks in no
    fixed order. A hook that asks for something else than was recorded, or for more, gets
    `ReplayDivergedError`; the first such difference stays in `divergence`, whatever the hook makes
    of the error. With `beyond` it gets the input from there instead, and the difference is noted
    all the same.
    """

    def __init__(self, recorded: Sequence[RecordedInput], *, beyond: Inputs | None = None) -> None:
        self._recorded = recorded
        self._beyond = beyond
        self._left: dict[tuple[str, str], list[int]] = {}
        """The places of what was not asked for yet, by kind and name."""
        for place, one in enumerate(recorded):
            self._left.setdefault((one.kind, one.name), []).append(place)
        self.divergence: ReplayDivergedError | None = None

    def now(self) -> datetime:
        """Return the recorded time."""
        found = self._take(RecordedInput("now"))
        value: datetime = self._live.now() if found is None else found.value
        return value

    def new_id(self) -> str:
        """Return the recorded id."""
        found = self._take(RecordedInput("new_id"))
        value: str = self._live.new_id() if found is None else found.value
        return value

    def random(self) -> float:
        """Return the recorded number."""
        found = self._take(RecordedInput("random"))
        value: float = self._live.random() if found is None else found.value
        return value

    def call(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Answer as the function did when it was recorded; it is not called."""
        found = self._take(RecordedInput("call", name, keep([list(args), kwargs])))
        if found is None:
            return self._live.call(name, function, args, kwargs)
        if found.awaited:
            return self._answer_later(found)
        return self._answer(found)

    def finish(self) -> None:
        """Take note of inputs that were recorded and not asked for."""
        place = self._first_left()
        if place < len(self._recorded):
            self._diverge(place, "nothing")

    def _first_left(self) -> int:
        """Return the place of the first input that was not asked for yet; behind all if none is."""
        return min((left[0] for left in self._left.values() if left), default=len(self._recorded))

    @property
    def _live(self) -> Inputs:
        return LIVE if self._beyond is None else self._beyond

    def _take(self, asked: RecordedInput) -> RecordedInput | None:
        """Return the recorded input that answers, or None if one from beyond is to be given."""
        left = self._left.get((asked.kind, asked.name), [])
        for number, place in enumerate(left):
            found = self._recorded[place]
            if next(_differences(found.arguments, asked.arguments), None) is None:
                del left[number]
                return found
        if left:  # of that name, but with other arguments
            found = self._recorded[left[0]]
            where = next(_differences(found.arguments, asked.arguments), None)
            why = self._diverge(left[0], asked.asked, where)
        else:
            why = self._diverge(self._first_left(), asked.asked)
        if self._beyond is None:
            raise why
        return None

    def _diverge(self, place: int, asked: str, argument: str | None = None) -> ReplayDivergedError:
        there = place < len(self._recorded)
        recorded = self._recorded[place].asked if there else "nothing"
        error = ReplayDivergedError(place + 1, recorded, asked, argument)
        if self.divergence is None:
            self.divergence = error
        return error

    def _answer(self, found: RecordedInput) -> Any:
        if found.error is not None:
            raise found.error.error()
        return found.value

    async def _answer_later(self, found: RecordedInput) -> Any:
        return self._answer(found)


def _differences(recorded: Any, asked: Any) -> Iterator[str]:
    """Yield the arguments that are not the same: their place or name."""
    (was, was_named), (now, now_named) = recorded or ([], {}), asked or ([], {})
    for place in range(max(len(was), len(now))):
        if place >= len(was) or place >= len(now) or not _same(was[place], now[place]):
            yield f"argument {place + 1}"
    for name in sorted({*was_named, *now_named}):
        if (
            name not in was_named
            or name not in now_named
            or not _same(was_named[name], now_named[name])
        ):
            yield f"argument {name}"


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    return bool(one == other or (one != one and other != other))  # noqa: PLR0124 - NaN
