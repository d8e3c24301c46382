"""Timelines: when a server has lost writes, what it does from then on is another history.

Each has a note ``timelines/<id>.json``, written once: which timeline it leaves, after which
revision of each shard, when, and why. Entries of both are never mixed: whoever reads a timeline
follows its parent up to the branch, and then its own segments.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.backup import fields
from llmspell_dist.backup.errors import BackupDamagedError, BackupFormatError
from llmspell_dist.revision import Revision

if TYPE_CHECKING:
    from llmspell_dist.backup.names import Layout
    from llmspell_dist.backup.targets.base import Target

__all__ = ["Branch", "Timeline", "Timelines", "new_timeline_id"]

FORMAT: Final = 1


def new_timeline_id() -> str:
    """Return an id that no other timeline has."""
    return secrets.token_hex(4)


@dataclass(frozen=True, slots=True)
class Branch:
    """Where a timeline leaves its parent, in one shard."""

    after: str
    """The last revision that both have; empty: none that is known."""
    operation: str = ""
    """The operation id of that commit, in hex."""

    @property
    def revision(self) -> Revision | None:
        """`after`, as a revision."""
        return Revision.parse(self.after) if self.after else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """One history of a namespace."""

    id: str
    opened: str
    """When, by the clock of the process that opened it; ISO 8601, UTC."""
    reason: str
    parent: str = ""
    shards: Mapping[str, Branch] = field(default_factory=dict)
    server: str = ""
    """Version and run id of the server."""

    @classmethod
    def new(cls, reason: str, parent: str, shards: Mapping[str, Branch], server: str) -> Timeline:
        """Return a timeline that begins now."""
        opened = datetime.now(UTC).isoformat()
        return cls(
            id=new_timeline_id(),
            opened=opened,
            reason=reason,
            parent=parent,
            shards=dict(shards),
            server=server,
        )

    @property
    def opened_at(self) -> datetime:
        """`opened`, as a datetime."""
        return datetime.fromisoformat(self.opened)

    def packed(self) -> bytes:
        """Return the bytes to store."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode() + b"\n"

    @classmethod
    def unpack(cls, raw: bytes, name: str) -> Timeline:
        """Read a note; a damaged or newer one is an error that names it."""
        try:
            facts = fields.load(raw)
            version = facts.pop("format")
            if type(version) is int and version != FORMAT:
                raise BackupFormatError(name, version, FORMAT)
            if type(version) is not int:
                raise ValueError(version)  # noqa: TRY301 - as what is below would
            return cls(**fields.checked(facts, _FIELDS))
        except (ValueError, KeyError, TypeError) as error:
            raise BackupDamagedError(name, f"it is no timeline: {type(error).__name__}") from None


def _shards(value: Any) -> dict[str, Branch]:
    if type(value) is not dict:
        raise ValueError(value)
    return {
        fields.text(shard): Branch(**fields.checked(one, _BRANCH)) for shard, one in value.items()
    }


_ID: Final = r"[0-9a-f]{8}"
_BRANCH: Final[dict[str, fields.Check]] = {
    "after": fields.revision,
    "operation": fields.matching(r"([0-9a-f]{2})+", empty=True),
}
_FIELDS: Final[dict[str, fields.Check]] = {
    "id": fields.matching(_ID),
    "opened": fields.moment,
    "parent": fields.matching(_ID, empty=True),
    "shards": _shards,
    **dict.fromkeys(("reason", "server"), fields.text),
}


class Timelines:
    """The timelines of one namespace in a target. All methods block."""

    def __init__(self, target: Target, layout: Layout) -> None:
        self._target = target
        self._layout = layout

    def put(self, timeline: Timeline) -> None:
        """Store a note; only a put is needed."""
        self._target.put(self._layout.timeline(timeline.id), timeline.packed())

    def get(self, timeline_id: str) -> Timeline:
        """Return a timeline."""
        name = self._layout.timeline(timeline_id)
        timeline = Timeline.unpack(self._target.get(name), name)
        if timeline.id != timeline_id:
            raise BackupDamagedError(name, f"it is the note of {timeline.id}")
        return timeline

    def __iter__(self) -> Iterator[Timeline]:
        return iter(self.all())

    def all(self) -> list[Timeline]:
        """Return all timelines, oldest first: each behind the one that it leaves.

        Also if the clock of who opened it was behind that of the one before.
        """
        ids = []
        for info in self._target.list(self._layout.timelines):
            file = info.name.removeprefix(self._layout.timelines)
            if file.endswith(".json") and "/" not in file:
                ids.append(file.removesuffix(".json"))
        return _oldest_first(map(self.get, ids))


def _oldest_first(timelines: Iterable[Timeline]) -> list[Timeline]:
    known = {one.id: one for one in timelines}

    def age(timeline: Timeline) -> tuple[datetime, int, str]:
        """Return when it was opened, not before those that it comes from, and how many they are."""
        opened, above, at = timeline.opened_at, {timeline.id}, timeline
        while at.parent in known and at.parent not in above:
            at = known[at.parent]
            above.add(at.id)
            opened = max(opened, at.opened_at)
        return opened, len(above), timeline.id

    return sorted(known.values(), key=age)
