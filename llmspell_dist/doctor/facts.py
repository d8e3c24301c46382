"""What the doctor knows about a server, and what it says: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from llmspell_dist.log import LogStat
from llmspell_dist.retention import Retention

__all__ = ["ClockOffset", "CommitTrial", "Facts", "Finding", "MissingRight", "Rights", "Severity"]


class Severity(StrEnum):
    """How much a finding matters, mildest first."""

    OK = "ok"
    INFO = "info"
    """Worth knowing; nothing needs to be done."""
    WARNING = "warning"
    """Works, and will bite one day."""
    PROBLEM = "problem"
    """Loses data, or does not work."""

    @property
    def rank(self) -> int:
        """Its place in the order, 0 for ``ok``."""
        return list(Severity).index(self)


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found, and what to do about it."""

    check: str
    """The check's id, the same in every release."""
    severity: Severity
    found: str
    advice: str = ""
    """What to do; empty if there is nothing to do."""


@dataclass(frozen=True, slots=True)
class MissingRight:
    """Something that the library needs and the user may not do."""

    kind: str
    """``command``, ``key`` or ``channel``."""
    name: str
    """As the rule spells it: ``hget``, ``client|id``, ``llmspell:*``."""
    purpose: str
    essential: bool
    """Whether nothing works without it."""


@dataclass(frozen=True, slots=True)
class Rights:
    """What was learnt about the user's rights."""

    user: str
    how: str
    """``dryrun``: the server was asked; ``probe``: tried out; ``none``: neither was possible."""
    missing: tuple[MissingRight, ...] = ()


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """How far the server's clock is ahead of this machine's."""

    offset_s: float
    uncertainty_s: float
    """Half the round trip of the sample."""


@dataclass(frozen=True, slots=True)
class CommitTrial:
    """How a commit in a scratch namespace went."""

    ok: bool
    said: str = ""
    """Why it failed, or why it was not tried."""
    tried: bool = True
    left_behind: int = 0
    """Keys that could not be removed."""
    namespace: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that the checks look at; what could not be learnt is empty or None."""

    namespace: str = "llmspell"
    scheme: str = "redis"
    address: str = ""
    loopback: bool = True
    """Whether the server is on this machine: loopback, a unix socket, or inside the process."""
    flavour: str = "redis"
    """``redis`` or ``valkey``."""
    version: str = "unknown"
    protocol: int = 3
    protocol_asked: int = 3
    info: Mapping[str, str] = field(default_factory=dict)
    """The fields of INFO."""
    config: Mapping[str, str] = field(default_factory=dict)
    """The fields of CONFIG GET that matter; empty if it is not allowed."""
    rights: Rights | None = None
    round_trips_ms: tuple[float, ...] = ()
    clock: ClockOffset | None = None
    commit: CommitTrial | None = None
    logs: tuple[LogStat, ...] | None = None
    """By shard; None if the log could not be read."""
    settings: tuple[int | None, int | None] = (None, None)
    """Format and shard count that the namespace was made with; None: it does not exist yet."""
    retention: Retention = field(default_factory=Retention)

    def number(self, name: str) -> int | None:
        """Return a field of INFO as a whole number."""
        return whole(self.info.get(name))

    def setting(self, name: str) -> str | None:
        """Return a directive, as CONFIG GET says it, else as INFO does; None if neither tells."""
        found = self.config.get(name)
        return self.info.get(name.replace("-", "_")) if found is None else found


def whole(text: str | None) -> int | None:
    """Return the whole number that a text is, else None."""
    try:
        return None if text is None else int(text)
    except ValueError:
        return None
