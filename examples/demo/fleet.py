"""The worker processes from outside: start them, listen to them, kill one, hand on its tasks."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import llmspell_dist
from examples.demo import plan
from examples.demo.plan import Task
from examples.demo.worker import Job, command
from llmspell_dist import ConflictError

__all__ = ["Fleet", "WorkerFailedError", "prepare"]

_ROOT = Path(__file__).parents[2]
_LINE_LIMIT = 1 << 24
_KILL_AFTER = 0.25
_LOOK_SECONDS = 0.02


class WorkerFailedError(Exception):
    """A worker ended on its own with an error; the message is what it printed."""


async def prepare(state: llmspell_dist.StateManager, tasks: list[Task], workers: int) -> None:
    """Write the shared list of tasks, an open claim for each, and the budgets."""
    await state.append(plan.BOARD, plan.TASKS, *[task.id for task in tasks])
    claims = {
        plan.claim_key(task.id): {"state": "open", "owner": None, "attempt": 1} for task in tasks
    }
    await state.set_many(plan.BOARD, claims)
    for worker in range(workers):
        await state.set(plan.worker_scope(worker), plan.BUDGET, plan.STARTING_BUDGET)


@dataclass(slots=True)
class Fleet:
    """All worker processes of a run and what they reported."""

    state: llmspell_dist.StateManager
    jobs: list[Job]
    tasks: list[Task]
    samples: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    killed: int | None = None
    taken_over: list[str] = field(default_factory=list)
    _processes: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def run(self) -> float:
        """Run all workers to their end, kill the last one midway; return the seconds it took."""
        try:
            for job in self.jobs:
                self._processes.append(await self._start(job))
            await asyncio.gather(*[self._until_ready(process) for process in self._processes])
            started = asyncio.get_running_loop().time()
            for process in self._processes:
                assert process.stdin is not None
                process.stdin.write(b"go\n")
            listening = [self._listen(number) for number in range(len(self.jobs))]
            await asyncio.gather(self._kill_one_midway(), *listening)
            return asyncio.get_running_loop().time() - started
        finally:
            for process in self._processes:
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    async def _start(self, job: Job) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            *command(job), stdin=pipe, stdout=pipe, stderr=pipe, cwd=_ROOT, limit=_LINE_LIMIT
        )

    async def _until_ready(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        if not await process.stdout.readline():
            raise WorkerFailedError(await _last_words(process))

    async def _listen(self, number: int) -> None:
        """Collect a worker's latencies until it ends; only the killed one may end early."""
        process = self._processes[number]
        assert process.stdout is not None
        finished = False
        async for line in process.stdout:
            if not line.endswith(b"\n"):
                break  # the kill came in the middle of a report
            report = json.loads(line)
            finished |= "finished" in report
            for kind, spent in report.get("samples", {}).items():
                self.samples[kind] += spent
        await process.wait()
        if not finished and number != self.killed:
            raise WorkerFailedError(await _last_words(process))

    # --- the kill ---------------------------------------------------------------------------------

    async def _kill_one_midway(self) -> None:
        """SIGKILL the last worker while it works, then open the tasks that it held again."""
        victim = len(self.jobs) - 1
        midway = int(sum(len(task.recording.turns) for task in self.tasks) * _KILL_AFTER)
        # Polled: the progress that counts is the one in the store, not in this process.
        while await self.state.get(plan.BOARD, plan.MESSAGES, 0) < midway:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)
        self.killed = victim
        process = self._processes[victim]
        if process.returncode is None:
            process.kill()
        await process.wait()
        await self._hand_on(victim)

    async def _hand_on(self, victim: int) -> None:
        """Open the victim's claims for the next attempt, each by compare-and-set.

        The victim's last write may still be on its way. If it arrives before our compare-and-set,
        that one conflicts and is repeated; if after, its own condition on the claim fails.
        """
        for task in self.tasks:
            key = plan.claim_key(task.id)
            while (record := await self.state.get_record(plan.BOARD, key)) is not None:
                claim = record.value
                if claim["state"] != "claimed" or plan.worker_of(claim["owner"]) != victim:
                    break
                again = {"state": "open", "owner": None, "attempt": claim["attempt"] + 1}
                try:
                    await self.state.compare_and_set(
                        plan.BOARD, key, again, expected=record.revision
                    )
                except ConflictError:
                    continue
                self.taken_over.append(task.id)


async def _last_words(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    text = (await process.stderr.read()).decode(errors="replace").strip()
    return text[-2_000:] or f"a worker ended with {process.returncode}"
