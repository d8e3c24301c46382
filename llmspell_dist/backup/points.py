"""The moment that somebody wants to have back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from llmspell_dist.backup.names import is_backup_id
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.revision import MAX_SEQ, Revision, to_ms

__all__ = ["Point"]


@dataclass(frozen=True, slots=True)
class Point:
    """A moment: of a time, a revision, a backup, or the latest that there is."""

    backup_id: str = ""
    revision: Revision | None = None
    """The last revision that is included; None, without a backup: the latest."""
    exact: bool = False
    """Whether it is one commit's revision, not a time."""

    @classmethod
    def of(cls, at: Point | Revision | datetime | str | None) -> Point:
        """Return what is meant.

        A `Revision` (or its text, ``1732374145123-0``) includes that commit; an aware datetime (or
        ISO 8601 text with an offset or ``Z``) all commits of that millisecond and before;
        ``latest`` or None whatever there is; other text is the id of a backup.
        """
        if isinstance(at, Point):
            return at
        if at is None or at == "latest":
            return cls()
        if isinstance(at, Revision):
            return cls(revision=at, exact=True)
        if isinstance(at, datetime):
            return cls(revision=Revision(_ms(at), MAX_SEQ))
        if isinstance(at, str):
            return cls._read(at)
        raise InvalidArgumentError("at", at, _RULE)

    @classmethod
    def _read(cls, text: str) -> Point:
        head, dash, tail = text.partition("-")
        if dash and head.isdigit() and tail.isdigit() and len(head) > 8:
            return cls(revision=Revision.parse(text), exact=True)
        if is_backup_id(text):
            return cls(backup_id=text)
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise InvalidArgumentError("at", text, _RULE) from None
        return cls(revision=Revision(_ms(moment), MAX_SEQ))

    def __str__(self) -> str:
        if self.backup_id:
            return f"backup {self.backup_id}"
        if self.revision is None:
            return "the latest moment"
        if self.exact:
            return f"revision {self.revision}"
        return self.revision.time.astimezone(UTC).isoformat(timespec="milliseconds")


_RULE = (
    "must be latest, a backup's id, a revision like 1732374145123-0, or a time with an offset like "
    "2026-11-26T14:05:00+01:00"
)


def _ms(moment: datetime) -> int:
    if moment.tzinfo is None:
        raise InvalidArgumentError("at", moment.isoformat(), _RULE)
    return to_ms(moment)
