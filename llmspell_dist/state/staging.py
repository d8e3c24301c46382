"""Large values and converted composites: laid down in pieces first, adopted by one small commit.

A value over `INLINE_LIMIT` would hold the server up if one command carried it. Its pieces go ahead
to a generation of their own on the bulk lane; the commit then only names that generation, so it is
as atomic as any other. What no commit adopts expires after an hour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from llmspell_dist.changes import Op
from llmspell_dist.errors import StagedElementsLostError
from llmspell_dist.records import Kind
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.commits import Change, change
from llmspell_dist.redis.scripts import load_script
from llmspell_dist.state.large import CHUNK_BYTES

if TYPE_CHECKING:
    from llmspell_dist.classes import StateClass
    from llmspell_dist.redis.commits import ScopeKey
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Steps

__all__ = ["LOGGED_LIMIT", "Staged", "adopt", "stage"]

LOGGED_LIMIT: Final = 64 * 1024
"""A list or map that is converted is written to the log as a whole up to this."""
BATCH_ITEMS: Final = 1000
TOGETHER: Final = 4


class Staged(NamedTuple):
    """A generation that lies ready."""

    kind: Kind
    generation: bytes
    count: int  # type: ignore[assignment] # nobody needs tuple.count
    size: int


def stage(
    core: Core, scope: ScopeKey, kind: Kind, elements: Iterable[bytes] | Mapping[bytes, bytes]
) -> Steps[Staged]:
    """Lay elements down, in requests that may be sent twice; taken as they are sent."""
    generation = core.new_generation()
    key = core.keyspace.generation(scope.scope, generation)
    script = load_script("stage")
    parts: Iterable[tuple[bytes, ...]]
    if isinstance(elements, Mapping):
        name, parts = b"map", elements.items()
    else:
        name, parts = b"list", ((element,) for element in elements)
    count = size = laid = weight = 0
    batch: list[bytes] = []
    calls: list[Command | ScriptCall] = []
    for part in parts:
        batch += part
        count += 1
        weight += sum(map(len, part))
        if weight < CHUNK_BYTES and len(batch) < BATCH_ITEMS:
            continue
        calls.append(ScriptCall(script, (key,), (name, b"%d" % laid, *batch), bulk=True))
        laid, size, batch, weight = count, size + weight, [], 0
        if len(calls) == TOGETHER:
            yield from _lay_down(calls)
            calls = []
    if batch:
        calls.append(ScriptCall(script, (key,), (name, b"%d" % laid, *batch), bulk=True))
    if calls:
        yield from _lay_down(calls)
    return Staged(kind, generation, count, size + weight)


def _lay_down(calls: list[Command | ScriptCall]) -> Steps[None]:
    replies = yield calls
    if min(replies) < 0:
        raise StagedElementsLostError


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
    """Return the change that makes a staged generation the value of a key."""
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
