"""Recorded agent runs as JSON files: read with care, for real recordings are uneven."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Recording", "RecordingError", "Turn", "load"]

SHIPPED = Path(__file__).with_name("recordings")


class RecordingError(Exception):
    """A folder or file holds no recording that can be replayed."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a run, the agent it belongs to, and the numbered steps that come with it."""

    agent: str
    message: dict[str, Any]
    steps: tuple[tuple[int, dict[str, Any]], ...]


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorded run: its turns in order and how it ended."""

    name: str
    turns: tuple[Turn, ...]
    info: dict[str, Any]


def load(folder: Path | None = None) -> list[Recording]:
    """Return all recordings of a folder by name; without a folder those that ship with the demo.

    A file needs a non-empty ``history``; ``trajectory`` and ``info`` may be missing or null.
    Raises `RecordingError`, which names the file, for anything else.
    """
    where = SHIPPED if folder is None else folder
    if not where.is_dir():
        raise RecordingError(f"{where} is not a folder")
    found = [_read(path) for path in sorted(where.glob("*.json"))]
    if not found:
        raise RecordingError(f"no *.json in {where}")
    return found


def _read(path: Path) -> Recording:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecordingError(f"{path.name} is not JSON: {error}") from error
    history = content.get("history") if isinstance(content, dict) else None
    if not isinstance(history, list) or not history:
        raise RecordingError(f"{path.name} has no history")
    steps = [_step(step) for step in content.get("trajectory") or []]
    return Recording(path.stem, _turns(history, steps), content.get("info") or {})


def _turns(history: list[Any], steps: list[dict[str, Any]]) -> tuple[Turn, ...]:
    """Give the n-th step to the n-th message of an assistant, and what is left to the last turn."""
    waiting = list(enumerate(steps))
    turns = []
    for position, entry in enumerate(history):
        message = entry if isinstance(entry, dict) else {"content": entry}
        if position == len(history) - 1:
            due = waiting
        else:
            due = waiting[:1] if message.get("role") == "assistant" else []
        waiting = waiting[len(due) :]
        turns.append(Turn(str(message.get("agent") or "main"), message, tuple(due)))
    return tuple(turns)


def _step(step: Any) -> dict[str, Any]:
    """Return a step whose ``state`` is an object: older recordings hold it as JSON in a string."""
    record = dict(step) if isinstance(step, dict) else {"action": step}
    state = record.get("state")
    if isinstance(state, str):
        try:
            record["state"] = json.loads(state)
        except ValueError:
            record["state"] = {"text": state}
    return record
