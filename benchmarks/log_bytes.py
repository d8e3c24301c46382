"""``python -m benchmarks.log_bytes``: what a commit costs in bytes, in memory and in the AOF.

Plain sets of one key each, over 50 scopes of 20 keys that exist already. The memory of the change
log is what the server says (``MEMORY USAGE`` of the stream, every node counted); the AOF's bytes
are counted in the file itself, command by command. Prints the table of
``docs/technical/state-architecture.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import llmspell_dist
from benchmarks.harness import concurrently, one_by_one
from benchmarks.payloads import MAIN, MEDIUM, SMALL, value
from benchmarks.server import Server, find_binary, running_server
from llmspell_dist import Options, Retention

if TYPE_CHECKING:
    import redis

__all__ = ["Measured", "main", "measure"]

SIZES = {"143 B": SMALL, "663 B": MAIN, "4.3 KB": MEDIUM}
SCOPES, KEYS = 50, 20
COMMITS = 5_000
_NAMESPACE = "bytes"
_CLIENT = "worker-1"
_SETTLE_LIMIT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes a commit, of values of one size."""

    label: str
    payload: int
    stream: float
    """Memory of the log's stream per entry."""
    aof_entry: float
    """The XADD of a commit in the AOF."""
    aof_alone: float
    """Everything of a commit in the AOF, if it goes alone."""
    aof_grouped: float
    """The same with 50 callers at once, whose commits share script calls."""
    aof_bare: float
    """An HSET of the same payload, for comparison."""


def measure(server: Server, label: str, size: int, commits: int = COMMITS) -> Measured:
    """Return what commits of values of `size` packed bytes cost."""
    with server.admin() as admin:
        stream, alone = _commits(server, admin, size, commits, grouped=False)
        _, grouped = _commits(server, admin, size, commits, grouped=True)
        at = _aof_position(admin)
        payload = llmspell_dist.codec.encode(value(size))
        for number in range(100):
            admin.hset(f"{_NAMESPACE}:agent-{number % SCOPES:02d}", _key(number), payload)
        bare = _aof_bytes(admin, at)
    return Measured(
        label,
        size,
        stream,
        alone["XADD"] / commits,
        alone.total() / commits,
        grouped.total() / commits,
        bare["HSET"] / 100,
    )


def _commits(
    server: Server, admin: redis.Redis, size: int, commits: int, *, grouped: bool
) -> tuple[float, Counter[str]]:
    """Commit so often; bytes of the stream per entry, and of the AOF by command."""
    admin.flushall()
    values = [value(size, variant) for variant in range(50)]

    async def run() -> int:
        options = Options(namespace=_NAMESPACE, retention=Retention(max_age=None))
        async with llmspell_dist.connect(server.url, client_name=_CLIENT, options=options) as spell:
            put = spell.state.set

            def commit(worker: int, turn: int) -> Awaitable[object]:
                place = turn * SCOPES + worker if grouped else turn
                scope = f"agent:agent-{place % SCOPES:02d}"
                return put(scope, _key(place // SCOPES), values[place % 50])

            async def all_of(count: int) -> None:
                if grouped:
                    await concurrently(SCOPES, count, commit)
                else:
                    await one_by_one(count, commit)

            await all_of(SCOPES * KEYS)  # every key exists
            await spell.log.trim()
            before = (await spell.log.stat()).entries
            at = _aof_position(admin)
            await all_of(commits)
            counted.update(_aof_bytes(admin, at))
            return (await spell.log.stat()).entries - before

    counted: Counter[str] = Counter()
    added = asyncio.run(run())
    assert added == commits, (added, commits)
    log = f"{_NAMESPACE}:{{0}}:log"
    memory = admin.execute_command("MEMORY", "USAGE", log, "SAMPLES", 0)  # type: ignore[no-untyped-call]
    return float(memory) / admin.xlen(log), counted


def _key(number: int) -> str:
    return f"key-{number % KEYS:02d}"


# --- the AOF --------------------------------------------------------------------------------------


def _aof_file(admin: redis.Redis) -> Path:
    folder = Path(str(admin.config_get("dir")["dir"]))
    found = [*folder.glob("appendonlydir/*.incr.aof"), *folder.glob("appendonly.aof")]
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def _aof_position(admin: redis.Redis) -> int:
    """Return where the AOF ends, once the server has written all that it was told."""
    deadline = time.monotonic() + _SETTLE_LIMIT_SECONDS
    while time.monotonic() < deadline:
        info = admin.info("persistence")
        if not info["aof_buffer_length"]:
            break
        time.sleep(0.01)
    return _aof_file(admin).stat().st_size


def _aof_bytes(admin: redis.Redis, start: int) -> Counter[str]:
    """Return the bytes written since `start`, by command."""
    end = _aof_position(admin)
    with _aof_file(admin).open("rb") as file:
        file.seek(start)
        data = file.read(end - start)
    counted: Counter[str] = Counter()
    for command, size in _commands(data):
        counted[command] += size
    assert counted.total() == len(data)
    return counted


def _commands(data: bytes) -> Iterator[tuple[str, int]]:
    at = 0
    while at < len(data):
        begin, name = at, ""
        if data[at : at + 1] == b"#":  # a time stamp
            at = data.index(b"\n", at) + 1
            yield "#", at - begin
            continue
        line = data.index(b"\r\n", at)
        words = int(data[at + 1 : line])
        at = line + 2
        for number in range(words):
            line = data.index(b"\r\n", at)
            size = int(data[at + 1 : line])
            if number == 0:
                name = data[line + 2 : line + 2 + size].decode().upper()
            at = line + 2 + size + 2
        yield name, at - begin


# --- the table ------------------------------------------------------------------------------------


def table(rows: Sequence[Measured]) -> str:
    """Return the rows as the table of the documentation."""
    columns = (
        "value, packed",
        "log entry in memory",
        "log entry in the AOF",
        "whole commit in the AOF, alone",
        "of 50 callers at once",
        "bare `HSET` in the AOF",
    )
    lines = [f"| {' | '.join(columns)} |", "|---:" * len(columns) + "|"]
    for row in rows:
        sizes = (row.stream, row.aof_entry, row.aof_alone, row.aof_grouped, row.aof_bare)
        cells = [f"{size:,.0f} B" for size in sizes]
        lines.append(f"| {row.payload:,} B | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every size and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.log_bytes", description="Bytes that a commit costs."
    )
    parser.add_argument("--server", metavar="BINARY", help="server binary (default: from PATH)")
    parser.add_argument("--commits", type=int, default=COMMITS, help="commits per size and way")
    options = parser.parse_args(arguments)
    with running_server(
        find_binary(options.server), "--appendonly", "yes", "--auto-aof-rewrite-percentage", "0"
    ) as server:
        rows = [
            measure(server, label, size, options.commits - options.commits % SCOPES)
            for label, size in SIZES.items()
        ]
        print(f"{server.product} {server.version}, {options.commits:,} commits each\n")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
