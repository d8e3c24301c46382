"""The outcome, proved: everything is read again and compared with the recordings."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import llmspell_dist
from examples.demo import plan
from examples.demo.plan import Task

__all__ = ["Proof", "Run", "prove"]


@dataclass(frozen=True, slots=True)
class Run:
    """What was asked for: the tasks, the workers, and what the kill may have cut off."""

    tasks: list[Task]
    workers: int
    killed: int | None
    taken_over: list[str]

    @property
    def turns(self) -> int:
        """Return the number of messages over all tasks."""
        return sum(len(task.recording.turns) for task in self.tasks)


@dataclass(frozen=True, slots=True)
class Proof:
    """One claim about the outcome, whether it holds, and the facts."""

    claim: str
    holds: bool
    facts: str


async def prove(state: llmspell_dist.StateManager, run: Run) -> list[Proof]:
    """Return all proofs; none of them trusts a counter that it could count itself."""
    return [
        await _messages_in_place(state, run),
        await _steps_in_place(state, run),
        await _tasks_done_once(state, run),
        await _no_lost_update(state, run),
        await _journals_match(state, run),
        await _budget_kept(state, run),
        await _nothing_else(state, run),
        _task_taken_over(run),
    ]


def expected_messages(task: Task) -> dict[str, list[dict[str, Any]]]:
    """Return the messages of every agent of a recording, in order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for turn in task.recording.turns:
        found.setdefault(turn.agent, []).append(turn.message)
    return found


def expected_steps(task: Task) -> dict[int, dict[str, Any]]:
    """Return the steps of a recording by number."""
    return {number: step for turn in task.recording.turns for number, step in turn.steps}


async def _messages_in_place(state: llmspell_dist.StateManager, run: Run) -> Proof:
    wrong, read = [], 0
    for task in run.tasks:
        for agent, messages in expected_messages(task).items():
            found = await state.get(task.agent_scope(agent), plan.MESSAGES, [])
            read += len(found)
            if found != messages:
                wrong.append(f"{task.id}/{agent} has {len(found)} of {len(messages)}")
    return _proof("every message in place and in order", wrong, f"{read} messages")


async def _steps_in_place(state: llmspell_dist.StateManager, run: Run) -> Proof:
    wrong, read = [], 0
    for task in run.tasks:
        for number, step in expected_steps(task).items():
            read += 1
            if await state.get(task.step_scope(number), plan.RECORD) != step:
                wrong.append(f"{task.id} step {number}")
    return _proof("every step in its workflow", wrong, f"{read} steps")


async def _tasks_done_once(state: llmspell_dist.StateManager, run: Run) -> Proof:
    completed = Counter(await state.get(plan.BOARD, plan.COMPLETED, []))
    wrong = []
    for task in run.tasks:
        claim = await state.get(plan.BOARD, plan.claim_key(task.id))
        turns = await state.get(task.scope, plan.TURNS, 0)
        if completed[task.id] != 1 or claim["state"] != "done":
            wrong.append(f"{task.id} was completed {completed[task.id]} times")
        elif turns != len(task.recording.turns):
            wrong.append(f"{task.id} took {turns} turns instead of {len(task.recording.turns)}")
        elif await state.get(task.scope, plan.OUTCOME) != task.recording.info:
            wrong.append(f"{task.id} has another outcome")
    return _proof("no task done twice, none left out", wrong, f"{len(run.tasks)} tasks")


async def _no_lost_update(state: llmspell_dist.StateManager, run: Run) -> Proof:
    """Compare the shared counters with what was counted apart.

    A turn's call is counted before its transaction: each seat of the killed worker may have
    counted one call whose turn was then done, and counted, by somebody else.
    """
    shares = [await state.get(plan.worker_scope(n), plan.CALLS, 0) for n in range(run.workers)]
    calls = await state.get(plan.BOARD, plan.CALLS, 0)
    messages = await state.get(plan.BOARD, plan.MESSAGES, 0)
    cut_off = 0 if run.killed is None else plan.SEATS
    wrong = []
    if messages != run.turns or sum(shares) != run.turns:
        wrong.append(f"{messages} messages counted, {sum(shares)} by share, of {run.turns}")
    if not run.turns <= calls <= run.turns + cut_off:
        wrong.append(f"{calls} calls counted, {run.turns} made")
    return _proof("no lost update in a counter", wrong, f"{messages} messages, {calls} calls")


async def _journals_match(state: llmspell_dist.StateManager, run: Run) -> Proof:
    """Every turn stands in exactly one journal, but for the last entry of a killed seat."""
    written: Counter[str] = Counter()
    cut_off: Counter[str] = Counter()
    for worker in range(run.workers):
        for seat in range(plan.SEATS):
            key = f"{plan.JOURNAL} {plan.seat_name(worker, seat)}"
            entries = await state.get(plan.worker_scope(worker), key, [])
            written.update(entries)
            if worker == run.killed:
                cut_off.update(entries[-1:])
    due = Counter(f"{t.id} {n}" for t in run.tasks for n in range(len(t.recording.turns)))
    wrong = [f"{entry} is missing" for entry in due - written]
    wrong += [f"{entry} is there again" for entry in written - due - cut_off]
    return _proof("every turn in one journal", wrong, f"{written.total()} entries")


async def _budget_kept(state: llmspell_dist.StateManager, run: Run) -> Proof:
    budgets = [await state.get(plan.worker_scope(n), plan.BUDGET) for n in range(run.workers)]
    total = run.workers * plan.STARTING_BUDGET
    wrong = []
    if sum(budgets) != total or min(budgets) < 0:
        wrong.append(f"{budgets} is {sum(budgets)}, not {total}")
    return _proof("the sum of the budgets is unchanged", wrong, f"{budgets} = {sum(budgets)}")


async def _nothing_else(state: llmspell_dist.StateManager, run: Run) -> Proof:
    due = {plan.BOARD, *[plan.worker_scope(worker) for worker in range(run.workers)]}
    for task in run.tasks:
        due.add(task.scope)
        due.update(task.agent_scope(agent) for agent in expected_messages(task))
        due.update(task.step_scope(number) for number in expected_steps(task))
    found = {scope async for scope in state.scopes()}
    wrong = [f"{scope} is {'missing' if scope in due else 'unknown'}" for scope in due ^ found]
    return _proof("these scopes and no others", wrong, f"{len(found)} scopes")


def _task_taken_over(run: Run) -> Proof:
    if run.killed is None:
        return Proof("a killed worker's tasks were finished by others", False, "none was killed")
    facts = f"worker-{run.killed} was killed, it held {', '.join(run.taken_over) or 'nothing'}"
    return Proof("a killed worker's tasks were finished by others", bool(run.taken_over), facts)


def _proof(claim: str, wrong: list[str], facts: str) -> Proof:
    if not wrong:
        return Proof(claim, True, facts)
    shown = "; ".join(sorted(wrong)[:3])
    return Proof(claim, False, f"{shown}{'; …' if len(wrong) > 3 else ''}")
