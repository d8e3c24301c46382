"""Backups of a million records to S3 on loopback and to a folder, incremental ones, and restores.

All is one row, since filling a server with a gigabyte takes longest. The peer is ``redis-cli --rdb
- | zstd -3`` of the same server in the same round: it sees the same records and the same log, which
is trimmed to its newest entries before. The server sends its RDB file at once and not compressed
(``repl-diskless-sync-delay 0``, ``rdbcompression no``), so that zstd sees what ours sees. Restores
go into a second, empty server; their peer sends the same records there by redis-py, one ``HSET``
for each, a thousand in a pipeline.

``LLMSPELL_BENCH_RECORDS`` sets another number of records; a note under the table says how many.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.backup_worker import Worker
from benchmarks.harness import Bench, Pair, Row, Samples, concurrently
from benchmarks.layout import WORKERS
from benchmarks.ours import NAMESPACE
from benchmarks.records import PER_SCOPE, fill, message, scope_name
from benchmarks.s3 import running_s3
from benchmarks.server import Server, running_server
from llmspell_dist import Options, Retention, Spell, connect

if TYPE_CHECKING:
    import redis

__all__ = ["PEER_OPTIONS", "ROWS", "keys_folder", "records_of"]

PEER_OPTIONS = (
    *("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"),
    *("--rdbcompression", "no"),
)
_PEER = "redis-cli --rdb - | zstd -3"
_S3, _FOLDER = "to S3", "to a folder"
_RESTORE, _HSET = "restore", "redis-py, pipelined HSET"
_LIMIT = "128 MB"
_CHANGED = 100
"""One record of a hundred is changed before an incremental backup."""
_PIPELINE = 1_000
_SMALLER = 10
"""The memory is measured with a tenth of the records as well."""
_ROUNDS = 3


def records_of(bench: Bench) -> int:
    """Return how many records there are to be."""
    given = os.environ.get("LLMSPELL_BENCH_RECORDS")
    return int(given) if given else bench.scale(1_000_000, 2_000)


def keys_folder(folder: Path) -> str:
    """Make a key, and return the URL of the folder that it is in."""
    folder.mkdir(mode=0o700)
    key = folder / "v1.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(32))
    return f"file://{folder}"


async def _measure(bench: Bench) -> Samples:  # noqa: PLR0915 - one round after the other
    records = records_of(bench)
    rounds = 1 if bench.quick else min(bench.rounds, _ROUNDS)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmspell-bench-")))
        keys = keys_folder(folder / "keys")
        server = stack.enter_context(running_server(bench.server.binary, *PEER_OPTIONS))
        other = stack.enter_context(running_server(bench.server.binary))
        s3 = stack.enter_context(running_s3(quick=bench.quick))
        environment = {**os.environ, **s3.environment}
        spell = await stack.enter_async_context(_filler(server))
        samples: Samples = {}
        kept, changes = 0, count(1)

        def note(arm: str, sample: float) -> None:
            samples.setdefault(arm, []).append(sample)

        async def one(place: str) -> dict[str, Any]:
            """Make a full and an incremental backup, and restore the former."""
            target = s3.new_bucket() if place == _S3 else f"file://{_empty(folder / 'backups')}"
            worker = await Worker.start(server.url, NAMESPACE, target, keys, environment)
            try:
                full = await worker.do("create")
                if place == _FOLDER:
                    return {"full": full}
                await _change(spell, records, change=next(changes))
                following = await worker.do("create", type="incremental")
            finally:
                await worker.end()
            with other.admin() as admin:
                admin.flushall()
            worker = await Worker.start(other.url, NAMESPACE, target, keys, environment)
            try:
                restored = await worker.do("restore", at=full["id"], rollback=False)
            finally:
                await worker.end()
            assert restored["records"] == full["records"], "not all records were restored"
            return {"full": full, "incremental": following, "restore": restored}

        if not bench.quick:
            # The memory at a tenth first, on the way to the whole.
            await fill(spell, max(PER_SCOPE, records // _SMALLER), lambda: _trim(server))
            few = await one(_S3)
            for what in ("full", "restore"):
                note(f"{what}, memory, a tenth", _memory_of(few[what]))
            with server.admin() as admin:
                admin.flushall()
        await fill(spell, records, lambda: _trim(server))
        _trim(server)
        for _ in range(rounds):
            done = await one(_S3)
            full, following, restored = done["full"], done["incremental"], done["restore"]
            assert full["records"] == records, "not all records were backed up"
            base = full["plain_bytes"]
            kept = _trim(server)
            seconds, size = await _peer(server, folder / "peer.zst")
            note(_S3, full["seconds"] * 1e6 / base)
            if not bench.quick:
                note(_FOLDER, (await one(_FOLDER))["full"]["seconds"] * 1e6 / base)
            note(_PEER, seconds * 1e6 / base)
            note("size", full["stored_bytes"])
            note(f"size of {_PEER}", size)
            note("full, memory", _memory_of(full))
            note("restore, memory", _memory_of(restored))
            note("incremental bytes", following["stored_bytes"])
            note("incremental time", following["seconds"] * 1e6)
            note("the full one's time", full["seconds"] * 1e6)
            note(_RESTORE, restored["seconds"] * 1e6 / base)
            note(_HSET, await _load(server, other) * 1e6 / base)
            bench.note(
                f"backup of {full['records']:,} records, {base / 1e6:,.0f} MB plain, to {s3.name}: "
                f"{full['seconds']:.1f} s ({full['cpu']:.1f} s of the processor in its process), "
                f"{full['stored_bytes'] / 1e6:,.0f} MB stored; peer {seconds:.1f} s; restore "
                f"{restored['seconds']:.1f} s ({restored['cpu']:.1f} s); incremental of "
                f"{following['entries']:,} entries: {following['seconds']:.2f} s, "
                f"{following['stored_bytes'] / 1e6:.2f} MB"
            )
        for arm in ("full, memory, a tenth", "restore, memory, a tenth"):
            if arm in samples:
                samples[arm] *= rounds
        samples[_LIMIT] = [128e6] * rounds
        bench.note(f"the peer's RDB file holds the same records and {kept} entry of the log")
    return samples


@asynccontextmanager
async def _filler(server: Server) -> AsyncIterator[Spell]:
    """Open a client that leaves the log alone: rows trim it themselves."""
    options = Options(namespace=NAMESPACE, retention=Retention(max_entries=1_000_000))
    async with connect(server.url, namespace=NAMESPACE, options=options) as spell:
        yield spell


async def _change(spell: Spell, records: int, *, change: int) -> None:
    """Change one record of a hundred."""
    total = max(1, records // _CHANGED)
    numbers = [number * _CHANGED for number in range(total)]
    values = [message(number, change) for number in numbers]

    async def write(worker: int, turn: int) -> None:
        place = turn * WORKERS + worker
        if place < total:
            number = numbers[place]
            key = f"message-{number:07d}"
            await spell.state.set(scope_name(number // PER_SCOPE), key, values[place])

    await concurrently(WORKERS, -(-total // WORKERS) * WORKERS, write)


def _trim(server: Server) -> int:
    """Leave the newest entry of the log, and return how many there are."""
    with server.admin() as admin:
        admin.xtrim(f"{NAMESPACE}:{{0}}:log", maxlen=1, approximate=False)
        return int(admin.xlen(f"{NAMESPACE}:{{0}}:log"))


def _memory_of(took: dict[str, Any]) -> float:
    above: float = took["highest"] - took["idle"]
    return max(1.0, above)


async def _peer(server: Server, file: Path) -> tuple[float, int]:
    """Return the seconds of the peer and the size of its file."""
    command = f"redis-cli -h {server.host} -p {server.port} --rdb - | zstd -3 -q -f -o {file}"
    started = perf_counter()
    process = await asyncio.create_subprocess_shell(command, stderr=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0, "the peer failed"
    return perf_counter() - started, await asyncio.to_thread(_taken_away, file)


def _taken_away(file: Path) -> int:
    size = file.stat().st_size
    file.unlink()
    return size


async def _load(source: Server, target: Server) -> float:
    """Return the seconds that redis-py takes to send all records, fetched before each pipeline."""

    def run() -> float:
        spent = 0.0
        with source.admin() as reader, target.admin() as writer:
            writer.flushall()
            names = list(reader.scan_iter(f"{NAMESPACE}:{{0}}:session:*", 1_000))
            batch: list[tuple[bytes, bytes, bytes]] = []
            for name in names:
                if reader.type(name) == b"hash":
                    batch += [(name, key, raw) for key, raw in reader.hgetall(name).items()]
                if len(batch) >= _PIPELINE:
                    spent += _send(writer, batch)
                    batch = []
            spent += _send(writer, batch)
            writer.flushall()
        return spent

    return await asyncio.to_thread(run)


def _send(writer: redis.Redis, batch: list[tuple[bytes, bytes, bytes]]) -> float:
    started = perf_counter()
    pipe = writer.pipeline(transaction=False)
    for name, key, raw in batch:
        pipe.hset(name, key, raw)
    pipe.execute()
    return perf_counter() - started


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


ROWS = (
    Row(
        "backup",
        _measure,
        (
            Pair("backup_speed", _S3, _PEER, "MB/s"),
            Pair("backup_speed: to a folder", _FOLDER, _PEER, "MB/s"),
            Pair("backup_size", "size", f"size of {_PEER}", "MB"),
            Pair("backup_memory", "full, memory", _LIMIT, "MB"),
            Pair("backup_memory: a tenth of it", "full, memory, a tenth", _LIMIT, "MB"),
            Pair("restore_memory", "restore, memory", _LIMIT, "MB"),
            Pair("restore_memory: a tenth of it", "restore, memory, a tenth", _LIMIT, "MB"),
            Pair("restore_speed", _RESTORE, _HSET, "MB/s"),
            Pair("incremental_bytes", "incremental bytes", "size", "MB"),
            Pair("incremental_time", "incremental time", "the full one's time", "ms"),
        ),
    ),
)
