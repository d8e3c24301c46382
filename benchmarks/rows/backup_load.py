"""What a backup costs those who write meanwhile, and its longest commands on the server.

Fifty writers in this process; the backup, to S3 on loopback, in another one, again and again as
long as they write, with the priority that the command line gives it. The longest commands are those
of the server's own statistics: a backup reads with commands that nobody else in the row uses.
Beside them stand the longest commits, with and without the backup: what the machine does to any
command.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.backup_worker import CLIENT, Worker
from benchmarks.harness import Arm, Bench, Pair, Row, Samples
from benchmarks.layout import FIELDS, KEYS, SCOPES, VARIANTS, WORKERS, Values
from benchmarks.ours import NAMESPACE
from benchmarks.payloads import MAIN
from benchmarks.records import fill
from benchmarks.rows.backup import keys_folder
from benchmarks.s3 import running_s3
from benchmarks.server import Server, running_server
from llmspell_dist import Options, Retention, connect
from llmspell_dist.cli.backup_options import NICE
from llmspell_dist.redis.scripts import load_script

__all__ = ["ROWS"]

_DURING, _WITHOUT = "during a backup", "without a backup"
_READS = ("hgetall", "hscan", "hget", "lrange", "xrange", "xrevrange")
_SCRIPTS = "evalsha"
_NOT_ITS_OWN = ("trim", "sweep")
"""Scripts that every client runs now and then, with and without backups."""
_LONGEST, _TEN = "longest command of a backup", "10 ms"
_RARE = "the slowest in 1,000 of a kind"
_SECONDS = 2.0
_ROUNDS = 5


async def _measure(bench: Bench) -> Samples:  # noqa: PLR0915 - its arms share everything
    records = int(os.environ.get("LLMSPELL_BENCH_RECORDS", bench.scale(100_000, 2_000)))
    values = Values(MAIN)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmspell-bench-")))
        keys = keys_folder(folder / "keys")
        server = stack.enter_context(
            running_server(
                bench.server.binary,
                *("--latency-tracking-info-percentiles", "99.9 100"),
                *("--slowlog-log-slower-than", "10000", "--slowlog-max-len", "10000"),
            )
        )
        s3 = stack.enter_context(running_s3(quick=bench.quick))
        options = Options(namespace=NAMESPACE, retention=Retention(max_entries=10_000))
        spell = await stack.enter_async_context(
            connect(server.url, namespace=NAMESPACE, options=options)
        )
        await fill(spell, records)
        environment = {**os.environ, **s3.environment}
        worker = await Worker.start(
            *(server.url, NAMESPACE, s3.new_bucket(), keys, environment), nice=NICE
        )
        stack.push_async_callback(worker.end)
        put, data = spell.state.set, values.objects
        longest: dict[str, list[float]] = {_LONGEST: [], _DURING: [], _WITHOUT: [], _RARE: []}
        taken: list[dict[str, Any]] = []
        slow: list[str] = []

        async def writing(until: asyncio.Event) -> float:
            """Write until told to stop; microseconds for each write."""
            done, started = [0], perf_counter()

            async def one(writer: int) -> None:
                turn = 0
                while not until.is_set():
                    await put(SCOPES[writer], FIELDS[turn % KEYS], data[turn % VARIANTS])
                    done[0] += 1
                    turn += 1

            await asyncio.gather(*[one(writer) for writer in range(WORKERS)])
            return (perf_counter() - started) * 1e6 / done[0]

        async def without(_: int) -> float:
            stop = asyncio.Event()
            _reset(server)
            asyncio.get_running_loop().call_later(bench.scale(1, 0) or 0.1, stop.set)
            cost = await writing(stop)
            longest[_WITHOUT].append(_longest(server, (_SCRIPTS,)))
            await spell.log.trim()
            return cost

        async def during(_: int) -> float:
            stop = asyncio.Event()
            _reset(server)

            async def backups() -> None:
                ends = perf_counter() + (_SECONDS if not bench.quick else 0)
                while True:
                    taken.append(await worker.do("create"))
                    if perf_counter() >= ends:
                        break
                stop.set()

            cost, __ = await asyncio.gather(writing(stop), backups())
            longest[_LONGEST].append(_longest(server, _READS))
            longest[_RARE].append(_longest(server, _READS, "p99.9"))
            longest[_DURING].append(_longest(server, (_SCRIPTS,)))
            slow.extend(_slow(server))
            await spell.log.trim()
            return cost

        samples = await bench.interleave(
            [Arm(_DURING, during, fixed=1), Arm(_WITHOUT, without, fixed=1)],
            rounds=1 if bench.quick else min(bench.rounds, _ROUNDS),
        )
        samples[_LONGEST] = longest[_LONGEST]
        samples[_RARE] = longest[_RARE]
        samples[_TEN] = [10_000.0] * len(longest[_LONGEST])
        for arm in (_DURING, _WITHOUT):
            samples[f"longest commit {arm}"] = longest[arm]
        some = taken[-1]
        bench.note(
            f"{len(taken)} backups of {records:,} records under writers, the last in "
            f"{some['seconds']:.1f} s with {some['entries']:,} entries of the log and "
            f"{some['inexact']} inexact keys; commands of theirs in the slow log (10 ms): "
            f"{', '.join(slow) or 'none'}"
        )
    return samples


def _reset(server: Server) -> None:
    with server.admin() as admin:
        admin.config_resetstat()
        admin.slowlog_reset()


def _longest(server: Server, commands: tuple[str, ...], percentile: str = "p100") -> float:
    """Return a percentile of the slowest of some commands, in microseconds; by default the most."""
    with server.admin() as admin:
        found: dict[str, Any] = admin.info("latencystats")
    times = [found.get(f"latency_percentiles_usec_{name}", {}) for name in commands]
    return max(float(one.get(percentile, 0)) for one in times)


def _slow(server: Server) -> list[str]:
    """Return the commands of the process that makes backups that took ten milliseconds."""
    with server.admin() as admin:
        entries: list[Any] = admin.execute_command("SLOWLOG GET", 10_000)
    others = {load_script(name).sha for name in _NOT_ITS_OWN}
    found = []
    for entry in entries:
        command = bytes(entry["command"])
        if command.split()[1:2] and command.split()[1] in others:
            continue
        if CLIENT.encode() in entry.get("client_name", b""):
            found.append(f"{command[:40]!r} {entry['duration'] / 1000:.1f} ms")
    return found


ROWS = (
    Row(
        "backup_load",
        _measure,
        (
            Pair("backup_writers", _DURING, _WITHOUT, "ops/s"),
            Pair("backup_longest_command", _LONGEST, _TEN, "ms"),
            Pair("backup_longest_command: 99.9 % of each kind", _RARE, _TEN, "ms"),
            Pair(
                "backup_longest_command: longest commit, the control",
                f"longest commit {_DURING}",
                f"longest commit {_WITHOUT}",
                "ms",
            ),
        ),
    ),
)
