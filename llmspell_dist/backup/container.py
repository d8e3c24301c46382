"""The bytes of an object: header, frames, hash. ``docs/design/backup-format.md`` has the table.

Written once and never changed. The header says how to read it, whatever the present configuration
is; compression comes first, encryption after it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Final, NamedTuple

from llmspell_dist.backup.compression import Algorithm, Compression, decompress
from llmspell_dist.backup.encryption import KEY_BYTES, SALT_BYTES, TAG_BYTES, DataKey, derive
from llmspell_dist.backup.errors import BackupDamagedError, BackupFormatError, BackupKeyError
from llmspell_dist.errors import InvalidArgumentError

__all__ = [
    "FORMAT",
    "FRAME_BYTES",
    "MAX_PLAIN",
    "Header",
    "ObjectKind",
    "Sealed",
    "check",
    "plain_digest",
    "read_header",
    "seal",
    "unseal",
    "verify_hash",
]

FORMAT: Final = 1
MAX_PLAIN: Final = 64 * 2**20
"""Bytes that one object holds at most, once decompressed."""
FRAME_BYTES: Final = 2**20

_MAGIC: Final = b"LSBACKUP"
_HEAD: Final = struct.Struct(">8sBBBBI")
_WORD: Final = struct.Struct(">I")
_LAST: Final = 2**31
_KEY_ID: Final = slice(16, 32)
_SALT: Final = slice(32, 32 + SALT_BYTES)
_CHECK: Final = slice(32 + SALT_BYTES, 32 + SALT_BYTES + KEY_BYTES)
_ENCRYPTED_HEADER: Final = 32 + SALT_BYTES + KEY_BYTES
_HASH_BYTES: Final = 32
_NOT_ENCRYPTED: Final = 0
_AES_256_GCM: Final = 1


class ObjectKind(IntEnum):
    """What an object holds."""

    RECORDS = 1
    SEGMENT = 2
    INDEX = 3
    EXTRA = 4


class Sealed(NamedTuple):
    """An object as it is stored."""

    name: str
    """SHA-256 of `data`, in hex."""
    data: bytes
    plain_size: int
    plain_digest: str
    """SHA-256 of the plain bytes, in hex. It tells who guesses them whether he is right: with
    encryption it must stand in encrypted objects only."""


class Header(NamedTuple):
    """What an object says about itself."""

    kind: ObjectKind
    compression: Algorithm
    key_id: str
    """Empty if the object is not encrypted."""
    plain_size: int
    size: int
    """Bytes of the header."""


def plain_digest(plain: bytes) -> str:
    """Return the SHA-256 of plain bytes, in hex."""
    return hashlib.sha256(plain).hexdigest()


def seal(
    kind: ObjectKind,
    plain: bytes,
    *,
    compression: Compression,
    key: DataKey | None,
    digest: str | None = None,
) -> Sealed:
    """Return the object that holds `plain`; may be called from several threads at once.

    Without a key the same bytes give the same object; with one, each call gives another. `digest`
    is the `plain_digest` if the caller knows it already. More than `MAX_PLAIN` bytes are an
    `InvalidArgumentError`.
    """
    if len(plain) > MAX_PLAIN:
        rule = f"must be at most {MAX_PLAIN} bytes in one object"
        raise InvalidArgumentError("object", f"{len(plain)} bytes", rule)
    encryption = _NOT_ENCRYPTED if key is None else _AES_256_GCM
    header = _HEAD.pack(_MAGIC, FORMAT, kind, compression.algorithm, encryption, len(plain))
    packed = memoryview(compression.compress(plain))
    parts: list[bytes | memoryview]
    if key is None:
        parts = [header, *_plain_frames(packed)]
    else:
        header += bytes.fromhex(key.id)
        salt = os.urandom(SALT_BYTES)
        object_key = derive(key, salt, header)
        header += salt + object_key.check
        bound = hashlib.sha256(header).digest()
        parts = [header]
        for number, last, frame in _cut(packed):
            body = object_key.encrypt(frame, bound, number, last=last)
            parts += (_WORD.pack(len(body) | (_LAST if last else 0)), body)
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part)
    parts.append(hashed.digest())
    hashed.update(parts[-1])
    return Sealed(hashed.hexdigest(), b"".join(parts), len(plain), digest or plain_digest(plain))


def unseal(
    data: bytes,
    *,
    name: str,
    digest: str | None,
    kind: ObjectKind,
    keys: Callable[[str], DataKey],
) -> bytes:
    """Return what `seal` was given, all of it verified, or raise.

    `name` is for messages, `digest` the SHA-256 in hex that the object must have (None: only its
    own hash is compared), `keys` finds a data key by its id. `BackupDamagedError`: it is not what
    was written, or no object of this kind. `BackupKeyError`: the key is missing or another one.
    `BackupFormatError`: a newer release wrote it. The header says how it is compressed and
    encrypted; nothing here depends on the configuration.
    """
    header = check(data, name=name, digest=digest, kind=kind)
    view = memoryview(data)
    if header.key_id:
        packed = _decrypt(view, header, name, keys)
    else:
        packed = b"".join(body for _, body in _frames(view, header, name))
    try:
        return decompress(header.compression, packed, header.plain_size)
    except ValueError as error:
        raise BackupDamagedError(name, f"cannot be decompressed: {error}") from None


def verify_hash(data: bytes, *, name: str, digest: str | None) -> None:
    """Compare an object with the hash that it ends with, and with `digest` if there is one."""
    view = memoryview(data)
    if len(view) < _HASH_BYTES:
        raise BackupDamagedError(name, f"it has only {len(view)} bytes")
    hashed = hashlib.sha256(view[:-_HASH_BYTES])
    own = hashed.digest()
    hashed.update(view[-_HASH_BYTES:])
    if digest is not None and hashed.hexdigest() != digest:
        raise BackupDamagedError(name, f"its SHA-256 is {hashed.hexdigest()}, must be {digest}")
    if own != view[-_HASH_BYTES:]:
        raise BackupDamagedError(name, "the hash at its end is not its own")


def check(data: bytes, *, name: str, digest: str | None, kind: ObjectKind | None = None) -> Header:
    """Verify all that can be verified without a key, and return the header.

    That is: the hashes, the header, that the object is of this `kind`, and that its frames lie
    end to end. Raises as `unseal` does.
    """
    verify_hash(data, name=name, digest=digest)
    header = read_header(data, name)
    if kind is not None and header.kind is not kind:
        raise BackupDamagedError(name, f"it holds {header.kind.name}, must hold {kind.name}")
    for _ in _frames(memoryview(data), header, name):
        pass
    return header


def read_header(data: bytes, name: str) -> Header:
    """Return what an object (or its first 96 bytes) says about itself; nothing is verified."""
    try:
        magic, version, kind, compression, encryption, size = _HEAD.unpack_from(data)
    except struct.error:
        raise BackupDamagedError(name, f"{len(data)} bytes are no object") from None
    if magic != _MAGIC:
        raise BackupDamagedError(name, "it is no object of a backup")
    if version > FORMAT:
        raise BackupFormatError(name, version, FORMAT)
    try:
        if version != FORMAT or encryption > _AES_256_GCM or size > MAX_PLAIN:
            raise ValueError((version, encryption, size))  # noqa: TRY301 - as the enums do
        names = ObjectKind(kind), Algorithm(compression)
    except ValueError:
        raise BackupDamagedError(name, "its header is damaged") from None
    if encryption == _NOT_ENCRYPTED:
        return Header(*names, "", size, _HEAD.size)
    if len(data) < _ENCRYPTED_HEADER:
        raise BackupDamagedError(name, "its header is cut off")
    return Header(*names, bytes(data[_KEY_ID]).hex(), size, _ENCRYPTED_HEADER)


def _decrypt(view: memoryview, header: Header, name: str, keys: Callable[[str], DataKey]) -> bytes:
    try:
        key = keys(header.key_id)
    except BackupKeyError as error:
        raise BackupKeyError(error.key, error.reason, name) from error
    object_key = derive(key, bytes(view[_SALT]), bytes(view[: _SALT.start]))
    if not hmac.compare_digest(object_key.check, view[_CHECK]):
        raise BackupKeyError(header.key_id, "is not the one that encrypted this", name)
    bound = hashlib.sha256(view[: header.size]).digest()
    opened = []
    try:
        for number, (last, body) in enumerate(_frames(view, header, name)):
            opened.append(object_key.decrypt(body, bound, number, last=last))
    except ValueError as error:
        raise BackupDamagedError(name, str(error)) from None
    return b"".join(opened)


def _cut(packed: memoryview) -> Iterator[tuple[int, bool, memoryview]]:
    # Nothing at all is one empty frame, which is the last.
    count = max(1, -(-len(packed) // FRAME_BYTES))
    for number in range(count):
        at = number * FRAME_BYTES
        yield number, number == count - 1, packed[at : at + FRAME_BYTES]


def _plain_frames(packed: memoryview) -> Iterator[bytes | memoryview]:
    for _, last, frame in _cut(packed):
        yield _WORD.pack(len(frame) | (_LAST if last else 0))
        yield frame


def _frames(view: memoryview, header: Header, name: str) -> Iterator[tuple[bool, memoryview]]:
    """Yield whether a frame is the last, and its body; they lie end to end up to the hash."""
    overhead = TAG_BYTES if header.key_id else 0
    full = FRAME_BYTES + overhead
    at, end, last = header.size, len(view) - _HASH_BYTES, False
    while not last:
        if at + _WORD.size > end:
            raise BackupDamagedError(name, f"it ends at byte {end} without its last frame")
        (word,) = _WORD.unpack_from(view, at)
        last, size = word >= _LAST, word % _LAST
        at += _WORD.size
        if size > full or size < overhead or (size < full and not last) or at + size > end:
            raise BackupDamagedError(name, f"the frame at byte {at} has a damaged length")
        yield last, view[at : at + size]
        at += size
    if at != end:
        raise BackupDamagedError(name, f"{end - at} bytes lie behind its last frame")
