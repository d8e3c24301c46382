"""Records and changes as JSON documents and table rows; here it is decided what stays hidden."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from llmspell_dist.cli.output import Output
from llmspell_dist.jsonable import to_json
from llmspell_dist.state.model import Change, Record

__all__ = ["CHANGE_COLUMNS", "change_document", "change_row", "record_document", "shorten_cell"]

CHANGE_COLUMNS: Final = ("REVISION", "TIME", "OP", "ACTOR", "CLASS", "VALUE")
_CELL: Final = 120


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def record_document(
    scope: str, key: str, found: Record | None, *, hidden: bool = False
) -> dict[str, Any]:
    """Return all that is known about a key; a hidden value is null."""
    if found is None:
        return {"scope": scope, "key": key, "found": False}
    return {
        "scope": found.scope,
        "key": found.key,
        "found": True,
        "value": None if hidden else to_json(found.value),
        "hidden": hidden,
        "revision": str(found.revision),
        "created": _iso(found.created),
        "updated": _iso(found.updated),
        "expires": _iso(found.expires),
        "class": str(found.state_class),
        "kind": found.kind,
        "schema_version": found.schema_version,
    }


def change_document(change: Change, *, show_sensitive: bool) -> dict[str, Any]:
    """Return one change; what it wrote is left out if its class hides it."""
    state_class = change.state_class
    hidden = state_class is not None and state_class.behaviour.redact and not show_sensitive
    shown = change.has_value and not hidden
    document: dict[str, Any] = {
        "revision": str(change.revision),
        "time": _iso(change.time),
        "op": change.op,
        "has_value": change.has_value,
        "hidden": hidden and change.has_value,
        "value": to_json(change.value) if shown else None,
        "previous": None if change.previous is None else str(change.previous),
        "expires": _iso(change.expires),
        "class": None if state_class is None else str(state_class),
        "operation": change.operation,
        "actor": change.actor,
        "correlation_id": change.correlation_id,
    }
    if change.removed and shown:
        document["removed"] = [to_json(field) for field in change.removed]
    return document


def change_row(document: dict[str, Any], output: Output) -> tuple[str, ...]:
    """Return a change as the cells of a table."""
    value = "-"
    if document["hidden"]:
        value = "(hidden)"
    elif document["has_value"]:
        value = shorten_cell(output.dumps(document["value"]), output)
        if "removed" in document:
            value += f" removed {output.dumps(document['removed'])}"
    time = str(document["time"])
    cells = (document["revision"], time, document["op"], document["actor"], document["class"])
    return (*(cell or "-" for cell in cells), value)


def shorten_cell(text: str, output: Output) -> str:
    """Return a value as a terminal's cell has room for it; on a pipe all of it."""
    if not output.terminal or len(text) <= _CELL:
        return text
    return text[: _CELL - 1] + "…"
