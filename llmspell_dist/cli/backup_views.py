"""Backups as JSON documents and table rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.cli.wording import counted, spoken

if TYPE_CHECKING:
    from llmspell_dist.backup.model import BackupInfo
    from llmspell_dist.backup.proving import Difference
    from llmspell_dist.backup.restores import RestoreReport

__all__ = [
    "BACKUP_COLUMNS",
    "DIFFERENCE_COLUMNS",
    "backup_document",
    "backup_fields",
    "backup_row",
    "difference_document",
    "difference_rows",
    "difference_text",
    "iso",
    "restored_document",
    "restored_fields",
    "said_moment",
    "size",
]

BACKUP_COLUMNS: Final = (
    *(
        "ID",
        "TYPE",
        "MOMENT",
        "SCOPES",
        "RECORDS",
        "SIZE",
        "PARENT",
        "TAGS",
        "MADE FOR",
        "ENCRYPTED",
    ),
)
DIFFERENCE_COLUMNS: Final = ("WHAT", "SCOPE", "KEY")


def iso(moment: datetime | None) -> str | None:
    """Return a moment as documents have it."""
    return None if moment is None else moment.isoformat()


def size(count: int) -> str:
    """Return a number of bytes for people: 538 B, 1.2 MB."""
    number, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 1000:
            break
        number, unit = number / 1000, larger
    return f"{number:.1f} {unit}" if unit != "B" else f"{count} B"


# --- backups ------------------------------------------------------------------------------------


def backup_document(info: BackupInfo) -> dict[str, Any]:
    """Return what is known of a backup."""
    manifest = info.manifest
    return {
        "id": info.id,
        "type": str(info.type),
        "created": iso(info.created),
        "moment": iso(info.moment),
        "revision": None if info.revision is None else str(info.revision),
        "parent": info.parent,
        "base": manifest.base,
        "timeline": manifest.timeline or None,
        "encrypted": info.encrypted,
        "compression": manifest.compression,
        "filtered": manifest.filtered,
        "empty": info.empty,
        "sections": list(manifest.sections),
        "tags": dict(manifest.tags),
        "importance": manifest.importance,
        "reason": manifest.reason,
        "server": manifest.server,
        "writer": manifest.writer,
        **asdict(info.stats),
        "shards": [
            {"shard": cut.shard, "begin": cut.begin or None, "at": cut.at or None}
            for cut in manifest.shards
        ],
    }


def backup_row(info: BackupInfo, *, terminal: bool) -> tuple[str, ...]:
    """Return a backup as the cells of a table; sizes are bytes where a program reads."""
    stats = info.stats
    stored = stats.stored_bytes + stats.reused_bytes
    return (
        info.id,
        str(info.type),
        _cell(info.moment),
        str(stats.scopes),
        str(stats.records),
        size(stored) if terminal else str(stored),
        info.parent or "-",
        " ".join(f"{name}={value}" for name, value in info.manifest.tags.items()) or "-",
        info.manifest.reason + (", some scopes" if info.manifest.filtered else ""),
        _yes(info.encrypted),
    )


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"


def _cell(moment: datetime | None) -> str:
    return "-" if moment is None else moment.isoformat(timespec="milliseconds")


def backup_fields(info: BackupInfo) -> Iterator[tuple[str, object]]:
    """Yield what there is to say about a backup."""
    manifest, stats = info.manifest, info.stats
    yield "id", info.id
    yield "type", str(info.type)
    yield "as of", f"{_cell(info.moment)} (revision {info.revision or '-'})"
    yield "made", f"{_cell(info.created)}, in {spoken(stats.seconds)}, by {manifest.writer}"
    yield "goes on from", info.parent
    yield "scopes", f"{stats.scopes:,}" + (" (a selection)" if manifest.filtered else "")
    yield "records", f"{stats.records:,}"
    yield "log entries", f"{stats.entries:,}"
    reused = f", {size(stats.reused_bytes)} were there already" if stats.reused_bytes else ""
    yield "stored", f"{size(stats.stored_bytes)}{reused}"
    yield "uncompressed", size(stats.plain_bytes)
    yield "compression", manifest.compression
    yield "encrypted", _yes(info.encrypted)
    yield "holds also", ", ".join(manifest.sections) or None
    yield "importance", manifest.importance
    yield "tags", ", ".join(f"{name}={text}" for name, text in manifest.tags.items()) or None
    yield "made for", manifest.reason
    yield "inexact keys", stats.inexact


# --- what a restore would do, and did -------------------------------------------------------------


def difference_document(difference: Difference) -> dict[str, Any]:
    """Return what a restore in place would change."""
    return {
        "moment": iso(difference.moment),
        "sources": list(difference.sources),
        "added": difference.added,
        "changed": difference.changed,
        "removed": difference.removed,
        "keys": [{"scope": one.scope, "key": one.key, "what": one.what} for one in difference.keys],
        "truncated": difference.truncated,
        "inexact": [{"scope": one.scope, "key": one.key} for one in difference.inexact],
    }


def difference_rows(document: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each key that a restore would change."""
    for one in document["keys"]:
        yield one["what"], one["scope"], one["key"]


def difference_text(document: dict[str, Any]) -> str:
    """Return in a sentence what a restore would change."""
    counts = [
        f"{document[what]:,} {said}"
        for what, said in (
            ("added", "would come back"),
            ("changed", "would change"),
            ("removed", "would go"),
        )
        if document[what]
    ]
    total = sum(document[what] for what in ("added", "changed", "removed"))
    shown = " (not all are shown)" if document["truncated"] else ""
    said = ", ".join(counts) or "nothing would change"
    keys = f"{counted(total, 'key')}: " if counts else ""
    return f"as of {said_moment(document['moment'])}: {keys}{said}{shown}"


def said_moment(text: str | None) -> str:
    """Return for people what documents have of a moment."""
    return "the beginning" if text is None else _cell(datetime.fromisoformat(text))


def restored_document(report: RestoreReport) -> dict[str, Any]:
    """Return what a restore did."""
    return {
        "id": report.id,
        "moment": iso(report.moment),
        "revision": None if report.revision is None else str(report.revision),
        "sources": list(report.sources),
        "scopes": report.scopes,
        "records": report.records,
        "emptied": list(report.emptied),
        "inexact": [{"scope": one.scope, "key": one.key} for one in report.inexact],
        "rollback": report.rollback,
        "seconds": report.seconds,
        "bytes": report.bytes,
    }


def restored_fields(
    report: RestoreReport, namespace: str | None = None
) -> Iterator[tuple[str, object]]:
    """Yield what there is to say about a restore; `namespace`: the other one that it went into."""
    yield "restored as of", f"{_cell(report.moment)} (revision {report.revision or '-'})"
    yield "from", ", ".join(report.sources)
    yield "scopes", f"{report.scopes:,} put back, {len(report.emptied):,} emptied"
    yield "records", f"{report.records:,} put back"
    yield "emptied", ", ".join(report.emptied) or None
    yield "inexact keys", len(report.inexact)
    yield "took", spoken(report.seconds)
    program = "llmspell-dist" if namespace is None else f"llmspell-dist --namespace {namespace}"
    yield "way back", report.rollback and f"{program} backup rollback {report.rollback}"
