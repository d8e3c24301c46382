"""What several services' routes take and give: records, changes, pages, write options."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from llmspell_dist.ack import Ack
from llmspell_dist.classes import StateClass
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.revision import Revision
from llmspell_dist.state.model import Change, Record
from llmspell_dist.ttl import KEEP, TTL

__all__ = [
    "ChangeDocument",
    "Count",
    "Keeping",
    "KeptFor",
    "RecordDocument",
    "Revised",
    "Seconds",
    "WriteOptions",
    "change_document",
    "keeping",
    "parse_moment",
    "parse_ttl",
    "record_document",
    "write_options",
]

Seconds = Annotated[float, Meta(gt=0)]
TTLText = Annotated[
    str, Meta(description="Seconds until it ends; `none` removes an expiry. Default: it stays.")
]


KeptFor = Annotated[
    float | str | None,
    Meta(description="Seconds until it ends; `none` removes an expiry. Default: it stays."),
]


ClassText = Annotated[
    str,
    Meta(
        description="`standard`, `critical`, `bulk`, `ephemeral`, `trusted`, `sensitive`, "
        "`external` or `archive`. Default: as the rules say, or as it is."
    ),
]
AckText = Annotated[
    str,
    Meta(
        description="What the answer waits for: `memory`, `local-fsync`, `replicated(k)` or "
        "`replicated-all`."
    ),
]


class Revised(Struct, frozen=True):
    """The commit that did it."""

    revision: str


class Count(Struct, frozen=True):
    """How many."""

    count: int


class WriteOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """How a value is to be kept."""

    ttl: TTLText | None = None
    state_class: ClassText | None = None
    schema_version: Annotated[
        int, Meta(ge=0, le=65_535, description="Stored beside the value, for migrations.")
    ] = 1
    ack: AckText | None = None


class Keeping(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a value is to be kept, in a body."""

    ttl: KeptFor = None
    state_class: str | None = None


def parse_ttl(text: str | float | UnsetType | None) -> TTL:
    """Return a time to live: seconds, ``none``, or nothing, which leaves it as it is."""
    if text is UNSET or text is None or text == "keep":
        return KEEP
    if text == "none":
        return None
    try:
        return float(text)
    except (ValueError, TypeError):
        raise InvalidArgumentError("ttl", text, "must be seconds, or none") from None


def write_options(query: WriteOptions) -> dict[str, Any]:
    """Return them as the arguments of the library's methods."""
    options: dict[str, Any] = {"ttl": parse_ttl(query.ttl)}
    if query.state_class is not None:
        options["state_class"] = StateClass.coerce(query.state_class)
    if query.schema_version != 1:
        options["schema_version"] = query.schema_version
    if query.ack is not None:
        options["ack"] = Ack.parse(query.ack)
    return options


def keeping(body: Keeping) -> dict[str, Any]:
    """Return it as the arguments of the library's methods."""
    options: dict[str, Any] = {"ttl": parse_ttl(body.ttl)}
    if body.state_class is not None:
        options["state_class"] = StateClass.coerce(body.state_class)
    return options


def parse_moment(text: str) -> Revision | datetime:
    """Return a revision (``ms-seq``) or an ISO time with an offset."""
    try:
        return Revision.parse(text)
    except InvalidArgumentError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise InvalidArgumentError("at", text, "must be a revision, or an ISO time with an offset")
    return moment


class RecordDocument(Struct, frozen=True, omit_defaults=False):
    """A value with all that is known about it."""

    scope: str
    key: str
    value: Any
    revision: str
    created: datetime
    updated: datetime
    expires: datetime | None
    state_class: str
    schema_version: int
    kind: str


def record_document(found: Record) -> RecordDocument:
    """Return a record as a document."""
    return RecordDocument(
        scope=found.scope,
        key=found.key,
        value=found.value,
        revision=str(found.revision),
        created=found.created,
        updated=found.updated,
        expires=found.expires,
        state_class=str(found.state_class),
        schema_version=found.schema_version,
        kind=found.kind,
    )


class ChangeDocument(Struct, frozen=True):
    """One change of one key, as the log has it."""

    scope: str
    key: str
    op: str
    revision: str
    time: datetime
    has_value: bool
    value: Any
    removed: list[Any]
    previous: str | None
    expires: datetime | None
    state_class: str | None
    operation: str
    actor: str | None
    correlation_id: str | None
    causation_id: str | None
    traceparent: str | None
    root_id: str | None


def change_document(change: Change) -> ChangeDocument:
    """Return a change as a document."""
    said = change.context
    return ChangeDocument(
        scope=change.scope,
        key=change.key,
        op=change.op,
        revision=str(change.revision),
        time=change.time,
        has_value=change.has_value,
        value=change.value,
        removed=list(change.removed),
        previous=None if change.previous is None else str(change.previous),
        expires=change.expires,
        state_class=None if change.state_class is None else str(change.state_class),
        operation=change.operation,
        actor=said.actor,
        correlation_id=said.correlation_id,
        causation_id=said.causation_id,
        traceparent=said.traceparent,
        root_id=said.root_id,
    )
