"""One agent process: claims tasks from the shared list and replays them, message by message.

What must be exact even if the process is killed between any two instructions goes into *one*
transaction: the message, its steps, the turn's number and the counter, on condition that the claim
is still ours. Whoever takes the task over continues at the turn's number.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import llmspell_dist
from examples.demo import plan, recordings
from examples.demo.plan import Task
from llmspell_dist import ConflictError

__all__ = ["SABOTAGES", "Job", "command"]

SABOTAGES = ("lost-update", "double-claim", "drop")
_LOOK_AGAIN_SECONDS = 0.02
_TRANSFER_EVERY = 5
_TEMPTATION_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is told on its command line, as JSON."""

    url: str
    namespace: str
    data: str | None
    laps: int
    worker: int
    workers: int
    sabotage: str | None


def command(job: Job) -> list[str]:
    """Return the command line of a worker process."""
    facts = {name: getattr(job, name) for name in Job.__slots__}
    return [sys.executable, "-m", "examples.demo.worker", json.dumps(facts)]


@dataclass(slots=True)
class _Stopwatch:
    """Latencies per kind of operation, in microseconds, until they are reported."""

    samples: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @asynccontextmanager
    async def timing(self, kind: str) -> AsyncIterator[None]:
        started = perf_counter()
        yield
        self.samples[kind].append(round((perf_counter() - started) * 1e6, 1))

    def report(self) -> None:
        """Send the samples to the parent now: a killed process sends no more."""
        print(json.dumps({"samples": self.samples}), flush=True)
        self.samples.clear()


class _ClaimLostError(Exception):
    """Somebody else took the task over; this seat must not write for it any more."""


@dataclass(slots=True)
class _Seat:
    """One coroutine of the worker with the task that it works on."""

    job: Job
    name: str
    state: llmspell_dist.StateManager
    tasks: list[Task]
    watch: _Stopwatch

    async def work(self) -> None:
        """Claim and replay tasks until all of them are done, whoever did them."""
        while (task := await self._next_task()) is not None:
            try:
                await self._replay(task)
            except (_ClaimLostError, ConflictError):
                continue
            finally:
                self.watch.report()

    # --- claims ----------------------------------------------------------------------------------

    async def _next_task(self) -> Task | None:
        """Return a task that is now ours, or None when every task is done."""
        # No more than this are ever claimed at once: among twice as many, one is open if any is.
        window = 2 * self.job.workers * plan.SEATS
        while self.tasks:
            looked_at = self.tasks[:window]
            async with self.watch.timing("get_many"):
                keys = [plan.claim_key(task.id) for task in looked_at]
                claims = await self.state.get_many(plan.BOARD, keys)
            states = {task: claims[plan.claim_key(task.id)]["state"] for task in looked_at}
            self.tasks = [task for task in self.tasks if states.get(task) != "done"]
            for task, state in states.items():
                if state == "open" and await self._claim(task):
                    return task
            if "done" not in states.values():
                await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        return None

    async def _claim(self, task: Task) -> bool:
        key = plan.claim_key(task.id)
        async with self.watch.timing("get_record"):
            found = await self.state.get_record(plan.BOARD, key)
        if found is None or found.value["state"] != "open":
            return False
        mine = {**found.value, "state": "claimed", "owner": self.name}
        if self.job.sabotage == "double-claim":
            await asyncio.sleep(_TEMPTATION_SECONDS)  # long enough for the others to look as well
            await self.state.set(plan.BOARD, key, mine)
            return True
        try:
            async with self.watch.timing("compare_and_set"):
                await self.state.compare_and_set(plan.BOARD, key, mine, expected=found.revision)
        except ConflictError:
            return False
        return True

    async def _guard(self, tx: Any, task: Task) -> dict[str, Any]:
        """Make the transaction depend on our claim: reading it is enough."""
        claim: dict[str, Any] = await tx.get(plan.BOARD, plan.claim_key(task.id))
        if claim["owner"] != self.name:
            raise _ClaimLostError(task.id)
        return claim

    # --- a task ----------------------------------------------------------------------------------

    async def _replay(self, task: Task) -> None:
        done = await self.state.get(task.scope, plan.TURNS, 0)
        for number in range(done, len(task.recording.turns)):
            await self._count_call()
            async with self.watch.timing("append"):
                await self.state.append(self._scope, self._journal, f"{task.id} {number}")
            await self._turn(task, number)
            async with self.watch.timing("set"):
                status = {"seat": self.name, "task": task.id, "turn": number + 1}
                await self.state.set(self._scope, f"{plan.STATUS} {self.name}", status, ttl=60)
            if number % _TRANSFER_EVERY == 0:
                await self._transfer(number)
        await self._finish(task)

    async def _turn(self, task: Task, number: int) -> None:
        """Write one message, its steps and the counters: all of it, or none of it."""
        turn = task.recording.turns[number]
        async with self.watch.timing("transaction"), self.state.transaction() as tx:
            if self.job.sabotage != "double-claim":
                await self._guard(tx, task)
            if not (self.job.sabotage == "drop" and number == 1):
                tx.append(task.agent_scope(turn.agent), plan.MESSAGES, turn.message)
            for step, record in turn.steps:
                tx.set(task.step_scope(step), plan.RECORD, record)
            tx.increment(task.scope, plan.TURNS)
            tx.increment(plan.BOARD, plan.MESSAGES)
            tx.increment(self._scope, plan.CALLS)
        for step, record in turn.steps[:1]:
            async with self.watch.timing("get"):
                found = await self.state.get(task.step_scope(step), plan.RECORD)
            assert found == record, f"{task.id}: step {step} reads back differently"

    async def _finish(self, task: Task) -> None:
        async with self.watch.timing("transaction"), self.state.transaction() as tx:
            claim = {"attempt": 0, "owner": self.name}
            if self.job.sabotage != "double-claim":
                claim = await self._guard(tx, task)
            tx.set(plan.BOARD, plan.claim_key(task.id), {**claim, "state": "done"})
            tx.append(plan.BOARD, plan.COMPLETED, task.id)
            tx.set(task.scope, plan.OUTCOME, task.recording.info)

    # --- what all processes share -----------------------------------------------------------------

    async def _count_call(self) -> None:
        """Count a model call on the board, all processes on one number."""
        if self.job.sabotage == "lost-update":
            calls = await self.state.get(plan.BOARD, plan.CALLS, 0)
            await self.state.set(plan.BOARD, plan.CALLS, calls + 1)
            return
        async with self.watch.timing("increment"):
            await self.state.increment(plan.BOARD, plan.CALLS)

    async def _transfer(self, amount: int) -> None:
        """Move budget to the next worker: the sum over all of them never changes."""
        source = self._scope
        target = plan.worker_scope((self.job.worker + 1 + amount) % self.job.workers)
        if source == target:
            return

        async def move(tx: Any) -> None:
            mine = await tx.get(source, plan.BUDGET)
            theirs = await tx.get(target, plan.BUDGET)
            moved = min(amount, mine)
            tx.set(source, plan.BUDGET, mine - moved)
            tx.set(target, plan.BUDGET, theirs + moved)

        async with self.watch.timing("transfer"):
            await self.state.run_transaction(move, attempts=64)

    @property
    def _scope(self) -> llmspell_dist.Scope:
        return plan.worker_scope(self.job.worker)

    @property
    def _journal(self) -> str:
        return f"{plan.JOURNAL} {self.name}"


async def _run(job: Job) -> None:
    folder = Path(job.data) if job.data else None
    known = {task.id: task for task in plan.tasks_of(recordings.load(folder), job.laps)}
    watch = _Stopwatch()
    async with llmspell_dist.connect(
        job.url, namespace=job.namespace, client_name=f"worker-{job.worker}"
    ) as spell:
        print(json.dumps({"ready": job.worker}), flush=True)
        await asyncio.to_thread(sys.stdin.readline)  # all workers start together
        with llmspell_dist.context(actor=f"worker-{job.worker}"):
            tasks = [known[name] for name in await spell.state.get(plan.BOARD, plan.TASKS)]
            seats = [plan.seat_name(job.worker, seat) for seat in range(plan.SEATS)]
            await asyncio.gather(
                *[_Seat(job, name, spell.state, tasks, watch).work() for name in seats]
            )
    print(json.dumps({"finished": job.worker}), flush=True)


if __name__ == "__main__":
    asyncio.run(_run(Job(**json.loads(sys.argv[1]))))
