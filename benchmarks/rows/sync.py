"""The blocking facade: one caller of a script or a web worker, without an event loop."""

from __future__ import annotations

import redis

from benchmarks.harness import Arm, Bench, Pair, Row, Samples
from benchmarks.layout import FIELDS, HASHES, KEYS, SCOPES, VARIANTS, Values
from benchmarks.ours import NAMESPACE, OURS
from benchmarks.payloads import MAIN
from benchmarks.peers import REDIS_PY, check_hashes, fill_hashes
from llmspell_dist import blocking

__all__ = ["ROWS"]


async def _get(bench: Bench) -> Samples:
    values = Values(MAIN)
    fill_hashes(bench.server, values)
    server = bench.server
    with (
        blocking.connect(server.url, namespace=NAMESPACE) as spell,
        redis.Redis.from_url(server.url) as plain,
    ):
        spell.state.set_many(SCOPES[0], dict(zip(FIELDS, values.objects * KEYS, strict=False)))

        async def ours(count: int) -> None:
            get, scope = spell.state.get, SCOPES[0]
            for turn in range(count):
                get(scope, FIELDS[turn % KEYS])

        async def peer(count: int) -> None:
            hget, name = plain.hget, HASHES[0]
            for turn in range(count):
                hget(name, FIELDS[turn % KEYS])

        return await bench.interleave([Arm(OURS, ours), Arm(REDIS_PY, peer)])


async def _set(bench: Bench) -> Samples:
    values = Values(MAIN)
    server = bench.server
    with (
        blocking.connect(server.url, namespace=NAMESPACE) as spell,
        redis.Redis.from_url(server.url) as plain,
    ):

        async def ours(count: int) -> None:
            put, scope = spell.state.set, SCOPES[0]
            for turn in range(count):
                put(scope, FIELDS[turn % KEYS], values.objects[turn % VARIANTS])

        async def peer(count: int) -> None:
            hset, name = plain.hset, HASHES[0]
            for turn in range(count):
                hset(name, FIELDS[turn % KEYS], values.bytes[turn % VARIANTS])

        samples = await bench.interleave([Arm(OURS, ours), Arm(REDIS_PY, peer)])
        check_hashes(server, values)
        for key, found in spell.state.items(SCOPES[0]):
            assert found in values.objects, f"{key}: a value that nobody wrote"
            assert spell.state.history(SCOPES[0], key, limit=1)[0].value == found
        return samples


ROWS = (
    Row("sync_get_1", _get, (Pair("sync_get_1", OURS, REDIS_PY),)),
    Row("sync_set_1", _set, (Pair("sync_set_1", OURS, REDIS_PY),)),
)
