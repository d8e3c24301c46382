"""What many small sessions cost in the server's memory, against bare hashes of the same payloads.

Each side fills a fresh server of its own; compared are the increases of ``used_memory``.
"""

from __future__ import annotations

import msgpack

from benchmarks.harness import Bench, Pair, Row, Samples, concurrently
from benchmarks.layout import WORKERS
from benchmarks.ours import NAMESPACE, OURS, open_ours
from benchmarks.peers import open_redis_py
from benchmarks.server import Server, running_server
from llmspell_dist import Options, Retention

__all__ = ["ROWS"]

_SCOPES = 200_000
_KEYS = [f"key-{number}" for number in range(5)]
_CHANGES = 5
_LOG_KEPT = 1_000
_HEADER = 2  # MessagePack's own header of a byte string of this length
_BATCH = 1_000
_BARE = "bare hashes"


async def _measure(bench: Bench) -> Samples:
    count = bench.scale(_SCOPES, 2_000)
    with running_server(bench.server.binary) as server:
        before = _used(server)
        await _fill_bare(server, count)
        bare = _used(server) - before
    with running_server(bench.server.binary) as server:
        before = _used(server)
        await _fill_ours(server, count)
        ours = _used(server) - before
    return {OURS: [float(ours)], _BARE: [float(bare)]}


async def _fill_bare(server: Server, count: int) -> None:
    async with open_redis_py(server) as plain:
        for start in range(0, count, _BATCH):
            async with plain.pipeline(transaction=False) as pipe:
                for number in range(start, start + _BATCH):
                    pipe.hset(f"session:{number:07d}", mapping=_packed(number, _CHANGES - 1))  # type: ignore[arg-type]
                await pipe.execute()


async def _fill_ours(server: Server, count: int) -> None:
    """Change every scope five times: the first commit writes all keys, each other one a key."""
    retention = Retention(max_entries=_LOG_KEPT)
    async with open_ours(server, Options(namespace=NAMESPACE, retention=retention)) as spell:
        state = spell.state

        async def change(start: int, round_: int) -> None:
            async def write(worker: int, turn: int) -> None:
                number = start + turn * WORKERS + worker
                scope, values = f"session:{number:07d}", _values(number, round_)
                if round_ == 0:
                    await state.set_many(scope, values)
                else:
                    await state.set(scope, _KEYS[round_], values[_KEYS[round_]])

            await concurrently(WORKERS, _BATCH, write)

        for round_ in range(_CHANGES):
            for start in range(0, count, _BATCH):
                await change(start, round_)
            await spell.log.trim()
        last = count - 1
        expected = {key: _values(last, n)[key] for n, key in enumerate(_KEYS)}
        assert await state.get_all(f"session:{last:07d}") == expected
        assert (await spell.log.stat()).entries <= _LOG_KEPT * 1.2  # whole nodes of the stream stay


def _used(server: Server) -> int:
    with server.admin() as admin:
        return int(admin.info("memory")["used_memory"])


def _values(scope: int, change: int) -> dict[str, bytes]:
    """Return the five values of a scope; packed, each has 100 bytes."""
    text = f"{scope:07d} {change} ".encode()
    return {key: (text + key.encode()).ljust(100 - _HEADER, b".") for key in _KEYS}


def _packed(scope: int, change: int) -> dict[str, bytes]:
    packed = {key: msgpack.packb(value) for key, value in _values(scope, change).items()}
    assert {len(data) for data in packed.values()} == {100}
    return packed


ROWS = (Row("memory_200k_scopes", _measure, (Pair("memory_200k_scopes", OURS, _BARE, "MB"),)),)
