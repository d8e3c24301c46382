"""Putting other elements in the place of a list or map: laid down first, adopted by the commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from llmspell_dist.classes import StateClass
from llmspell_dist.records import Kind
from llmspell_dist.state.core import field_of
from llmspell_dist.state.staging import LOGGED_LIMIT, adopt, stage
from llmspell_dist.ttl import KEEP

if TYPE_CHECKING:
    from llmspell_dist.redis.commits import Change, ScopeKey
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Steps

__all__ = ["Elements", "replaced", "whole"]

Elements = Sequence[bytes] | Mapping[bytes, bytes]
"""Of a list, or of a map: each as its class stores it."""


def whole(elements: Elements) -> bytes:
    """Return a list or map of encoded elements as one value."""
    header = (b"\xdf" if isinstance(elements, Mapping) else b"\xdd") + _count(elements)
    if isinstance(elements, Mapping):
        return header + b"".join([part for pair in elements.items() for part in pair])
    return header + b"".join(elements)


def _count(elements: Elements) -> bytes:
    return len(elements).to_bytes(4, "big")


def replaced(
    core: Core, scope: ScopeKey, key: str, elements: Elements, state_class: StateClass
) -> Steps[tuple[Change, str]]:
    """Return the change that makes these elements the value of a key, and where they lie."""
    kind = Kind.MAP if isinstance(elements, Mapping) else Kind.LIST
    staged = yield from stage(core, scope, kind, elements)
    logged = b"" if state_class == StateClass.SENSITIVE else whole(elements)
    mode, milliseconds = core.expiry(KEEP, state_class)
    change = adopt(
        staged,
        field_of(scope, key),
        state_class=state_class,
        ttl_mode=mode,
        ttl_ms=milliseconds,
        logged=logged if len(logged) <= LOGGED_LIMIT else b"",
    )
    return change, staged.generation.decode()
