"""The import: what a short-lived process (a command line, a function call) pays before it starts.

Each sample is one fresh interpreter that times nothing but its import statement, so the
interpreter's own start does not dilute the ratio.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Awaitable, Callable

from benchmarks.harness import Arm, Bench, Pair, Row, Samples

__all__ = ["ROWS"]

_OURS = "import llmspell_dist"
_PEER = "import redis.asyncio"
_PROBE = """
import time
wall, cpu = time.perf_counter(), time.process_time()
{statement}
print(time.perf_counter() - wall, time.process_time() - cpu)
"""
_ROUNDS = 25


async def _measure(bench: Bench) -> Samples:
    rounds = 3 if bench.quick else _ROUNDS
    wall = await bench.interleave([_arm(_OURS, 0), _arm(_PEER, 0)], rounds=rounds)
    if bench.quick:
        return wall
    cpu = await bench.interleave(
        [_arm(f"{_OURS} (CPU)", 1), _arm(f"{_PEER} (CPU)", 1)], rounds=rounds
    )
    return wall | cpu


def _arm(name: str, column: int) -> Arm:
    return Arm(name, _importing(name.removesuffix(" (CPU)"), column), fixed=1)


def _importing(statement: str, column: int) -> Callable[[int], Awaitable[float]]:
    program = _PROBE.format(statement=statement)

    async def work(_: int) -> float:
        done = subprocess.run(  # noqa: ASYNC221 - nothing else runs during an arm
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        return float(done.stdout.split()[column]) * 1e6

    return work


ROWS = (
    Row(
        "import_time",
        _measure,
        (
            Pair("import_time", _OURS, _PEER, "ms"),
            Pair("import_time: CPU time", f"{_OURS} (CPU)", f"{_PEER} (CPU)", "ms"),
        ),
    ),
)
