"""What tests of hooks share: a client of either surface, and every operation on state."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from inspect import isasyncgen, isawaitable, isgenerator
from typing import Any

import pytest

import llmspell_dist
from llmspell_dist import blocking
from llmspell_dist.hooks.context import HookContext
from llmspell_dist.hooks.points import HookPoint

__all__ = ["HOOKED", "READS", "WRITES", "Hooked", "Operation", "S", "Seen"]

S = "agent:hooked"
OTHER = "agent:other"


class Hooked:
    """A client of the asynchronous or the blocking surface; `do` waits for what has to be."""

    def __init__(self, spell: Any, surface: str, url: str = "") -> None:
        self.spell = spell
        self.url = url
        self.surface = surface
        self.hooks = spell.hooks
        self.state = spell.state

    async def do(self, given: Any) -> Any:
        """Return a result of either surface; what an iterator gives, as a list."""
        if isasyncgen(given):
            return [one async for one in given]
        if isgenerator(given):
            return list(given)
        return await given if isawaitable(given) else given

    async def transact(self, *changes: Callable[[Any], Any], state: Any = None) -> Any:
        """Carry a transaction out; what the changes gave."""
        transaction = (self.state if state is None else state).transaction()
        if self.surface == "blocking":
            with transaction as tx:
                return [change(tx) for change in changes]
        async with transaction as tx:
            return [await self.do(change(tx)) for change in changes]


@pytest.fixture(params=["async", "blocking"])
async def hooked(request: pytest.FixtureRequest, url: str, namespace: str) -> AsyncIterator[Hooked]:
    """A client of each surface."""
    if request.param == "async":
        async with llmspell_dist.connect(url, namespace=namespace) as spell:
            yield Hooked(spell, "async", url)
    else:
        with blocking.connect(url, namespace=namespace) as threaded:
            yield Hooked(threaded, "blocking", url)


@dataclass
class Seen:
    """A hook that remembers what it was told, and answers what it is told to answer."""

    answer: Callable[[HookContext], Any] = lambda _: None
    runs: list[HookContext] = field(default_factory=list)

    def execute(self, ctx: HookContext) -> Any:
        """Remember a copy."""
        self.runs.append(ctx.snapshot())
        return self.answer(ctx)

    @property
    def names(self) -> list[str | None]:
        """The operations that it saw."""
        return [run.operation_type for run in self.runs]


@dataclass(frozen=True)
class Operation:
    """One way to touch state: what to call, and what hooks see of it."""

    name: str
    call: Callable[[Hooked], Awaitable[Any]]
    keys: tuple[str | None, ...] = ("k",)
    """The keys that hooks before it are told, in their order."""
    seen_as: tuple[str, ...] = ()
    """What it is called there, if not by its name."""

    @property
    def names(self) -> tuple[str, ...]:
        """What hooks before it see it called."""
        return self.seen_as or (self.name,) * len(self.keys)


def _plain(method: str, *arguments: Any, **named: Any) -> Callable[[Hooked], Awaitable[Any]]:
    async def call(hooked: Hooked) -> Any:
        return await hooked.do(getattr(hooked.state, method)(*arguments, **named))

    return call


def _in_transaction(method: str, *arguments: Any) -> Callable[[Hooked], Awaitable[Any]]:
    async def call(hooked: Hooked) -> Any:
        return await hooked.transact(lambda tx: getattr(tx, method)(*arguments))

    return call


async def _cas(hooked: Hooked) -> Any:
    return await hooked.do(hooked.state.compare_and_set(S, "new", "x", expected=None))


WRITES = (
    Operation("set", _plain("set", S, "k", "x")),
    Operation("set_if_absent", _plain("set_if_absent", S, "new", "x"), ("new",)),
    Operation("compare_and_set", _cas, ("new",)),
    Operation("delete", _plain("delete", S, "k")),
    Operation("increment", _plain("increment", S, "n", 2), ("n",)),
    Operation("append", _plain("append", S, "l", 3, 4), ("l",)),
    Operation("merge", _plain("merge", S, "m", {"b": 2}), ("m",)),
    Operation("update", _plain("update", S, "k", lambda value: f"{value}!")),
    Operation("expire", _plain("expire", S, "k", 100)),
    Operation("persist", _plain("persist", S, "ttl"), ("ttl",)),
    Operation("set_many", _plain("set_many", S, {"k": 1, "k2": 2}), ("k", "k2")),
    Operation("delete_many", _plain("delete_many", S, ["k", "l"]), ("k", "l")),
    Operation("clear", _plain("clear", S), (None,)),
    Operation("copy_scope", _plain("copy_scope", S, OTHER), (None,)),
    Operation("move_scope", _plain("move_scope", S, OTHER), (None,)),
    Operation("transaction: set", _in_transaction("set", S, "k", "x"), ("k",), ("set",)),
    Operation("transaction: delete", _in_transaction("delete", S, "k"), ("k",), ("delete",)),
    Operation("transaction: append", _in_transaction("append", S, "l", 9), ("l",), ("append",)),
    Operation("transaction: merge", _in_transaction("merge", S, "m", {"z": 1}), ("m",), ("merge",)),
    Operation("transaction: expire", _in_transaction("expire", S, "k", 9), ("k",), ("expire",)),
    Operation(
        "transaction: increment", _in_transaction("increment", S, "n", 1), ("n",), ("increment",)
    ),
    Operation(
        "transaction: set_if_absent",
        _in_transaction("set_if_absent", S, "new", "x"),
        ("new",),
        ("set_if_absent",),
    ),
)
_EACH = ("k", "l", "m", "n", "ttl")
READS = (
    Operation("get", _plain("get", S, "k")),
    Operation("get_record", _plain("get_record", S, "k")),
    Operation("exists", _plain("exists", S, "k")),
    Operation("get_slice", _plain("get_slice", S, "l", 0, 1), ("l",)),
    Operation("get_many", _plain("get_many", S, ["k", "l"]), ("k", "l")),
    Operation("get_all", _plain("get_all", S), (None, *_EACH)),
    Operation("snapshot", _plain("snapshot", S), (None, *_EACH)),
    Operation("keys_page", _plain("keys_page", S), (None,)),
    Operation("keys", _plain("keys", S), (None,), ("keys_page",)),
    Operation("items_page", _plain("items_page", S), (None, *_EACH)),
    Operation("items", _plain("items", S), (None, *_EACH), ("items_page",) * 6),
    Operation("count", _plain("count", S), (None,)),
    Operation("stat", _plain("stat", S), (None,)),
    Operation("scopes", _plain("scopes"), (None,)),
    Operation("history", _plain("history", S, "k")),
    Operation("update", _plain("update", S, "k", lambda value: value)),
    Operation("transaction: get", _in_transaction("get", S, "k"), ("k",), ("get",)),
    Operation(
        "transaction: get_many", _in_transaction("get_many", S, ["k"]), ("k",), ("get_many",)
    ),
)
HOOKED = {
    HookPoint.BEFORE_STATE_WRITE: WRITES,
    HookPoint.BEFORE_STATE_READ: READS,
}


async def fill(hooked: Hooked) -> None:
    """Lay down what the operations find."""
    state = hooked.state
    await hooked.do(state.set_many(S, {"k": "old", "n": 1, "m": {"a": 1}}))
    await hooked.do(state.append(S, "l", 1, 2))
    await hooked.do(state.set(S, "ttl", "ends", ttl=1000))
