"""What lies in Redis for an agent as of one moment, and what of it a save would have to change.

A snapshot keeps the bytes of every part. A state that was loaded holds on to the snapshot that it
came from, so `save` compares bytes and sends only what differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from llmspell_dist.agents.layout import CONVERSATION, MAPS, MODIFIED, PROFILE, Parts
from llmspell_dist.classes import StateClass
from llmspell_dist.codec import Codec
from llmspell_dist.errors import CodecError, LimitError
from llmspell_dist.records import Head
from llmspell_dist.revision import Revision

__all__ = ["MapDiff", "Snapshot", "encoded_map", "encoded_values", "map_diff"]


@dataclass(slots=True)
class Snapshot:
    """The parts of an agent, encoded and decrypted, with the revisions that they have."""

    namespace: str
    scope: str
    scope_revision: Revision | None = None
    """The last commit that changed the scope, whatever in it."""
    values: dict[str, bytes] = field(default_factory=dict)
    maps: dict[str, dict[bytes, bytes]] = field(default_factory=dict)
    conversation: Head = field(default_factory=lambda: Head(0, 0, ""))
    """Where the messages are; no generation: there are none, or they were set as a whole."""
    revisions: dict[str, Revision] = field(default_factory=dict)
    """Of the keys that are there."""
    kinds: dict[str, int] = field(default_factory=dict)
    classes: dict[str, StateClass] = field(default_factory=dict)
    exact: bool = True
    """Whether the revisions are those of these bytes: not after updates beside other writers."""

    @property
    def exists(self) -> bool:
        """Whether there is an agent."""
        return PROFILE in self.values

    @property
    def revision(self) -> Revision | None:
        """The last commit that changed the agent, as far as is known here; None without one."""
        return self.revisions.get(MODIFIED) or self.revisions.get(PROFILE)

    @property
    def home(self) -> tuple[str, str, str]:
        """Which list the messages lie in, as a `Conversation` remembers it."""
        return self.namespace, self.scope, self.conversation.generation

    def note(self, revision: Revision, keys: Iterable[str], exact: bool) -> None:
        """Note a commit of one's own that changed these keys.

        `exact`: it found them as they are known here. Otherwise others wrote in between.
        """
        self.exact = self.exact and exact
        for key in keys:
            self.revisions[key] = max(revision, self.revisions.get(key, revision))
        self.scope_revision = max(revision, self.scope_revision or revision)

    def is_of(self, namespace: str, scope: str) -> bool:
        """Return whether it is one of this agent, and not of another of the same name."""
        return (self.namespace, self.scope) == (namespace, scope)

    def differences(self, other: Snapshot) -> Iterator[str]:
        """Yield the keys that hold something else in another snapshot."""
        for key in sorted({*self.values, *other.values}):
            if self.values.get(key) != other.values.get(key):
                yield key
        for key in MAPS:
            if self.maps.get(key, {}) != other.maps.get(key, {}):
                yield key
        mine, its = self.conversation, other.conversation
        # Who appended the first message itself does not know under which name it lies.
        named = bool(mine.generation and its.generation)
        if mine.count != its.count or (named and mine.generation != its.generation):
            yield CONVERSATION


@dataclass(slots=True)
class MapDiff:
    """What makes one dict of another."""

    changed: dict[str, Any]
    removed: list[bytes]
    size: int
    """Bytes of what is set."""


def encoded_values(codec: Codec, parts: Parts) -> dict[str, bytes]:
    """Return values and numbers as a snapshot has them."""
    return {key: _encode(codec, key, value) for key, value in parts.values.items()}


def encoded_map(codec: Codec, key: str, mapping: dict[str, Any]) -> dict[bytes, bytes]:
    """Return the fields of a dict as a snapshot has them."""
    return {
        codec.encode(name): _encode(codec, f"{key}.{name}", value)
        for name, value in mapping.items()
    }


def map_diff(
    mapping: dict[str, Any], wanted: dict[bytes, bytes], there: dict[bytes, bytes]
) -> MapDiff:
    """Return what has to be set and removed so that `there` becomes `wanted`."""
    changed = {
        name: value
        for (name, value), (raw_name, raw) in zip(mapping.items(), wanted.items(), strict=True)
        if there.get(raw_name) != raw
    }
    size = sum(
        len(raw_name) + len(raw) for raw_name, raw in wanted.items() if there.get(raw_name) != raw
    )
    return MapDiff(changed, [name for name in there if name not in wanted], size)


def _encode(codec: Codec, path: str, value: Any) -> bytes:
    try:
        return codec.encode(value)
    except (CodecError, LimitError) as error:
        raise error.inside(f".{path}") from None
