"""What the tests of agents share: a clock of their own."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from llmspell_dist.agents.manager import Agents

__all__ = ["Ticking", "agents_of"]


class Ticking:
    """A clock that moves a second with every look."""

    def __init__(self, start: datetime) -> None:
        self.now = start

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


def agents_of(spell: Any, leases: Any = None, **options: Any) -> Agents:
    """Agents of a client, whichever it is, made with options of their own."""
    made: Agents = type(spell.agents)(spell._driver, leases, **options)
    return made
