"""Objects of backups: what was sealed comes out whole, or nothing comes out."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable

import lz4.frame
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from llmspell_dist.backup import container
from llmspell_dist.backup.compression import Algorithm, Compression, decompress
from llmspell_dist.backup.container import (
    FRAME_BYTES,
    MAX_PLAIN,
    Header,
    ObjectKind,
    check,
    plain_digest,
    read_header,
    seal,
    unseal,
    verify_hash,
)
from llmspell_dist.backup.encryption import DataKey
from llmspell_dist.backup.errors import (
    BackupDamagedError,
    BackupError,
    BackupFormatError,
    BackupKeyError,
)
from llmspell_dist.errors import InvalidArgumentError

pytestmark = [pytest.mark.unit, pytest.mark.backup]

KEY = DataKey("00112233445566778899aabbccddeeff", bytes(range(32)))
ALGORITHMS = ["none", "gzip", "zstd", "lz4"]
SMALL = b"thirty bytes are quite enough."
HEADER = 96
HASH = 32


def _keys(key_id: str) -> DataKey:
    if key_id != KEY.id:
        raise BackupKeyError(key_id, "is not here")
    return KEY


def _no_keys(key_id: str) -> DataKey:
    raise AssertionError(f"{key_id} was asked for")


def _open(
    data: bytes,
    digest: str | None = None,
    kind: ObjectKind = ObjectKind.RECORDS,
    keys: Callable[[str], DataKey] = _keys,
) -> bytes:
    return unseal(data, name="objects/aa/aabb", digest=digest, kind=kind, keys=keys)


def _sealed(
    plain: bytes, algorithm: str = "zstd", key: DataKey | None = KEY, **options: ObjectKind
) -> container.Sealed:
    kind = options.get("kind", ObjectKind.RECORDS)
    return seal(kind, plain, compression=Compression.parse(algorithm), key=key)


def _rehash(data: bytes) -> bytes:
    """Give forged bytes the hash that belongs to them, as an attacker would."""
    return data[:-HASH] + hashlib.sha256(data[:-HASH]).digest()


def _frames(data: bytes) -> tuple[bytes, list[bytes]]:
    """Take an encrypted object apart: header, frames with their length words."""
    at, frames = HEADER, []
    while at < len(data) - HASH:
        size = 4 + int.from_bytes(data[at : at + 4], "big") % 2**31
        frames.append(data[at : at + size])
        at += size
    return data[:HEADER], frames


# --- what was sealed comes out --------------------------------------------------------------------


@given(
    plain=st.binary(max_size=5_000) | st.binary(min_size=1, max_size=20).map(lambda b: b * 50_000),
    algorithm=st.sampled_from(ALGORITHMS),
    key=st.sampled_from([None, KEY]),
    kind=st.sampled_from(ObjectKind),
)
def test_unseal_returns_what_was_sealed(
    plain: bytes, algorithm: str, key: DataKey | None, kind: ObjectKind
) -> None:
    """Whatever stands in an object, however it is compressed, encrypted or not."""
    sealed = _sealed(plain, algorithm, key, kind=kind)
    assert sealed.name == hashlib.sha256(sealed.data).hexdigest()
    assert (sealed.plain_size, sealed.plain_digest) == (len(plain), plain_digest(plain))
    assert _open(sealed.data, sealed.name, kind) == plain
    assert _open(sealed.data, None, kind) == plain


@pytest.mark.parametrize("size", [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 2**22])
@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_frames_of_every_number_are_read(size: int, key: DataKey | None) -> None:
    """None is longer than 1 MiB, and what ends exactly at one's end is read too."""
    plain = os.urandom(size)
    sealed = _sealed(plain, "none", key)
    assert _open(sealed.data, sealed.name) == plain
    if key is not None:
        _, frames = _frames(sealed.data)
        assert len(frames) == max(1, -(-size // FRAME_BYTES))
        assert max(map(len, frames)) <= 4 + FRAME_BYTES + 16


def test_without_a_key_the_same_bytes_are_the_same_object() -> None:
    """So what did not change is stored once; with a key nobody can see that it is the same."""
    assert _sealed(SMALL, key=None) == _sealed(SMALL, key=None)
    assert _sealed(SMALL).name != _sealed(SMALL).name


def test_header_is_read_without_a_key() -> None:
    """What lists objects needs to know which key they need."""
    data = _sealed(SMALL, "lz4", kind=ObjectKind.INDEX).data
    assert read_header(data[:HEADER], "x") == Header(
        ObjectKind.INDEX, Algorithm.LZ4, KEY.id, len(SMALL), HEADER
    )
    assert check(data, name="x", digest=None).key_id == KEY.id
    assert read_header(_sealed(SMALL, key=None).data, "x").key_id == ""


def test_an_encrypted_object_shows_nothing_of_its_contents() -> None:
    """Neither the bytes nor their hash."""
    secret = b"sk-live-this-must-not-be-seen"
    sealed = _sealed(secret, "none")
    assert secret not in sealed.data
    assert hashlib.sha256(secret).digest() not in sealed.data
    assert KEY.secret not in sealed.data


def test_more_than_an_object_may_hold_is_refused() -> None:
    """Nobody could read it again."""
    with pytest.raises(InvalidArgumentError, match="67108864 bytes in one object"):
        _sealed(bytes(MAX_PLAIN + 1), "none", None)


# --- anything else is refused ---------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_byte_that_is_flipped_is_found_and_the_object_named(
    algorithm: str, key: DataKey | None
) -> None:
    """With the hash that its name says and without it, and without the key."""
    sealed = _sealed(SMALL, algorithm, key)
    for at in range(len(sealed.data)):
        for bit in (1, 128):
            data = bytearray(sealed.data)
            data[at] ^= bit
            for digest in (sealed.name, None):
                with pytest.raises(BackupDamagedError, match="objects/aa/aabb"):
                    _open(bytes(data), digest)
                with pytest.raises(BackupDamagedError):
                    verify_hash(bytes(data), name="x", digest=digest)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_byte_that_is_forged_is_refused_though_the_hash_fits(algorithm: str) -> None:
    """Who can write to the store can make hashes; without the key it does not help."""
    sealed = _sealed(SMALL, algorithm)
    for at in range(len(sealed.data) - HASH):
        data = bytearray(sealed.data)
        data[at] ^= 1
        # A header that was forged cannot be told from one that another key belongs to.
        expected = (BackupDamagedError, BackupKeyError) if at < HEADER else BackupDamagedError
        with pytest.raises(expected):
            _open(_rehash(bytes(data)))


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_truncation_is_refused(algorithm: str, key: DataKey | None) -> None:
    """Also with a hash that fits."""
    sealed = _sealed(SMALL, algorithm, key)
    for size in range(len(sealed.data)):
        with pytest.raises(BackupDamagedError):
            _open(sealed.data[:size], sealed.name)
        with pytest.raises(BackupDamagedError):
            _open(sealed.data[:size])
    for size in range(len(sealed.data) - HASH):
        cut = sealed.data[:size]
        # After eight bytes the format's place holds a byte of the hash.
        with pytest.raises(BackupDamagedError if size != 8 else BackupError):
            _open(cut + hashlib.sha256(cut).digest())


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_bytes_behind_the_end_are_refused(key: DataKey | None) -> None:
    """In front of the hash and behind it."""
    data = _sealed(SMALL, "zstd", key).data
    longer = data[:-HASH] + b"x"
    for forged in (data + b"x", longer + hashlib.sha256(longer).digest()):
        with pytest.raises(BackupDamagedError):
            _open(forged)


def _without(frames: list[bytes], number: int) -> list[bytes]:
    return frames[:number] + frames[number + 1 :]


def _marked_last(frame: bytes) -> bytes:
    return bytes((frame[0] | 128,)) + frame[1:]


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda f, _: [f[1], f[0], *f[2:]], id="swapped"),
        pytest.param(lambda f, _: _without(f, 0), id="first removed"),
        pytest.param(lambda f, _: _without(f, 1), id="middle removed"),
        pytest.param(lambda f, _: f[:-1], id="last removed"),
        pytest.param(lambda f, _: [*f[:-2], _marked_last(f[-2])], id="last one feigned"),
        pytest.param(lambda f, _: [f[0], f[0], *f[1:]], id="one doubled"),
        pytest.param(lambda f, other: [other[0], *f[1:]], id="one of another object"),
        pytest.param(lambda _, other: other, id="all of another object"),
    ],
)
def test_frames_that_are_moved_are_refused_though_the_hash_fits(
    forge: Callable[[list[bytes], list[bytes]], list[bytes]],
) -> None:
    """A frame is bound to its object, its place and its being the last."""
    header, frames = _frames(_sealed(os.urandom(3 * FRAME_BYTES + 5), "none").data)
    _, other = _frames(_sealed(os.urandom(3 * FRAME_BYTES + 5), "none").data)
    assert len(frames) == 4
    honest = header + b"".join(frames)
    _open(honest + hashlib.sha256(honest).digest())
    forged = header + b"".join(forge(frames, other))
    with pytest.raises(BackupDamagedError):
        _open(forged + hashlib.sha256(forged).digest())


def test_another_object_of_the_same_key_is_refused() -> None:
    """Its name is its hash."""
    mine, other = _sealed(SMALL), _sealed(SMALL)
    with pytest.raises(BackupDamagedError, match="its SHA-256 is"):
        _open(other.data, mine.name)


def test_an_object_of_another_kind_is_refused() -> None:
    """Records are not read as an index."""
    sealed = _sealed(SMALL, kind=ObjectKind.RECORDS)
    with pytest.raises(BackupDamagedError, match="it holds RECORDS, must hold INDEX"):
        _open(sealed.data, sealed.name, ObjectKind.INDEX)


def test_a_kind_that_is_forged_is_refused() -> None:
    """The header is bound to the frames."""
    data = bytearray(_sealed(SMALL, kind=ObjectKind.RECORDS).data)
    data[9] = ObjectKind.INDEX
    with pytest.raises(BackupKeyError):
        _open(_rehash(bytes(data)), None, ObjectKind.INDEX)


def test_a_wrong_key_is_a_key_error_that_names_object_and_key() -> None:
    """Not "damaged": another key may be the right one."""
    wrong = DataKey(KEY.id, bytes(32))
    sealed = _sealed(SMALL)
    with pytest.raises(BackupKeyError, match=r"objects/aa/aabb.*0011.* not the one") as refused:
        _open(sealed.data, sealed.name, keys=lambda _: wrong)
    assert refused.value.name == "objects/aa/aabb"


def test_a_missing_key_is_a_key_error_that_names_the_object() -> None:
    """The reason is what the one says who should have it."""
    other = DataKey.new()
    sealed = _sealed(SMALL, key=other)
    with pytest.raises(BackupKeyError, match=f"objects/aa/aabb.*{other.id}.*is not here"):
        _open(sealed.data, sealed.name)


def test_a_damaged_object_asks_for_no_key() -> None:
    """What has to be asked over a network is asked for good reason only."""
    data = bytearray(_sealed(SMALL).data)
    data[-40] ^= 1
    with pytest.raises(BackupDamagedError):
        _open(bytes(data), keys=_no_keys)


def test_a_newer_format_is_told_as_such() -> None:
    """Whoever reads it learns what to do."""
    data = bytearray(_sealed(SMALL).data)
    data[8] = 2
    newer = _rehash(bytes(data))
    with pytest.raises(BackupFormatError, match="format 2, this release reads 1"):
        _open(newer, hashlib.sha256(newer).hexdigest())


@pytest.mark.parametrize("noise", [b"", b"x", b"LSBACKUP\1", b"noise" * 40, b"\0" * 300])
def test_what_is_no_object_is_refused(noise: bytes) -> None:
    """Also if somebody gave it a hash."""
    for data in (noise, noise + hashlib.sha256(noise).digest()):
        with pytest.raises(BackupDamagedError):
            _open(data)


# --- bombs ----------------------------------------------------------------------------------------


def _bomb(algorithm: Algorithm, size: int) -> bytes:
    zeros = bytes(size)
    if algorithm is Algorithm.ZSTD:
        return zstandard.ZstdCompressor().compress(zeros)
    return zlib.compress(zeros, 9, 31) if algorithm is Algorithm.GZIP else lz4.frame.compress(zeros)


@pytest.mark.parametrize("algorithm", [Algorithm.GZIP, Algorithm.ZSTD, Algorithm.LZ4])
def test_a_bomb_is_refused(algorithm: Algorithm) -> None:
    """What would become more than it says never becomes it; nor what becomes less."""
    bomb = _bomb(algorithm, 30_000_000)
    for size in (0, 1, 1000, 29_999_999, 30_000_001):
        with pytest.raises(ValueError, match=str(size)):
            decompress(algorithm, bomb, size)
    assert decompress(algorithm, bomb, 30_000_000) == bytes(30_000_000)


def test_a_zstd_frame_that_does_not_say_its_size_is_refused() -> None:
    """We always write it, so there is nothing to guess."""
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(SMALL)
    with pytest.raises(ValueError, match="its zstd frame says"):
        decompress(Algorithm.ZSTD, frame, len(SMALL))


def test_a_bomb_in_an_object_is_damage() -> None:
    """The size in the header holds, also if whoever wrote it had the key."""
    sealed = _sealed(b"x" * 100_000, "gzip", None)
    data = bytearray(sealed.data)
    data[12:16] = (10).to_bytes(4, "big")
    with pytest.raises(BackupDamagedError, match="10 bytes"):
        _open(_rehash(bytes(data)))
    data[12:16] = (MAX_PLAIN + 1).to_bytes(4, "big")
    with pytest.raises(BackupDamagedError, match="header"):
        _open(_rehash(bytes(data)))


@given(noise=st.binary(max_size=200), size=st.integers(0, 300), which=st.sampled_from(Algorithm))
def test_noise_is_never_decompressed(noise: bytes, size: int, which: Algorithm) -> None:
    """It is a ValueError, or (rarely) it is exactly as long as promised."""
    try:
        plain = decompress(which, noise, size)
    except ValueError:
        return
    assert len(plain) == size


# --- how it is said -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("none", "none"),
        ("gzip", "gzip:6"),
        ("gzip:9", "gzip:9"),
        ("zstd", "zstd:3"),
        ("zstd:19", "zstd:19"),
        ("lz4", "lz4"),
    ],
)
def test_compression_is_parsed_and_printed(text: str, printed: str) -> None:
    """What is printed can be parsed."""
    compression = Compression.parse(text)
    assert str(compression) == printed
    assert Compression.parse(printed) == compression
    assert decompress(compression.algorithm, compression.compress(SMALL), len(SMALL)) == SMALL


@pytest.mark.parametrize(
    "text", ["", "zip", "zstd:0", "zstd:20", "gzip:10", "lz4:1", "none:0", "zstd:", "ZSTD", None]
)
def test_unknown_compression_is_refused(text: str) -> None:
    """The message lists what there is."""
    with pytest.raises(InvalidArgumentError, match="must be none, gzip"):
        Compression.parse(text)


def test_a_data_key_never_shows_itself() -> None:
    """In no repr, no text, no attribute that is meant to be shown."""
    for shown in (repr(KEY), str(KEY), f"{[KEY]}"):
        assert KEY.id in shown
        assert KEY.secret.hex() not in shown
        assert str(KEY.secret) not in shown
    assert len(KEY.check) == 16
    assert DataKey(KEY.id, bytes(32)).check != KEY.check


@pytest.mark.parametrize(
    ("key_id", "size"), [("x" * 32, 32), ("../" + "0" * 29, 32), ("0" * 32, 31)]
)
def test_what_is_no_data_key_is_refused(key_id: str, size: int) -> None:
    """An id becomes part of a name; the key is not repeated in the message."""
    with pytest.raises(InvalidArgumentError):
        DataKey(key_id, bytes(size))
