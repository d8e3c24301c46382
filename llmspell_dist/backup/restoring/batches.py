"""What is sent of a restore, in calls that the server is done with within milliseconds."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, NamedTuple

from llmspell_dist.backup.errors import RestoreRefusedError
from llmspell_dist.redis.commands import ScriptCall
from llmspell_dist.redis.scripts import load_script

if TYPE_CHECKING:
    from llmspell_dist.keys import KeySpace
    from llmspell_dist.scope import Scope

__all__ = [
    "BATCH_BYTES",
    "BATCH_CHANGES",
    "BATCH_RECORDS",
    "Changes",
    "Place",
    "Records",
    "framed",
    "place_of",
    "two_to_one",
]

BATCH_BYTES: Final = 128 * 1024
BATCH_RECORDS: Final = 500
BATCH_CHANGES: Final = 200
BATCH_SCOPES: Final = 200
_BIG: Final = 48
"""Bytes that a record counts for beside its own: a batch of tiny ones costs time, too."""


class Place(NamedTuple):
    """Where a scope is laid down."""

    scope: Scope
    shard: str
    name: bytes
    """Of the staged hash, within the restore; made from the scope's name."""
    key: bytes
    about: bytes
    """What the registry says of it."""
    base: bytes
    """What the keys of its elements begin with."""


def place_of(
    keyspace: KeySpace, restore_id: str, scope: Scope, source: bytes, *, aside: bool
) -> Place:
    """Return where a scope is laid down; `aside` with its elements beside it, not to be swapped."""
    text = scope.text.encode()
    shard = keyspace.shard(scope)
    name = hashlib.blake2b(text, digest_size=12).hexdigest()
    key = keyspace.staged(shard, restore_id, name)
    about = b"%b\n%b\n%b" % (text, source, b"a" if aside else b"")
    return Place(scope, shard, name.encode(), key, about, key if aside else keyspace.scope(scope))


def two_to_one(text: str) -> RestoreRefusedError:
    """Return what is raised when a mapping sends two scopes to one."""
    return RestoreRefusedError(text, "two scopes would be restored to it")


class _Section:
    """The records of one scope in a batch."""

    __slots__ = ("expiries", "place", "records", "tail")

    def __init__(self, place: Place) -> None:
        self.place = place
        self.records: dict[bytes, bytes] = {}
        self.expiries: dict[bytes, bytes] = {}
        self.tail: bytes | None = None


class Records:
    """Whole records of a shard, put together for `restore_load`."""

    def __init__(self, head: tuple[bytes, ...], keys: tuple[bytes, ...]) -> None:
        self._script = load_script("restore_load")
        self._head = head
        self._keys = keys
        self.sections: dict[bytes, _Section] = {}
        self.weight = 0
        self.count = 0

    def section(self, place: Place) -> _Section:
        """Return the part of the batch that is of a scope."""
        found = self.sections.get(place.name)
        if found is None:
            found = self.sections[place.name] = _Section(place)
            self.weight += 128
        elif found.place.about != place.about:
            raise two_to_one(place.scope.text)
        return found

    @property
    def full(self) -> bool:
        """Whether it is time to send it."""
        return (
            self.weight >= BATCH_BYTES
            or self.count >= BATCH_RECORDS
            or len(self.sections) >= BATCH_SCOPES
        )

    def take(self) -> ScriptCall | None:
        """Return what is to be sent, and begin anew."""
        if not self.sections:
            return None
        keys, args = list(self._keys), list(self._head)
        for section in self.sections.values():
            records, expiries, tail = section.records, section.expiries, section.tail
            size = sum(map(len, records)) + sum(map(len, records.values()))
            head = (
                len(records).to_bytes(4, "big")
                + size.to_bytes(6, "big")
                + len(expiries).to_bytes(2, "big")
                + (b"\0" if tail is None else b"\1")
            )
            keys.append(section.place.key)
            args += (section.place.name, section.place.about, head)
            if tail is not None:
                args.append(tail)
            for pair in records.items():
                args += pair
            for key, expires in expiries.items():
                args += (b"%d" % int.from_bytes(expires, "big"), key)
        self.sections, self.weight, self.count = {}, 0, 0
        return ScriptCall(self._script, tuple(keys), tuple(args), bulk=True)


class Changes:
    """Changes of staged scopes of a shard, put together for `restore_apply`, in order."""

    def __init__(self, head: tuple[bytes, ...], keys: tuple[bytes, ...]) -> None:
        self._script = load_script("restore_apply")
        self._head = head
        self._keys = keys
        self._places: dict[bytes, tuple[bytes, Place]] = {}
        self._args: list[bytes] = []
        self.told: list[tuple[str, bytes]] = []
        """By position, of which scope and key a change is."""
        self.weight = 0

    def add(
        self, what: int, place: Place, head: bytes, key: bytes, payload: bytes, *, elements: int = 0
    ) -> None:
        """Add a change; `head` from kind and class on (see the script).

        `elements`: how many the payload holds. Each is a command of the script's own, so that many
        small ones take the server longer than their bytes say.
        """
        index = self._places.get(place.name)
        if index is None:
            index = len(self._places).to_bytes(2, "big"), place
            self._places[place.name] = index
            self.weight += 128
        elif index[1].about != place.about:
            raise two_to_one(place.scope.text)
        self._args += (bytes((what,)) + index[0] + head, key, payload)
        self.told.append((place.scope.text, key))
        self.weight += len(key) + len(payload) + _BIG * (1 + elements)

    @property
    def full(self) -> bool:
        """Whether it is time to send it."""
        return (
            self.weight >= BATCH_BYTES
            or len(self.told) >= BATCH_CHANGES
            or len(self._places) >= BATCH_SCOPES
        )

    def take(self, serial: int) -> tuple[ScriptCall, list[tuple[str, bytes]]] | None:
        """Return what is to be sent and what it is of, and begin anew."""
        if not self._args:
            return None
        keys, args = list(self._keys), [*self._head, b"%d" % serial]
        for _, place in self._places.values():
            keys.append(place.key)
            args += (place.name, place.about)
        call = ScriptCall(self._script, tuple(keys), (*args, *self._args), bulk=True)
        told, self.told = self.told, []
        self._places, self._args, self.weight = {}, [], 0
        return call, told


def framed(parts: list[bytes]) -> bytes:
    """Return elements with their lengths before them."""
    return b"".join([piece for part in parts for piece in (len(part).to_bytes(4, "big"), part)])
