"""Large values and converted composites: laid down in pieces first, adopted by one small commit.

A value over `INLINE_LIMIT` would hold the server up if one command carried it. Its pieces go ahead
to a generation of their own on the bulk lane; the commit then only names that generation, so it is
as atomic as any other. What no commit adopts expires after an hour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from llmspell_dist.changes import Op
from llmspell_dist.records import Kind
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.commits import Change, StagedElementsLostError, change
from llmspell_dist.redis.scripts import load_script

if TYPE_CHECKING:
    from llmspell_dist.classes import StateClass
    from llmspell_dist.redis.commits import ScopeKey
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Steps

__all__ = ["INLINE_LIMIT", "LOGGED_LIMIT", "Staged", "adopt", "chunks", "stage"]

INLINE_LIMIT: Final = 512 * 1024
"""Values up to this stand in the record itself, and in the log."""
LOGGED_LIMIT: Final = 64 * 1024
"""A list or map that is converted is written to the log as a whole up to this."""
CHUNK_BYTES: Final = 64 * 1024
BATCH_ITEMS: Final = 1000
TOGETHER: Final = 8


class Staged(NamedTuple):
    """A generation that lies ready."""

    kind: Kind
    generation: bytes
    count: int  # type: ignore[assignment] # nobody needs tuple.count
    size: int


def chunks(payload: bytes) -> list[bytes]:
    """The pieces of a large value."""
    return [payload[at : at + CHUNK_BYTES] for at in range(0, len(payload), CHUNK_BYTES)]


def stage(
    core: Core, scope: ScopeKey, kind: Kind, elements: Sequence[bytes] | Mapping[bytes, bytes]
) -> Steps[Staged]:
    """Lay elements down, in requests that may be sent twice."""
    generation = core.new_generation()
    key = core.keyspace.generation(scope.scope, generation)
    script = load_script("stage")
    if isinstance(elements, Mapping):
        pairs = list(elements.items())
        flat = [part for pair in pairs for part in pair]
        count, width, name = len(pairs), 2, b"map"
    else:
        flat, count, width, name = list(elements), len(elements), 1, b"list"
    size = sum(map(len, flat))
    at = 0
    calls: list[Command | ScriptCall] = []
    while at < len(flat):
        batch: list[bytes] = []
        weight, start = 0, at
        while at < len(flat) and len(batch) < BATCH_ITEMS and weight < CHUNK_BYTES:
            batch += flat[at : at + width]
            weight += sum(map(len, flat[at : at + width]))
            at += width
        calls.append(
            ScriptCall(script, (key,), (name, b"%d" % (start // width), *batch), bulk=True)
        )
        if len(calls) == TOGETHER or at >= len(flat):
            replies = yield calls
            if min(replies) < 0:
                raise StagedElementsLostError
            calls = []
    return Staged(kind, generation, count, size)


def adopt(
    staged: Staged,
    field: bytes,
    *,
    state_class: StateClass,
    flags: int = 0,
    schema_version: int = 1,
    ttl_mode: int = 0,
    ttl_ms: int = 0,
    scope: int = 0,
    logged: bytes = b"",
) -> Change:
    """The change that makes a staged generation the value of a key."""
    head = bytes((len(staged.generation),)) + staged.generation
    count = staged.count.to_bytes(4, "big") + staged.size.to_bytes(6, "big")
    return change(
        Op.ADOPT,
        field,
        head + count + logged,
        kind=staged.kind,
        state_class=state_class,
        flags=flags,
        schema_version=schema_version,
        ttl_mode=ttl_mode,
        ttl_ms=ttl_ms,
        scope=scope,
    )
