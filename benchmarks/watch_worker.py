"""A process that writes what the benchmark's own process watches; it answers with JSON.

``python -m benchmarks.watch_worker URL NAMESPACE SCOPE``, then on standard input:

- ``write N``: N commits and N round trips that do nothing, in turn, each when a line ``go`` comes,
  so that both leave a process that has just been woken. The answer lists when each commit was sent
  (seconds of the machine's monotonic clock), how long it took its writer, and the seconds of each
  round trip.
"""

from __future__ import annotations

import asyncio
import json
import sys
from time import monotonic
from typing import Any

import llmspell_dist


def _answer(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def _main(url: str, namespace: str, scope: str) -> None:
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        await spell.state.set(scope, "turn", -1)
        _answer("ready")
        while line := (await lines.readline()).decode().split():
            order, number = line[0], int(line[1])
            assert order == "write"
            sent, took, trips = [], [], []
            for turn in range(number):
                assert await lines.readline() == b"go\n"
                trips.append(await spell.ping())
                _answer("pinged")
                assert await lines.readline() == b"go\n"
                sent.append(monotonic())
                await spell.state.set(scope, "turn", turn)
                took.append(monotonic() - sent[-1])
            _answer([sent, took, trips])


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:4]))
