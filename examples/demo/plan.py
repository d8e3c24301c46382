"""Where everything lies: the one module that spells the demo's scopes and keys."""

from __future__ import annotations

from dataclasses import dataclass

from examples.demo.recordings import Recording
from llmspell_dist import Scope

__all__ = [
    "BOARD",
    "BUDGET",
    "CALLS",
    "COMPLETED",
    "JOURNAL",
    "MESSAGES",
    "OUTCOME",
    "RECORD",
    "SEATS",
    "STARTING_BUDGET",
    "STATUS",
    "TASKS",
    "TURNS",
    "Task",
    "claim_key",
    "seat_name",
    "tasks_of",
    "worker_of",
    "worker_scope",
]

SEATS = 4
"""Tasks that one process works on at the same time, each in a coroutine of its own."""
STARTING_BUDGET = 1_000

BOARD = Scope.workflow("board")
"""What all processes share: the list of tasks, the claims, the counters."""
TASKS = "tasks"
COMPLETED = "completed"
MESSAGES = "messages"
"""On the board a counter; in an agent's scope the list of its messages."""
CALLS = "calls"
"""On the board the shared counter of model calls; in a worker's scope its own share of it."""

BUDGET = "budget"
STATUS = "status"
JOURNAL = "journal"
TURNS = "turns"
OUTCOME = "outcome"
RECORD = "record"


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One recording to replay once."""

    id: str
    recording: Recording

    @property
    def scope(self) -> Scope:
        """Return the scope of this run of the workflow: turns done, outcome."""
        return Scope.workflow(self.id)

    def step_scope(self, number: int) -> Scope:
        """Return the scope of one step of the run."""
        return Scope.step(self.id, str(number))

    def agent_scope(self, agent: str) -> Scope:
        """Return the scope of a recorded agent, which gets its messages."""
        return Scope.agent(f"{self.id}/{agent}")


def tasks_of(recordings: list[Recording], laps: int) -> list[Task]:
    """Return every recording once per lap, in an order that all processes agree on."""
    return [
        Task(f"{recording.name}.{lap}", recording)
        for lap in range(1, laps + 1)
        for recording in recordings
    ]


def claim_key(task_id: str) -> str:
    """Return the key on the board that says who works on a task."""
    return f"claim {task_id}"


def seat_name(worker: int, seat: int) -> str:
    """Return the name of a coroutine of a worker, as claims and journals carry it."""
    return f"worker-{worker}.{seat}"


def worker_of(owner: str | None) -> int | None:
    """Return the number of the worker that a seat belongs to."""
    return int(owner.removeprefix("worker-").split(".")[0]) if owner else None


def worker_scope(worker: int) -> Scope:
    """Return the scope of a worker process: budget, share of the calls, status, journals."""
    return Scope.agent(f"worker-{worker}")
