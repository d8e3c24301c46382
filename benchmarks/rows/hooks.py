"""`set` with five in-line hooks that do nothing, against none.

The difference is a few microseconds of some hundred, so the arms take turns every few milliseconds,
and what a round gives is the cost of each over all its turns.
"""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from time import perf_counter

from benchmarks.harness import Bench, Pair, Row, Samples, concurrently, one_by_one
from benchmarks.layout import FIELDS, KEYS, SCOPES, VARIANTS, WORKERS, Values
from benchmarks.ours import check_written, entries_added, open_ours
from benchmarks.payloads import MAIN
from llmspell_dist import Spell
from llmspell_dist.hooks.context import HookContext
from llmspell_dist.hooks.points import HookPoint

__all__ = ["ROWS"]

_NONE, _BEFORE, _MIXED = "no hooks", "5 before", "3 before, 2 after"
_TURN_S = 0.004
_US = 1e6


def _hooks(spell: Spell, before: int, after: int, runs: list[int]) -> None:
    """Register so many hooks that do nothing, each a function of its own; the first one counts."""

    def counts(_: HookContext) -> None:
        runs[0] += 1

    for number in range(before + after):
        point = HookPoint.BEFORE_STATE_WRITE if number < before else HookPoint.AFTER_STATE_WRITE
        spell.hooks.register(point, counts if not number else _no_op(), name=f"no-op-{number}")


def _no_op() -> Callable[[HookContext], None]:
    def does_nothing(_: HookContext) -> None:
        pass

    return does_nothing


async def _measure(bench: Bench, *, callers: int) -> Samples:
    values = Values(MAIN)
    async with AsyncExitStack() as stack:
        spells = {
            name: await stack.enter_async_context(open_ours(bench.server))
            for name in (_NONE, _BEFORE, _MIXED)
        }
        runs: dict[str, list[int]] = {_BEFORE: [0], _MIXED: [0]}
        _hooks(spells[_BEFORE], 5, 0, runs[_BEFORE])
        _hooks(spells[_MIXED], 3, 2, runs[_MIXED])
        arms = {name: partial(_write, spell, values, callers) for name, spell in spells.items()}
        before, done = entries_added(bench.server), dict.fromkeys(arms, 0)
        samples: Samples = {name: [] for name in arms}
        each = await _calibrated(arms, done, callers)
        for _ in range(bench.rounds):
            spent = await _round(arms, done, each, bench.slot)
            for name, cost in spent.items():
                samples[name].append(cost)
        for name, counted in runs.items():
            assert counted == [done[name]], f"{name}: the hooks did not run once for each set"
        commits = sum(done.values())
        await check_written(spells[_NONE], bench.server, values, commits=commits, before=before)
        return samples


Arms = Mapping[str, Callable[[int], Awaitable[None]]]


async def _write(spell: Spell, values: Values, callers: int, count: int) -> None:
    put, data = spell.state.set, values.objects

    def call(worker: int, turn: int) -> Awaitable[object]:
        return put(SCOPES[worker], FIELDS[turn % KEYS], data[turn % VARIANTS])

    if callers == 1:
        await one_by_one(count, call)
    else:
        await concurrently(callers, count, call)


async def _calibrated(arms: Arms, done: dict[str, int], callers: int) -> int:
    """Return how many operations fill one turn; every arm is warm afterwards."""
    count = callers * 64
    slowest = 0.0
    for name, work in arms.items():
        started = perf_counter()
        await work(count)
        done[name] += count
        slowest = max(slowest, (perf_counter() - started) / count)
    return max(1, round(_TURN_S / slowest / callers)) * callers


async def _round(arms: Arms, done: dict[str, int], each: int, slot: float) -> dict[str, float]:
    """Let the arms take turns until each has had its slot; microseconds per operation."""
    spent = dict.fromkeys(arms, 0.0)
    names, turns = list(arms), max(2, round(slot / _TURN_S))
    gc.collect()
    gc.disable()
    try:
        for turn in range(turns):
            for name in names if turn % 2 == 0 else reversed(names):
                started = perf_counter()
                await arms[name](each)
                spent[name] += perf_counter() - started
                done[name] += each
    finally:
        gc.enable()
    return {name: total * _US / (turns * each) for name, total in spent.items()}


def _row(name: str, callers: int) -> Row:
    pairs = (Pair(name, _BEFORE, _NONE), Pair(f"{name}: {_MIXED}", _MIXED, _NONE))
    return Row(name, partial(_measure, callers=callers), pairs)


ROWS = (_row("hooks_inline_1", 1), _row("hooks_inline_50", WORKERS))
