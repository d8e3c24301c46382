"""Documents of a sidecar back to what the library gives: records, changes, pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmspell_dist.classes import StateClass
from llmspell_dist.context import CommitContext
from llmspell_dist.records import Kind, StoredRecord
from llmspell_dist.revision import Revision, to_ms
from llmspell_dist.state.model import Change, Record
from llmspell_dist.state.reads import Found

__all__ = ["change_of", "found_of", "pack_list", "pack_map", "record_of", "revision_of"]

Document = Mapping[str, Any]


def revision_of(text: str | None) -> Revision | None:
    """Return the revision that a document names."""
    return None if text is None else Revision.parse(text)


def record_of(document: Document, key: str) -> Record:
    """Return a record; its key is as the caller spelled it."""
    return Record(
        document["scope"],
        key,
        document["value"],
        Revision.parse(document["revision"]),
        document["created"],
        document["updated"],
        document["expires"],
        StateClass.coerce(document["state_class"]),
        document["schema_version"],
        document["kind"],
    )


def found_of(document: Document) -> Found:
    """Return a record as steps have it."""
    expires = document["expires"]
    stored = StoredRecord(
        Kind[document["kind"].upper()],
        StateClass.coerce(document["state_class"]),
        0,
        document["schema_version"],
        Revision.parse(document["revision"]),
        to_ms(document["created"]),
        0 if expires is None else to_ms(expires),
        b"",
    )
    return Found(stored, document["value"])


def change_of(document: Document) -> Change:
    """Return a change as the log has it."""
    state_class = document["state_class"]
    context = CommitContext(
        actor=document["actor"],
        correlation_id=document["correlation_id"],
        causation_id=document["causation_id"],
        traceparent=document["traceparent"],
        root_id=document["root_id"],
    )
    return Change(
        document["scope"],
        document["key"],
        document["op"],
        Revision.parse(document["revision"]),
        document["time"],
        document["has_value"],
        document["value"],
        tuple(document["removed"]),
        revision_of(document["previous"]),
        document["expires"],
        None if state_class is None else StateClass.coerce(state_class),
        document["operation"],
        context,
    )


def pack_map(parts: Mapping[bytes, bytes]) -> bytes:
    """Return a map of names and values that are encoded already."""
    head = b"\xdf" + len(parts).to_bytes(4, "big")
    return head + b"".join([part for pair in parts.items() for part in pair])


def pack_list(parts: list[bytes]) -> bytes:
    """Return a list of values that are encoded already."""
    return b"\xdd" + len(parts).to_bytes(4, "big") + b"".join(parts)
