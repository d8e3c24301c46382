"""The backups of one namespace in a target: objects sealed and opened, manifests found.

All methods block; the service calls them in threads, several at once.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import msgpack

from llmspell_dist.backup.compression import Compression
from llmspell_dist.backup.container import ObjectKind, plain_digest, seal, unseal
from llmspell_dist.backup.errors import (
    BackupDamagedError,
    BackupError,
    BackupKeyError,
    BackupNotFoundError,
    ObjectMissingError,
    TargetError,
)
from llmspell_dist.backup.keys import KeyStore
from llmspell_dist.backup.manifest import Manifest, ObjectRef
from llmspell_dist.backup.names import Layout
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.fork import child_safe_lock

if TYPE_CHECKING:
    from llmspell_dist.backup.encryption import DataKey
    from llmspell_dist.backup.targets.base import Target
    from llmspell_dist.security.keyring import KeyProvider

__all__ = ["Repository", "Stored", "new_backup_id"]

logger = logging.getLogger("llmspell_dist.backup")

KINDS: Final = {
    "records": ObjectKind.RECORDS,
    "segment": ObjectKind.SEGMENT,
    "index": ObjectKind.INDEX,
    "extra": ObjectKind.EXTRA,
}
_TICK: Final = timedelta(milliseconds=1)
_STEP: Final = timedelta(minutes=1)
_lock: Final = child_safe_lock()
_newest: Final[list[datetime]] = []
"""The moment of the id that this process made last."""


def new_backup_id(moment: datetime | None = None) -> str:
    """Return an id that nobody else will use; ids sort by time.

    Those of one process come in the order in which they were made, also within one millisecond and
    while its clock steps back by up to a minute.
    """
    moment = (datetime.now(UTC) if moment is None else moment).astimezone(UTC)
    with _lock:
        after = _newest[-1] + _TICK if _newest else moment
        if moment < after <= moment + _STEP:
            moment = after
        _newest[:] = [moment]
    # Three digits of the rest are milliseconds: ids of the same second sort by time too.
    return f"{moment:%Y%m%dT%H%M%SZ}-{moment.microsecond // 1000:03x}{secrets.token_hex(3)[:5]}"


class Stored:
    """What a backup that is being made has stored, and what it may use again."""

    def __init__(self, key: DataKey | None) -> None:
        self.key = key
        self.refs: list[ObjectRef] = []
        self.digests: dict[str, str] = {}
        """By the name of an object: SHA-256 of its content."""
        self.marks: dict[str, bytes] = {}
        """By the name of an object: which scopes it holds; see `marks`."""
        self.known: dict[str, ObjectRef] = {}
        """By SHA-256 of their content: objects of the backup before."""
        self.stored_bytes = 0
        self.reused: list[ObjectRef] = []
        self.lock = threading.Lock()


class Repository:
    """Objects, manifests and keys of one namespace."""

    def __init__(
        self,
        target: Target,
        namespace: str,
        *,
        keys: KeyProvider | None = None,
        older_keys: Sequence[KeyProvider] = (),
        compression: Compression | None = None,
    ) -> None:
        self.target = target
        self.layout = Layout(namespace)
        self.namespace = namespace
        self._keys = keys
        self._older_keys = older_keys
        self.keystore = KeyStore(target, self.layout, keys, older=older_keys)
        self.compression = Compression.parse("zstd") if compression is None else compression
        # A processor stays free: for the loop that reads, and for those who write meanwhile.
        self._sealing = threading.BoundedSemaphore(max(1, (os.cpu_count() or 1) - 1))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.namespace!r} in {self.target.label}>"

    def of(self, namespace: str) -> Repository:
        """Return the backups of another namespace in the same place."""
        if namespace == self.namespace:
            return self
        return Repository(
            self.target,
            namespace,
            keys=self._keys,
            older_keys=self._older_keys,
            compression=self.compression,
        )

    # --- objects

    def begin(self) -> Stored:
        """Begin a backup: with a data key of its own, if there is a provider."""
        return Stored(self.keystore.new())

    def store(self, kind: str, plain: bytes, shard: str, stored: Stored) -> ObjectRef:
        """Store an object, unless one with this content is there."""
        if kind == "records" and stored.known:
            digest = plain_digest(plain)
            known = stored.known.get(digest)
            if known is not None:
                with stored.lock:
                    stored.reused.append(known)
                    stored.digests[known.digest] = digest
                return known
        with self._sealing:
            sealed = seal(KINDS[kind], plain, compression=self.compression, key=stored.key)
        self.target.put(self.layout.object(sealed.name), sealed.data)
        key = "" if stored.key is None else stored.key.id
        ref = ObjectRef(sealed.name, kind, shard, len(sealed.data), sealed.plain_size, key)
        with stored.lock:
            stored.stored_bytes += ref.size
            stored.digests[ref.digest] = sealed.plain_digest
        return ref

    def load(self, ref: ObjectRef) -> bytes:
        """Return the content of an object, every byte of it checked."""
        name = self.layout.object(ref.digest)
        try:
            data = self.target.get(name)
        except ObjectMissingError:
            raise BackupDamagedError(name, "it is not there") from None
        return unseal(
            data, name=name, digest=ref.digest, kind=KINDS[ref.kind], keys=self.keystore.get
        )

    def check_reused(self, stored: Stored) -> None:
        """Make sure that what is used again is still there: somebody may have pruned it."""
        for ref in stored.reused:
            if self.target.head(self.layout.object(ref.digest)) is None:
                raise BackupDamagedError(
                    self.layout.object(ref.digest), "it was pruned while a backup used it"
                )

    # --- the index

    def pack_index(self, facts: dict[str, Any]) -> bytes:
        """Return the content of an index."""
        return bytes(msgpack.packb({"format": 1, **facts}))

    def index(self, manifest: Manifest) -> dict[str, Any]:
        """Return what the index of a backup says."""
        refs = manifest.objects_of("index")
        if len(refs) != 1:
            raise BackupDamagedError(self.layout.manifest(manifest.backup_id), "it has no index")
        facts = msgpack.unpackb(self.load(refs[0]))
        return dict(facts)

    # --- manifests

    def started(self, backup_id: str, facts: dict[str, Any]) -> None:
        """Note that a backup has begun, so that nobody takes its objects for orphans."""
        self.target.put(self.layout.started(backup_id), json.dumps(facts).encode())

    def forget_started(self, backup_id: str) -> None:
        """Remove that note; it does not matter if it cannot be."""
        try:
            self.target.delete([self.layout.started(backup_id)])
        except BackupError:
            return

    def publish(self, manifest: Manifest, key: DataKey | None) -> None:
        """Write the manifest: from here on the backup exists."""
        name = self.layout.manifest(manifest.backup_id)
        raw = manifest.packed(None if key is None else _manifest_key(key))
        if not self.target.put(name, raw, only_new=True):
            raise BackupDamagedError(name, "there is one already")

    def manifest(self, backup_id: str) -> Manifest:
        """Return a backup's manifest; `BackupNotFoundError` if there is none."""
        if not isinstance(backup_id, str):
            raise InvalidArgumentError("backup_id", backup_id, "must be the id of a backup")
        name = self.layout.manifest(backup_id)
        if self.layout.read_backup(name) is None:  # no id, maybe a path that leads elsewhere
            raise BackupNotFoundError(self.target.label, backup_id)
        try:
            raw = self.target.get(name)
        except ObjectMissingError:
            raise BackupNotFoundError(self.target.label, backup_id) from None
        manifest = Manifest.unpack(raw, name)
        if manifest.backup_id != backup_id or manifest.namespace != self.namespace:
            raise BackupDamagedError(name, f"it is the manifest of {manifest.backup_id}")
        return manifest

    def authenticate(self, manifest: Manifest) -> None:
        """Check that a backup was written by who had its key.

        One without encryption is refused where a key provider is given: anybody could have put it.
        """
        name = self.layout.manifest(manifest.backup_id)
        if manifest.key:
            manifest.authenticate(_manifest_key(self.keystore.get(manifest.key)), name)
        elif self.encrypts:
            reason = (
                "the backup is not encrypted, so nobody knows who wrote it; give no keys for it"
            )
            raise BackupKeyError("", reason, name)

    @property
    def encrypts(self) -> bool:
        """Whether a key provider is given: then nothing counts that is not authenticated."""
        return self._keys is not None

    def mac(self, key_id: str, purpose: bytes, data: bytes) -> str:
        """Return what only who has a data key can make of some data."""
        key = hmac.new(self.keystore.get(key_id).secret, purpose, hashlib.sha256).digest()
        return hmac.new(key, data, hashlib.sha256).hexdigest()

    def backup_ids(self) -> list[str]:
        """Return the ids of all backups, oldest first."""
        found = []
        for info in self.target.list(self.layout.backups):
            read = self.layout.read_backup(info.name)
            if read is not None and read[1] == "manifest.json":
                found.append(read[0])
        return found

    def manifests(self, ids: Iterable[str] | None = None) -> Iterator[Manifest]:
        """Yield the manifests of backups, oldest first; one that is pruned meanwhile is left out.

        A damaged one is an error.
        """
        for backup_id in self.backup_ids() if ids is None else ids:
            try:
                yield self.manifest(backup_id)
            except BackupNotFoundError:
                continue

    def newest(self, wanted: Callable[[Manifest], bool] | None = None) -> Manifest | None:
        """Return the newest backup that is wanted, if there is one: no older one is read.

        A damaged one is passed over, as is one for which `wanted` raises; one that the place does
        not let be read may be the newest: that is a `TargetError`.
        """
        for backup_id in reversed(self.backup_ids()):
            try:
                manifest = self.manifest(backup_id)
                if wanted is None or wanted(manifest):
                    return manifest
            except TargetError:
                raise
            except BackupError as error:
                logger.warning("backup %s is passed over: %s", backup_id, error)
        return None

    def readable(self) -> tuple[list[Manifest], dict[str, BackupError]]:
        """Return the manifests that can be read, oldest first, and by id why others cannot."""
        found, left_out = [], {}
        for backup_id in self.backup_ids():
            try:
                found.append(self.manifest(backup_id))
            except BackupNotFoundError:
                continue  # it was pruned just now
            except BackupError as error:
                left_out[backup_id] = error
        return found, left_out


def _manifest_key(key: DataKey) -> bytes:
    """Return the key that authenticates the manifests of the backups of a data key."""
    return hmac.new(key.secret, b"llmspell-dist/manifest", hashlib.sha256).digest()
