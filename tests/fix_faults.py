"""What the fault tests share: writers whose every effect can be counted, and the count itself.

`Writers` keeps what each caller was told; `Writers.check` compares that with what lies in Redis:
every acknowledged write is there once, none twice, each caller got its own reply, and the log has
one entry per operation id.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from fix_state import Raw, Store

import llmspell_dist
from llmspell_dist import blocking
from llmspell_dist.changes import Op
from llmspell_dist.config import Options
from llmspell_dist.errors import ConflictError, OutcomeUnknownError, StoreUnavailableError
from llmspell_dist.redis.blocking_driver import BlockingDriver
from llmspell_dist.redis.lanes import Lanes
from llmspell_dist.redis.options import LaneOptions
from llmspell_dist.revision import Revision

SCOPE = "agent:faults"
COUNTERS = 4
LISTS = 4
OWN = 20
"""Keys whose value is their own number, for readers."""
SWEPT = "0000000000000000:0"
"""The operation id of what the sweeper logs."""


def address_of(server: Any) -> str | tuple[str, int]:
    """Return where a test server, an embedded server or a proxy listens."""
    address = getattr(server, "address", None)
    return address if address is not None else str(server.socket)


def raw_to(server: Any) -> Raw:
    """Return a plain connection to a server, past any proxy."""
    return Raw(address_of(server))


def quiet(namespace: str, **options: Any) -> Options:
    """Return options without housekeeping, so that nothing but the test touches the log."""
    return Options(namespace=namespace, housekeeping=False, **options)


def client(server: Any, namespace: str, **options: Any) -> Any:
    """Return what opens an asynchronous client."""
    return llmspell_dist.connect(server.url, options=quiet(namespace, **options))


def blocking_client(server: Any, namespace: str, **options: Any) -> blocking.Spell:
    """Return an open blocking client."""
    return blocking.connect(server.url, options=quiet(namespace, **options))


async def outcome(waiting: Any) -> Any:
    """Return what a call gave, an error of the store included."""
    try:
        return await waiting
    except (StoreUnavailableError, ConflictError) as error:
        return error


@contextmanager
def stopped(pid: int | None) -> Iterator[None]:
    """Hold a process as SIGSTOP does, for the length of a block."""
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def wait_for_acks(seconds: float, *spells: Any) -> None:
    """Let clients wait for replicas and disks for so long, instead of for a second."""
    for spell in spells:
        driver = spell._lanes.durable if hasattr(spell, "_lanes") else spell._connections
        driver.options = replace(driver.options, ack_timeout=seconds)


@contextmanager
def hasty(client: Any, **options: Any) -> Iterator[None]:
    """Let a client, or what it has of connections, be less patient for the length of a block.

    So it has all the time to connect before, and to find its way back afterwards.
    """
    driver = getattr(client, "_lanes", None) or getattr(client, "_connections", client)
    parts: Sequence[Any] = driver._all() if isinstance(driver, Lanes) else [driver]
    patient = parts[0].options
    _be(parts, replace(patient, **options))
    for lane in parts if isinstance(driver, Lanes) else ():
        watching = lane._supervisor
        watching._tick_s = 0.02
        if watching._timer is not None:
            watching._timer.cancel()
            watching._tick()
    try:
        yield
    finally:
        _be(parts, patient)


def _be(parts: Sequence[Any], options: LaneOptions) -> None:
    for part in parts:
        part.options = options
        for connection in part._all if isinstance(part, BlockingDriver) else ():
            connection._options = options


def environment() -> dict[str, str]:
    """Return the environment in which another Python process finds what this one imports."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


class Writers:
    """Concurrent calls whose effects can be told apart, and what their callers were told."""

    def __init__(self, store: Store, *, reads: bool = True) -> None:
        self.store = store
        self.told: dict[int, Any] = {}
        """By number: what the call returned, or the error that it raised."""
        self.calls = 0
        self.strays = 0
        """Replies that were another caller's. Must stay 0."""
        self._reads = reads

    async def prepare(self, state: Any) -> None:
        """Lay down what the readers read."""
        await state.set_many(SCOPE, {f"own{i}": i for i in range(OWN)})

    async def call(self, state: Any, number: int) -> None:
        """Make one call, of the kind that its number says, and keep what it gave."""
        self.told[number] = None
        try:
            told = await self._call(state, number)
        except (StoreUnavailableError, asyncio.CancelledError) as error:
            told = error
            if isinstance(error, asyncio.CancelledError):
                self.told[number] = told
                raise
        self.told[number] = told

    def _call(self, state: Any, number: int) -> Any:
        match number % 5 if self._reads else number % 4:
            case 0:
                return state.set(SCOPE, f"set{number}", {"id": number})
            case 1:
                return state.increment(SCOPE, f"sum{number % COUNTERS}")
            case 2:
                return state.append(SCOPE, f"list{number % LISTS}", number)
            case 3:
                return state.set_if_absent(SCOPE, f"new{number}", number)
            case _:
                return self._read(state, number)

    async def _read(self, state: Any, number: int) -> int:
        got: int = await state.get(SCOPE, f"own{number % OWN}")
        if got != number % OWN:
            self.strays += 1
        return got

    def burst(self, state: Any, count: int) -> list[asyncio.Task[None]]:
        """Start so many calls at once."""
        first, self.calls = self.calls, self.calls + count
        return [asyncio.create_task(self.call(state, first + i)) for i in range(count)]

    # --- the count

    def _kind(self, number: int) -> int:
        return number % 5 if self._reads else number % 4

    def _of_kind(self, kind: int, of: int | None = None, groups: int = 1) -> list[int]:
        return [
            number
            for number in self.told
            if self._kind(number) == kind and (of is None or number % groups == of)
        ]

    def acknowledged(self, numbers: list[int]) -> list[int]:
        """Those of the calls that were told of success."""
        return [n for n in numbers if not isinstance(self.told[n], (BaseException, type(None)))]

    def maybe(self, numbers: list[int]) -> list[int]:
        """Those of which nobody was told: cancelled, or of unknown outcome."""
        return [n for n in numbers if _unknown(self.told[n])]

    async def check(self, state: Any) -> Counter[str]:
        """Compare what the callers were told with what is there; return the counts."""
        assert len(self.told) == self.calls, "a call has not ended"
        assert self.strays == 0, "a caller got another's reply"
        counts: Counter[str] = Counter()
        for told in self.told.values():
            name = "acknowledged"
            if isinstance(told, BaseException):
                name = "unknown" if _unknown(told) else "failed"
            counts[name] += 1
        log = self.store.log()
        operations = Counter(entry.operation for entry in log if entry.operation != SWEPT)
        twice = {operation: n for operation, n in operations.items() if n > 1}
        assert not twice, f"applied more than once: {twice}"
        made = {(change.key, entry.revision) for entry in log for change in entry.changes}
        await self._check_sets(state, made)
        logged = Counter((change.op, change.key) for entry in log for change in entry.changes)
        await self._check_sums(state, logged)
        await self._check_lists(state)
        self.store.check()
        counts["log entries"] = len(log)
        return counts

    async def _check_sets(self, state: Any, made: set[tuple[str, Revision]]) -> None:
        for kind, name in ((0, "set"), (3, "new")):
            numbers = self._of_kind(kind)
            maybe = set(self.maybe(numbers))
            found: dict[str, Any] = {}
            keys = [f"{name}{number}" for number in numbers]
            for start in range(0, len(keys), 1000):
                found |= await state.get_many(SCOPE, keys[start : start + 1000])
            for number in numbers:
                key, told = f"{name}{number}", self.told[number]
                expected = {"id": number} if kind == 0 else number
                if isinstance(told, Revision):
                    assert found.get(key) == expected, f"{key} was acknowledged and is lost"
                    assert (key, told) in made, f"{key} was told the revision of another"
                elif number in maybe:
                    assert found.get(key, expected) == expected
                else:
                    assert isinstance(told, StoreUnavailableError), f"{key} was told {told!r}"
                    assert key not in found, f"{key} was refused and is there"
            for number in numbers[:: max(1, len(numbers) // 50)]:
                record = await state.get_record(SCOPE, f"{name}{number}")
                if isinstance(self.told[number], Revision):
                    assert record.revision == self.told[number]

    async def _check_sums(self, state: Any, logged: Counter[tuple[int, str]]) -> None:
        for counter in range(COUNTERS):
            key = f"sum{counter}"
            numbers = self._of_kind(1, counter, COUNTERS)
            sure, maybe = self.acknowledged(numbers), self.maybe(numbers)
            value = await state.get(SCOPE, key, 0)
            assert len(sure) <= value <= len(sure) + len(maybe), (
                f"{key} is {value}, not {len(sure)}"
            )
            sums = [self.told[n] for n in sure]
            assert len(set(sums)) == len(sums), f"two callers were told the same {key}"
            assert all(1 <= told <= value for told in sums)
            assert logged[Op.INCREMENT, key] == value, f"{key}: the log does not add up"

    async def _check_lists(self, state: Any) -> None:
        for place in range(LISTS):
            numbers = self._of_kind(2, place, LISTS)
            sure, maybe = self.acknowledged(numbers), self.maybe(numbers)
            items = await state.get(SCOPE, f"list{place}", [])
            assert len(set(items)) == len(items), f"appended twice to list{place}"
            assert set(sure) <= set(items), f"list{place} lacks what was acknowledged"
            assert set(items) <= set(sure) | set(maybe), f"list{place} holds what was refused"
            for number in sure:
                assert items[self.told[number] - 1] == number, "told the length of another's append"


def _unknown(told: Any) -> bool:
    if isinstance(told, (asyncio.CancelledError, OutcomeUnknownError)):
        return True
    return isinstance(told, StoreUnavailableError) and told.may_have_happened


async def ends(tasks: list[asyncio.Task[Any]], within_s: float = 60.0) -> None:
    """Wait until all tasks have ended, and fail if one does not."""
    _, late = await asyncio.wait(tasks, timeout=within_s)
    for task in late:
        task.cancel()
    assert not late, f"{len(late)} of {len(tasks)} calls did not end"


Proxies = Callable[..., Any]
Servers = Callable[..., Any]
