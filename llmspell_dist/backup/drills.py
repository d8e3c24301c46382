"""What drills proved, kept beside the backups: authenticated, as a backup's manifest is."""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.backup import fields
from llmspell_dist.backup.errors import (
    BackupDamagedError,
    BackupFormatError,
    BackupKeyError,
    ObjectMissingError,
)

if TYPE_CHECKING:
    from llmspell_dist.backup.comparing import KeyDifference
    from llmspell_dist.backup.repository import Repository

__all__ = ["DrillReport", "keys_of_drills", "read_drills", "write_drill"]

logger = logging.getLogger("llmspell_dist.backup")

FORMAT: Final = 1
_PURPOSE: Final = b"llmspell-dist/drill"
_UNTRUSTED: Final = (BackupDamagedError, BackupFormatError, BackupKeyError, ObjectMissingError)
"""What is wrong with a result itself, or with its key, and no passing failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillReport:
    """What a drill proved."""

    id: str
    at: datetime
    """When it was done."""
    backup: str
    moment: datetime | None
    sources: tuple[str, ...]
    scopes: int
    records: int
    unchecked: int
    """Keys changed since whose value of then the log no longer holds."""
    mismatches: int
    named: tuple[KeyDifference, ...]
    inexact: int
    digest: str
    """Of all that was restored, in hex."""
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether everything that could be compared is as it was."""
        return self.mismatches == 0


def write_drill(repository: Repository, report: DrillReport, key: str) -> None:
    """Store a result; `key`: the id of the data key of the backup that was restored, if any."""
    facts: dict[str, Any] = {"format": FORMAT, **asdict(report), "key": key}
    facts["at"] = report.at.isoformat()
    facts["moment"] = None if report.moment is None else report.moment.isoformat()
    del facts["named"]  # names of keys are nobody's business who may only see the place
    if key:
        facts["mac"] = repository.mac(key, _PURPOSE, _canonical(facts))
    raw = json.dumps(facts, indent=1).encode()
    repository.target.put(repository.layout.drill(report.id), raw)


def read_drills(repository: Repository) -> Iterator[DrillReport]:
    """Yield the results, oldest first; one that cannot be trusted is left out, and said so.

    One that cannot be read just now is its error: that nothing was proved is not known then.
    """
    for info in repository.target.list(repository.layout.drills):
        try:
            yield _read(repository, info.name)
        except _UNTRUSTED as error:
            logger.warning("the result %s of a drill is left out: %s", info.name, error)


def keys_of_drills(repository: Repository) -> set[str]:
    """Return the ids of the data keys that authenticate results.

    A result that cannot be read just now is its error: its key would be taken for one without use.
    """
    found = set()
    for info in repository.target.list(repository.layout.drills):
        try:
            facts = fields.load(repository.target.get(info.name))
            found.add(_FIELDS["key"](facts.get("key")))
        except (ObjectMissingError, ValueError):
            continue
    return found


def _read(repository: Repository, name: str) -> DrillReport:
    try:
        facts = fields.load(repository.target.get(name))
        version = facts["format"]
        if type(version) is int and version > FORMAT:
            raise BackupFormatError(name, version, FORMAT)
        mac = facts.pop("mac", "")
        signed = _canonical(facts)
        if type(version) is not int or facts.pop("format") != FORMAT:
            raise ValueError(version)  # noqa: TRY301 - as what is below would
        found = fields.checked(facts, _FIELDS)
        key = found.pop("key", "")
        report = DrillReport(named=(), **found)
        authentic = not key or hmac.compare_digest(_MAC(mac), repository.mac(key, _PURPOSE, signed))
    except (ValueError, KeyError, TypeError):
        raise BackupDamagedError(name, "it is no result of a drill") from None
    if repository.layout.drill(report.id) != name:
        raise BackupDamagedError(name, f"it is the result of drill {report.id}")
    if not authentic or (repository.encrypts and not key):
        raise BackupDamagedError(name, "nobody who has the backup's key wrote it")
    return report


def _canonical(facts: dict[str, Any]) -> bytes:
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _moment(value: Any) -> datetime:
    return datetime.fromisoformat(fields.moment(value))


_MAC: Final = fields.matching(r"[0-9a-f]{64}")
_FIELDS: Final[dict[str, fields.Check]] = {
    "at": _moment,
    "moment": lambda value: None if value is None else _moment(value),
    "sources": fields.texts,
    "seconds": fields.number,
    "key": fields.matching(r"[0-9a-f]{32}", empty=True),
    **dict.fromkeys(("id", "backup", "digest"), fields.text),
    **dict.fromkeys(("scopes", "records", "unchecked", "mismatches", "inexact"), fields.count),
}
