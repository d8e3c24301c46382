"""Data keys: stored wrapped, found again, wrapped anew without touching data."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fix_backup_store import AwayKeys

from llmspell_dist.backup.compression import Compression
from llmspell_dist.backup.container import ObjectKind, seal, unseal
from llmspell_dist.backup.encryption import DataKey
from llmspell_dist.backup.errors import (
    BackupDamagedError,
    BackupFormatError,
    BackupKeyError,
    BackupKeyUnavailableError,
)
from llmspell_dist.backup.keys import KeyStore, keys_from_url
from llmspell_dist.backup.kms import KmsKeys
from llmspell_dist.backup.names import Layout
from llmspell_dist.backup.targets.base import ObjectInfo
from llmspell_dist.backup.targets.folder import FolderTarget
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.security.errors import KeyProviderError
from llmspell_dist.security.keyring import EnvironmentKeys, FileKeys, KeyProvider, Wrapped

pytestmark = [pytest.mark.unit, pytest.mark.backup, pytest.mark.security]

LAYOUT = Layout("app")


@pytest.fixture
def target(tmp_path: Path) -> Iterator[FolderTarget]:
    """A folder as a target."""
    target = FolderTarget(tmp_path / "backups")
    yield target
    target.close()


@pytest.fixture
def provider(tmp_path: Path) -> FileKeys:
    """Keys in a folder, with one version."""
    keys = FileKeys(tmp_path / "keys")
    keys.generate()
    return keys


def _store(target: Any, provider: KeyProvider | None, *older: KeyProvider) -> KeyStore:
    return KeyStore(target, LAYOUT, provider, older=older)


def _new(store: KeyStore) -> DataKey:
    key = store.new()
    assert key is not None
    return key


def _names(target: FolderTarget) -> list[str]:
    return [info.name for info in target.list("")]


def _environment(name: str = "KEYS") -> EnvironmentKeys:
    return EnvironmentKeys(name, environ={name: base64.b64encode(bytes(32)).decode()})


class Watched:
    """A target that tells what is done, and does something in between."""

    def __init__(self, inner: FolderTarget) -> None:
        self.inner = inner
        self.done: list[str] = []
        self.label = inner.label

    def put(self, name: str, data: Any, *, only_new: bool = False) -> bool:
        self.done.append("put")
        return self.inner.put(name, data, only_new=only_new)

    def get(self, name: str) -> bytes:
        self.done.append("get")
        return self.inner.get(name)

    def head(self, name: str) -> ObjectInfo | None:
        return self.inner.head(name)

    def list(self, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:
        return self.inner.list(prefix, after=after)

    def delete(self, names: Sequence[str]) -> None:
        self.done.append("delete")
        self.inner.delete(names)


# --- made and found -------------------------------------------------------------------------------


def test_a_new_key_is_found_by_others(target: FolderTarget, provider: FileKeys) -> None:
    """By its id alone; what it encrypted can be read."""
    key = _new(_store(target, provider))
    sealed = seal(ObjectKind.RECORDS, b"state", compression=Compression.parse("zstd"), key=key)
    found = _store(target, provider).get(key.id)
    assert (found.id, found.secret) == (key.id, key.secret)
    opened = unseal(
        sealed.data,
        name=sealed.name,
        digest=sealed.name,
        kind=ObjectKind.RECORDS,
        keys=_store(target, provider).get,
    )
    assert opened == b"state"


def test_each_key_is_another_one(target: FolderTarget, provider: FileKeys) -> None:
    """Of a random id and random bytes."""
    store = _store(target, provider)
    keys = [_new(store) for _ in range(5)]
    assert len({key.id for key in keys}) == len({key.secret for key in keys}) == 5
    assert {each.key_id for each in store.wrappings()} == {key.id for key in keys}


def test_a_key_is_unwrapped_once(target: FolderTarget, provider: FileKeys) -> None:
    """Then it is remembered: a restore reads thousands of objects."""
    key = _new(_store(target, provider))
    watched = Watched(target)
    store = _store(watched, provider)
    assert store.get(key.id) is store.get(key.id)
    assert watched.done == ["get"]


def test_a_new_key_reads_nothing(target: FolderTarget, provider: FileKeys) -> None:
    """Credentials that may only write are enough."""
    watched = Watched(target)
    store = _store(watched, provider)
    key = _new(store)
    assert store.get(key.id) is key
    assert watched.done == ["put"]


def test_no_key_is_stored_unwrapped(target: FolderTarget, provider: FileKeys) -> None:
    """In no form that one could read."""
    key = _new(_store(target, provider))
    (name,) = _names(target)
    stored = target.get(name)
    assert name == f"app/keys/{key.id}/file.v1.json"
    for form in (key.secret, key.secret.hex().encode(), base64.b64encode(key.secret)):
        assert form not in stored
    assert key.secret.hex() not in repr(list(_store(target, provider).wrappings()))


def test_without_a_provider_nothing_is_encrypted(target: FolderTarget) -> None:
    """There is no key, and no object that pretends to be one."""
    store = _store(target, None)
    assert store.new() is None
    assert store.provider == ""
    assert _names(target) == []


# --- what is missing or wrong ---------------------------------------------------------------------


def test_without_a_provider_the_missing_one_is_named(
    target: FolderTarget, provider: FileKeys
) -> None:
    """Whoever restores learns which keys he needs."""
    key = _new(_store(target, provider))
    with pytest.raises(BackupKeyError, match="provider file, version v1, which was not given"):
        _store(target, None).get(key.id)


def test_a_provider_of_another_kind_is_not_enough(target: FolderTarget, provider: FileKeys) -> None:
    """It is named which one it was."""
    key = _new(_store(target, provider))
    with pytest.raises(BackupKeyError, match="provider file, version v1"):
        _store(target, _environment()).get(key.id)
    assert _store(target, _environment(), provider).get(key.id).secret == key.secret


def test_an_unknown_key_is_named(target: FolderTarget, provider: FileKeys) -> None:
    """With the place where it is not."""
    with pytest.raises(BackupKeyError, match="is not in") as refused:
        _store(target, provider).get("0" * 32)
    assert refused.value.key == "0" * 32


def test_a_missing_version_is_named(
    target: FolderTarget, provider: FileKeys, tmp_path: Path
) -> None:
    """Somebody removed it too early."""
    key = _new(_store(target, provider))
    (tmp_path / "keys" / "v1.key").rename(tmp_path / "kept")
    with pytest.raises(BackupKeyError, match="file: key version 'v1' is missing"):
        _store(target, provider).get(key.id)


def test_a_wrong_key_encryption_key_is_refused(target: FolderTarget, tmp_path: Path) -> None:
    """Of the same version, but another one."""
    first, second = FileKeys(tmp_path / "a"), FileKeys(tmp_path / "b")
    first.generate()
    second.generate()
    key = _new(_store(target, first))
    with pytest.raises(BackupKeyError, match="another key, or this is damaged"):
        _store(target, second).get(key.id)
    assert _store(target, second, first).get(key.id).secret == key.secret


def test_a_provider_that_is_away_is_not_one_without_the_key(
    target: FolderTarget, provider: FileKeys
) -> None:
    """Whatever is asked of it; nothing is stored or removed, and later all is well."""
    key, away = _new(_store(target, provider)), AwayKeys(provider)
    before, store = _names(target), _store(target, away, _environment())
    for ask in (store.new, store.rewrap, lambda: store.get(key.id)):
        with pytest.raises(BackupKeyUnavailableError, match=r"file: .* throttled") as refused:
            ask()
        assert refused.value.retryable
    assert _names(target) == before
    away.away = False
    assert store.get(key.id).secret == key.secret


def test_one_provider_that_unwraps_is_enough(target: FolderTarget, provider: FileKeys) -> None:
    """Another one of the same name may be away, or have another key."""
    key = _new(_store(target, provider))
    assert _store(target, AwayKeys(provider), provider).get(key.id).secret == key.secret


def test_a_failing_provider_stores_nothing(target: FolderTarget, tmp_path: Path) -> None:
    """No key at all: the backup does not begin."""
    with pytest.raises(BackupKeyError, match="cannot be wrapped"):
        _store(target, FileKeys(tmp_path / "none")).new()
    assert _names(target) == []


class _Careless:
    """A provider of somebody else's that does not notice a wrong key."""

    name = "careless"

    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    def current(self) -> str:
        return "1"

    def wrap(self, plaintext_key: bytes, *, context: bytes) -> Wrapped:
        assert context
        return Wrapped("1", plaintext_key[::-1])

    def unwrap(self, wrapped: Wrapped, *, context: bytes) -> bytes:
        assert context
        return self.answer or wrapped.blob[::-1]


@pytest.mark.parametrize("answer", [bytes(32), b"", b"short"])
def test_a_provider_that_unwraps_another_key_is_found_out(
    target: FolderTarget, answer: bytes
) -> None:
    """By the check that is stored beside the wrapped key; nothing is decrypted with it."""
    key = _new(_store(target, _Careless(b"")))
    store = _store(target, _Careless(answer))
    if not answer:
        assert store.get(key.id).secret == key.secret
        return
    with pytest.raises(BackupKeyError, match="unwrapped another data key"):
        store.get(key.id)


def test_every_flipped_byte_of_a_stored_key_is_refused(
    target: FolderTarget, provider: FileKeys
) -> None:
    """Each is an error that names the object or the key, or changes nothing at all."""
    key = _new(_store(target, provider))
    (name,) = _names(target)
    stored = target.get(name)
    unchanged = 0

    class Flipping(Watched):
        at = 0

        def get(self, name: str) -> bytes:
            stored = super().get(name)
            return stored[: self.at] + bytes((stored[self.at] ^ 1,)) + stored[self.at + 1 :]

    flipping = Flipping(target)
    for flipping.at in range(len(stored)):
        try:
            found = _store(flipping, provider).get(key.id)
        except (BackupKeyError, BackupDamagedError, BackupFormatError) as error:
            assert name in str(error) or key.id in str(error)  # noqa: PT017 - either will do
        else:
            unchanged += 1
            assert found.secret == key.secret
    assert unchanged < 5  # white space


def test_a_damaged_wrapping_beside_a_good_one_does_no_harm(
    target: FolderTarget, provider: FileKeys
) -> None:
    """One is enough."""
    key = _new(_store(target, provider))
    target.put(LAYOUT.key(key.id, "damaged"), b"{")
    assert _store(target, provider).get(key.id).secret == key.secret
    target.delete([LAYOUT.key(key.id, "file.v1")])
    with pytest.raises(BackupDamagedError, match="damaged"):
        _store(target, provider).get(key.id)


def test_a_newer_format_of_a_stored_key_is_told(target: FolderTarget, provider: FileKeys) -> None:
    """It is no damage."""
    key = _new(_store(target, provider))
    (name,) = _names(target)
    fields = json.loads(target.get(name))
    target.delete([name])
    target.put(name, json.dumps({**fields, "format": 2}).encode())
    with pytest.raises(BackupFormatError, match="format 2, this release reads 1"):
        _store(target, provider).get(key.id)


def test_a_key_that_was_moved_to_another_id_is_refused(
    target: FolderTarget, provider: FileKeys
) -> None:
    """Its id is bound to it."""
    key = _new(_store(target, provider))
    (name,) = _names(target)
    fields = json.loads(target.get(name))
    other = "f" * 32
    target.put(LAYOUT.key(other, "file.v1"), json.dumps({**fields, "key": other}).encode())
    with pytest.raises(BackupKeyError):
        _store(target, provider).get(other)
    target.put(LAYOUT.key("e" * 32, "file.v1"), json.dumps(fields).encode())
    with pytest.raises(BackupDamagedError):
        _store(target, provider).get("e" * 32)
    assert key.secret


# --- wrapped anew ---------------------------------------------------------------------------------


def test_rewrap_moves_every_key_to_the_newest_version(
    target: FolderTarget, provider: FileKeys, tmp_path: Path
) -> None:
    """Then the old version can be thrown away; a second time there is nothing to do."""
    store = _store(target, provider)
    keys = [_new(store) for _ in range(3)]
    provider.generate()
    keys.append(_new(store))
    assert sorted(store.rewrap()) == sorted(key.id for key in keys[:3])
    assert {each.wrapped.version for each in store.wrappings()} == {"v2"}
    assert len(_names(target)) == 4
    (tmp_path / "keys" / "v1.key").unlink()
    fresh = _store(target, provider)
    assert [fresh.get(key.id).secret for key in keys] == [key.secret for key in keys]
    assert fresh.rewrap() == []


def test_rewrap_moves_keys_to_another_provider(target: FolderTarget, provider: FileKeys) -> None:
    """From a folder to the environment, say."""
    key = _new(_store(target, provider))
    moved = _store(target, _environment(), provider)
    assert moved.rewrap() == [key.id]
    assert _store(target, _environment()).get(key.id).secret == key.secret
    with pytest.raises(BackupKeyError, match="provider environment, version v1"):
        _store(target, provider).get(key.id)


def test_rewrap_removes_last(target: FolderTarget, provider: FileKeys) -> None:
    """The new wrapping is there and has been read back before the old one goes."""
    _new(_store(target, provider))
    provider.generate()
    watched = Watched(target)
    _store(watched, provider).rewrap()
    assert watched.done == ["get", "put", "get", "delete"]


def test_rewrap_that_was_killed_is_completed(target: FolderTarget, provider: FileKeys) -> None:
    """Both wrappings were there: the old one goes."""
    key = _new(_store(target, provider))
    old = {name: target.get(name) for name in _names(target)}
    provider.generate()
    _store(target, provider).rewrap()
    for name, data in old.items():
        target.put(name, data)
    assert _store(target, provider).rewrap() == [key.id]
    assert _names(target) == [LAYOUT.key(key.id, "file.v2")]


def test_rewrap_keeps_a_wrapping_whatever_others_remove(
    target: FolderTarget, provider: FileKeys
) -> None:
    """Two at once that wrap by different versions must not remove each other's."""
    key = _new(_store(target, provider))
    provider.generate()

    class Racing(Watched):
        def delete(self, names: Sequence[str]) -> None:
            super().delete(names)
            self.inner.delete([LAYOUT.key(key.id, "file.v2")])  # as the other one does

    _store(Racing(target), provider).rewrap()
    assert _store(target, provider).get(key.id).secret == key.secret


def test_rewrap_that_cannot_unwrap_removes_nothing(
    target: FolderTarget, provider: FileKeys, tmp_path: Path
) -> None:
    """The key may come back."""
    _new(_store(target, provider))
    before = _names(target)
    provider.generate()
    (tmp_path / "keys" / "v1.key").unlink()
    with pytest.raises(BackupKeyError, match="'v1' is missing"):
        _store(target, provider).rewrap()
    assert _names(target) == before


def test_rewrap_without_a_provider_is_refused(target: FolderTarget) -> None:
    """There is nothing to wrap by."""
    with pytest.raises(BackupKeyError, match="no key provider"):
        _store(target, None).rewrap()


def test_get_goes_on_when_the_wrapping_is_replaced_meanwhile(
    target: FolderTarget, provider: FileKeys
) -> None:
    """Between the listing and the reading."""
    key = _new(_store(target, provider))
    provider.generate()

    class Rotating(Watched):
        def get(self, name: str) -> bytes:
            if not self.done:
                _store(self.inner, provider).rewrap()
            return super().get(name)

    watched = Rotating(target)
    assert _store(watched, provider).get(key.id).secret == key.secret
    assert watched.done == ["get", "get"]


# --- URLs -----------------------------------------------------------------------------------------


def test_a_url_names_a_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, a variable, a key of KMS."""
    folder = FileKeys(tmp_path / "my keys")
    folder.generate()
    wrapped = folder.wrap(b"data key", context=b"")
    found = keys_from_url((tmp_path / "my keys").as_uri())
    assert isinstance(found, FileKeys)
    assert found.unwrap(wrapped, context=b"") == b"data key"

    monkeypatch.setenv("MY_KEYS", base64.b64encode(bytes(32)).decode())
    found = keys_from_url("env:MY_KEYS")
    assert isinstance(found, EnvironmentKeys)
    assert found.current() == "v1"

    arn = "arn:aws:kms:eu-west-3:111122223333:key/mrk-1234"
    for key, region in ((arn, "eu-west-3"), ("alias/backups?region=eu-west-1", "eu-west-1")):
        found = keys_from_url(f"aws-kms:{key}")
        assert isinstance(found, KmsKeys)
        assert found.key_id == key.partition("?")[0]
        assert found._region == region


@pytest.mark.parametrize(
    "url",
    [
        "",
        "keys/",
        "file:",
        "file://host/folder",
        "file:///folder?region=x",
        "env:",
        "env:A?b=c",
        "aws-kms:",
        "aws-kms:key?zone=x",
        "vault:key",
        None,
    ],
)
def test_what_names_no_provider_is_refused(url: Any) -> None:
    """The message says what does."""
    with pytest.raises(InvalidArgumentError, match="file:///folder, env:VARIABLE or aws-kms"):
        keys_from_url(url)


def test_provider_errors_are_no_backup_errors(provider: FileKeys) -> None:
    """Values at rest will use the same providers."""
    with pytest.raises(KeyProviderError):
        provider.unwrap(Wrapped("v9", b""), context=b"")
