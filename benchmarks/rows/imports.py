"""The import: what a short-lived process (a command line, a function call) pays before it starts.

Each sample is one fresh interpreter that times nothing but its import statement, so the
interpreter's own start does not dilute the ratio.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from tempfile import TemporaryDirectory

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
    rounds = bench.rounds if bench.quick else _ROUNDS
    # Both sides from compiled modules, as an installed package has them: a checkout, or an
    # environment that forbids to write them, would compile ours anew each time.
    with TemporaryDirectory(prefix="llmspell-import-") as folder:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        ours, peer = _arm(_OURS, 0, environment), _arm(_PEER, 0, environment)
        for arm in (ours, peer):
            await arm.work(1)
        wall = await bench.interleave([ours, peer], rounds=rounds)
        if bench.quick:
            return wall
        cpu = [_arm(f"{name} (CPU)", 1, environment) for name in (_OURS, _PEER)]
        return wall | await bench.interleave(cpu, rounds=rounds)


def _arm(name: str, column: int, environment: dict[str, str]) -> Arm:
    statement = name.removesuffix(" (CPU)")
    return Arm(name, _importing(statement, column, environment), fixed=1)


def _importing(
    statement: str, column: int, environment: dict[str, str]
) -> Callable[[int], Awaitable[float]]:
    program = _PROBE.format(statement=statement)

    async def work(_: int) -> float:
        done = subprocess.run(  # noqa: ASYNC221 - nothing else runs during an arm
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
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
