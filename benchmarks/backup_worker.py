"""A process that makes, restores and ships backups for the rows, and says what that took.

``python -m benchmarks.backup_worker URL NAMESPACE TARGET KEYS NICE``, then on standard input a
line of JSON for each order: ``["create", {…}]`` or ``["restore", {…}]`` with the keyword arguments
of `BackupStore.create` and `BackupStore.restore`. Each answer is a line of JSON: the seconds, the
processor's seconds of this process, its memory before and the highest during the order, and the
facts of the backup. Memory is what Linux calls VmRSS and VmHWM, the latter reset before the order:
what is "idle" has its client open, boto3 loaded and the place listed once.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import llmspell_dist
from llmspell_dist.cli.priority import giving_way

__all__ = ["CLIENT", "Worker"]

CLIENT = "backup-worker"
_CHANGED_LIMIT = 1 << 24


class Worker:
    """The other end: starts the process and gives it orders."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(
        cls,
        url: str,
        namespace: str,
        target: str,
        keys: str,
        environment: Any = None,
        *,
        nice: int = 0,
    ) -> Worker:
        """Start the process and wait until it is idle; `nice` as of the command line."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.backup_worker"),
            *(url, namespace, target, keys, str(nice)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[1],
            env=environment,
            limit=_CHANGED_LIMIT,
        )
        worker = cls(process)
        assert await worker._answer() == "ready"
        return worker

    async def do(self, order: str, **options: Any) -> dict[str, Any]:
        """Have something done and return what it took."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([order, options]).encode() + b"\n")
        answer: dict[str, Any] = await self._answer()
        return answer

    async def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise SystemExit("the process that makes backups has failed")
        return json.loads(line)

    async def end(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


def _memory() -> dict[str, int]:
    """Return present and highest memory in bytes."""
    found = {}
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name in {"VmRSS", "VmHWM"}:
            found[name] = int(value.split()[0]) * 1024
    return found


def _reset_highest() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


async def _measured(work: Any) -> tuple[Any, dict[str, Any]]:
    _reset_highest()
    idle, started, spent = _memory()["VmRSS"], perf_counter(), process_time()
    result = await work
    took = {"seconds": perf_counter() - started, "cpu": process_time() - spent}
    return result, {**took, "idle": idle, "highest": _memory()["VmHWM"]}


async def _main(url: str, namespace: str, target: str, keys: str) -> None:
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with (
        llmspell_dist.connect(url, namespace=namespace, client_name=CLIENT) as spell,
        spell.backups.to(target, keys=keys or None) as store,
    ):
        await spell.ping()
        await store.list()
        _say("ready")
        while line := await lines.readline():
            order, options = json.loads(line)
            if order == "create":
                info, took = await _measured(store.create(**options))
                _say({**took, "id": info.id, **asdict(info.stats), "seconds": took["seconds"]})
            else:
                report, took = await _measured(store.restore(**options))
                _say({**took, "records": report.records, "bytes": report.bytes})


def _say(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    with giving_way(int(sys.argv[5])):
        asyncio.run(_main(*sys.argv[1:5]))
