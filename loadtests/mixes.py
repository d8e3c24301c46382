"""The mixes: which kinds of users there are, how many of each, and what each of them does."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from loadtests.agents_shape import Trace, agent_script
from loadtests.steps import Kind, Step

__all__ = [
    "FEEDS",
    "MIXES",
    "ROLES",
    "Role",
    "Share",
    "UnknownMixError",
    "board_scope",
    "event_type",
    "feed_scope",
    "mix_of",
]

FEEDS: Final = 4
BOARD: Final = "custom:board-{run}"
_KEYS: Final = 200
_ACCOUNTS: Final = 32
_POOL: Final = 400
_FILLED_BY_EACH: Final = 20
_SHELF: Final = "custom:shelf-{run}"
Script = Callable[[Sequence[Trace], int], Iterator[Step]]


class UnknownMixError(Exception):
    """There is no mix of that name."""


@dataclass(frozen=True, slots=True)
class Role:
    """One kind of user: what it does, and how many steps it wants to do in a second.

    Without a rate it goes on as soon as it can; what it wants is then not known, nor is a knee.
    """

    name: str
    script: Script
    rate: float | None
    offers: bool = True
    """Whether its steps are part of what is offered: not where users wait for each other."""
    watches: bool = False
    """Whether it listens to a feed instead of doing steps."""

    @property
    def offered(self) -> float:
        """Steps a second that it adds to what is offered."""
        return (self.rate or 0.0) if self.offers else 0.0


def _reader(traces: Sequence[Trace], number: int) -> Iterator[Step]:
    """Yield 95 reads of a hundred, most of them of few keys, as readers of a shared memory do."""
    return _drawn(traces, number, writes=0.05)


def _writer(traces: Sequence[Trace], number: int) -> Iterator[Step]:
    """Yield 80 writes of a hundred."""
    return _drawn(traces, number, writes=0.8)


def _drawn(traces: Sequence[Trace], number: int, *, writes: float) -> Iterator[Step]:
    """Yield steps drawn from a pool that is made once; its share of the shelf is filled first."""
    rng = random.Random(number)
    pool = _pool(traces, rng, writes)
    end = [
        Step("recall list", Kind.RECALL, "session:{user}", "journal"),
        Step("empty list", Kind.DELETE, "session:{user}", "journal"),
    ]
    values = [turn.message for trace in traces for turn in trace.turns]
    for offset in range(_FILLED_BY_EACH):
        key = f"note:{(number * _FILLED_BY_EACH + offset) % _KEYS}"
        yield Step("set", Kind.SET, _SHELF, key, rng.choice(values))
    yield Step("append", Kind.APPEND, "session:{user}", "journal", {"begun": number})
    while True:
        for _ in range(_POOL):
            yield rng.choice(pool)
        yield Step("append", Kind.APPEND, "session:{user}", "journal", {"again": number})
        yield from end


def _pool(traces: Sequence[Trace], rng: random.Random, writes: float) -> list[Step]:
    values = [turn.message for trace in traces for turn in trace.turns]
    return [_draw(rng, values, writes) for _ in range(_POOL)]


def _draw(rng: random.Random, values: list[dict[str, Any]], writes: float) -> Step:
    key = f"note:{int(_KEYS * rng.random() ** 3)}"
    if rng.random() >= writes:
        return Step("get", Kind.GET, _SHELF, key)
    drawn = rng.random()
    value = rng.choice(values)
    if drawn < 0.5:
        return Step("set", Kind.SET, _SHELF, key, value)
    if drawn < 0.6:
        source, target = rng.sample(range(_ACCOUNTS), 2)
        return Step("transfer", Kind.TRANSFER, "custom:bank-{run}", str(source), str(target))
    if drawn < 0.8:
        return Step("append", Kind.APPEND, "session:{user}", "journal", value)
    return Step("increment", Kind.INCREMENT, BOARD, f"counter:{rng.randrange(8)}")


def _counter(traces: Sequence[Trace], number: int) -> Iterator[Step]:  # noqa: ARG001
    """Yield steps of one who shares a number with all others, under one lease."""
    step = Step("count under lease", Kind.COUNT_UNDER_LEASE, "custom:contended-{run}", "count")
    while True:
        yield step


def _publisher(traces: Sequence[Trace], number: int) -> Iterator[Step]:  # noqa: ARG001
    """Yield steps of one who publishes on a feed of its own."""
    event = Step("publish", Kind.PUBLISH, feed_scope(number), "news")
    news = Step("write news", Kind.WRITE_NEWS, feed_scope(number), "news")
    while True:
        yield event
        yield news


def feed_scope(number: int) -> str:
    """Return the scope of a feed, with ``{run}`` for the run."""
    return f"custom:feed-{number % FEEDS}-{{run}}"


def board_scope(run: str) -> str:
    """Return the scope that all users of a run count on."""
    return BOARD.replace("{run}", run)


def event_type(scope: str) -> str:
    """Return the type of a feed's events: ``load.feed-0-run``."""
    return scope.replace("custom:", "load.")


def _silent(traces: Sequence[Trace], number: int) -> Iterator[Step]:  # noqa: ARG001
    """Yield nothing: it listens."""
    return iter(())


AGENT: Final = Role("agent", agent_script, 10.0)
READER: Final = Role("reader", _reader, 20.0)
WRITER: Final = Role("writer", _writer, 20.0)
COUNTER: Final = Role("counter", _counter, None, offers=False)
SHARER: Final = Role("sharer", _counter, 2.0, offers=False)
PUBLISHER: Final = Role("publisher", _publisher, 10.0)
SUBSCRIBER: Final = Role("subscriber", _silent, None, offers=False, watches=True)
ROLES: Final = {
    role.name: role for role in (AGENT, READER, WRITER, COUNTER, SHARER, PUBLISHER, SUBSCRIBER)
}


@dataclass(frozen=True, slots=True)
class Share:
    """How many users of a role: a weight among those that grow with the load, or a fixed number."""

    role: Role
    weight: int = 1
    fixed: int = 0


MIXES: Final[dict[str, tuple[Share, ...]]] = {
    "agents": (Share(AGENT),),
    "reads": (Share(READER),),
    "writes": (Share(WRITER),),
    "lease": (Share(COUNTER),),
    "fanout": (Share(PUBLISHER, fixed=FEEDS), Share(SUBSCRIBER)),
    "mixed": (
        Share(PUBLISHER, fixed=FEEDS),
        Share(SHARER, fixed=2),
        Share(SUBSCRIBER, fixed=2 * FEEDS),
        Share(AGENT, weight=6),
        Share(READER, weight=2),
        Share(WRITER, weight=1),
    ),
}


def mix_of(name: str) -> tuple[Share, ...]:
    """Return a mix by its name; `UnknownMixError` tells which there are."""
    try:
        return MIXES[name]
    except KeyError:
        raise UnknownMixError(f"no mix {name!r}; there are {', '.join(MIXES)}") from None
