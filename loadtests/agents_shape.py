"""Agents as they were recorded: what a run writes and reads, turn by turn.

`SIZES` and `ROUNDS` were measured on 13 recorded runs of a software-engineering agent; from them
seeded runs of the same shape are made, so that nothing but this file is needed. With a folder of
recordings (the format of ``make demo DATA=``) those themselves are replayed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from loadtests.steps import Kind, Step

__all__ = ["ROUNDS", "SIZES", "Trace", "Turn", "agent_script", "load_traces", "synthetic"]

SIZES: Final[dict[str, tuple[int, ...]]] = {
    # Bytes as JSON: the deciles from the first to the ninth, then the largest.
    "system": (823, 1760, 1760, 1906, 3495, 3611, 4738, 5024, 5050, 5051),
    "user": (206, 259, 302, 419, 700, 2185, 3804, 4332, 7178, 31931),
    "assistant": (426, 513, 571, 602, 710, 814, 856, 923, 1159, 2005),
    "tool": (222, 248, 280, 315, 501, 534, 793, 4588, 4811, 9704),
    "record": (561, 718, 858, 967, 1249, 1368, 4291, 5485, 13799, 30169),
    "context": (489, 633, 734, 734, 734, 734, 1002, 1340, 14565, 14624),
}
ROUNDS: Final = (5, 4, 5, 12, 5, 14, 12, 11, 11, 11, 13, 12, 11)
"""Rounds of model call and tool of each recorded run."""
_WINDOW: Final = 10
_STATUS_TTL_S: Final = 60.0
_TEXT: Final = (
    "the test fails because of a missing import in module open file line edit run search class "
    "def return self error traceback value key state agent tool result submit patch"
)
_WORDS: Final = tuple(_TEXT.split())


@dataclass(frozen=True, slots=True)
class Turn:
    """One message, and the record of the tool's work if there was one."""

    message: dict[str, Any]
    record: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Trace:
    """One run: its turns in order, and what the agent knows of its task."""

    name: str
    turns: tuple[Turn, ...]
    context: dict[str, Any]


def load_traces(folder: Path | None = None, *, seed: int = 0) -> list[Trace]:
    """Return the recorded runs of a folder; without one seeded runs of the same shape."""
    if folder is None:
        return [synthetic(number, seed=seed) for number in range(len(ROUNDS))]
    from examples.demo import recordings  # noqa: PLC0415 - of a checkout, and only with recordings

    found = []
    for recording in recordings.load(folder):
        turns = tuple(
            Turn(turn.message, turn.steps[0][1] if turn.steps else None) for turn in recording.turns
        )
        found.append(Trace(recording.name, turns, recording.info))
    return found


def synthetic(number: int, *, seed: int = 0) -> Trace:
    """Return the run of this number: always the same, with the shape of a recorded one."""
    rng = random.Random(f"{seed}:{number}")
    answers = "tool" if number % 13 in {0, 1} else "user"
    roles = ["system", "user", *["assistant", answers] * ROUNDS[number % len(ROUNDS)]]
    turns = tuple(
        Turn(
            _document(rng, _size(rng, role), {"role": role, "agent": "main"}),
            _document(rng, _size(rng, "record"), {}) if role == "assistant" else None,
        )
        for role in roles
    )
    return Trace(f"synthetic-{number}", turns, _document(rng, _size(rng, "context"), {}))


def _size(rng: random.Random, what: str) -> int:
    """Draw a size: between two neighbouring deciles, each as likely."""
    deciles = SIZES[what]
    part = rng.randrange(len(deciles))
    low = deciles[part - 1] if part else deciles[0] // 2
    return rng.randint(low, deciles[part])


def _document(rng: random.Random, size: int, head: dict[str, Any]) -> dict[str, Any]:
    """Return a document that is about as long as JSON, of words as a model writes them."""
    room = max(8, size - len(str(head)) - 14)
    words: list[str] = []
    length = 0
    while length < room:
        words.append(rng.choice(_WORDS))
        length += len(words[-1]) + 1
    return {**head, "content": " ".join(words)[:room]}


def agent_script(traces: Sequence[Trace], first: int = 0) -> Iterator[Step]:
    """Yield what an agent does, run after run, beginning with the `first` of the traces.

    A run: load the memory; per turn append the message, record the tool's work and read it back,
    set the context by a checkpoint, look at the last messages, close the turn in a transaction;
    then recall the whole run, keep the memory and clear the session.
    """
    scripts = [_run(trace) for trace in traces]
    while True:
        yield from scripts[first % len(scripts)]
        first += 1


def _run(trace: Trace) -> list[Step]:
    agent, session = "agent:{user}", "session:{user}"
    steps = [
        Step("load memory", Kind.GET, agent, "memory"),
        Step("set status", Kind.SET, agent, "status", {"run": trace.name}, ttl=_STATUS_TTL_S),
    ]
    for number, turn in enumerate(trace.turns):
        steps.append(Step("append message", Kind.APPEND, session, "messages", turn.message))
        if turn.record is not None:
            key = f"step:{number}"
            steps += [
                Step("record tool", Kind.SET, session, key, turn.record),
                Step("read back", Kind.READ_BACK, session, key, turn.record),
            ]
        if turn.message.get("role") == "assistant":
            context = {"turn": number, "of": trace.name, **trace.context}
            steps += [
                Step("checkpoint", Kind.CHECKPOINT, agent, "context", context),
                Step("last messages", Kind.SLICE, session, "messages", -_WINDOW),
                Step("close turn", Kind.CLOSE_TURN, agent, "turn", {"turn": number}),
            ]
    return [
        *steps,
        Step("recall run", Kind.RECALL, session, "messages"),
        Step("keep memory", Kind.SET, agent, "memory", {"last": trace.name, **trace.context}),
        Step("forget run", Kind.CLEAR, session, "messages"),
    ]
