"""Key-encryption keys from a folder and from the environment."""

from __future__ import annotations

import base64
import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.security.errors import KeyProviderError, KeyProviderUnavailableError
from llmspell_dist.security.keyring import EnvironmentKeys, FileKeys, KeyProvider, Wrapped

pytestmark = [pytest.mark.unit, pytest.mark.security]

SECRET = bytes(range(100, 132))
OTHER = bytes(range(32))
DATA_KEY = b"the key of a backup, 32 bytes...!"
CONTEXT = b"what it is for"
GOLDEN = (
    "01000102030405060708090a0bebc35d6cd628b8c9f275bea9b6f8e9d182624dbc0d30"
    "e205a56b9d6e20c26fce9197a9caf2f0e8ef04e4c794ca17bcd5b9"
)


def _folder(tmp_path: Path, **keys: bytes) -> FileKeys:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700, exist_ok=True)
    for version, content in keys.items():
        file = folder / f"{version}.key"
        file.write_bytes(content)
        file.chmod(0o600)
    return FileKeys(folder)


def _environment(**keys: bytes) -> EnvironmentKeys:
    text = ",".join(f"{version}:{base64.b64encode(key).decode()}" for version, key in keys.items())
    return EnvironmentKeys("KEYS", environ={"KEYS": text})


@pytest.fixture(params=["file", "environment"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., KeyProvider]:
    """Make a provider of each kind from versions, the newest last."""
    if request.param == "file":
        return lambda **keys: _folder(tmp_path, **keys)
    return lambda **keys: _environment(**dict(reversed(keys.items())))


Make = Callable[..., KeyProvider]


def test_what_was_wrapped_is_unwrapped(make: Make) -> None:
    """And looks different each time."""
    provider = make(v1=SECRET)
    assert isinstance(provider, KeyProvider)
    first, second = (provider.wrap(DATA_KEY, context=CONTEXT) for _ in range(2))
    assert first.version == "v1" == provider.current()
    assert first.blob != second.blob
    assert DATA_KEY not in first.blob
    assert provider.unwrap(first, context=CONTEXT) == DATA_KEY


def test_the_newest_version_wraps_and_older_ones_unwrap(make: Make) -> None:
    """So a rotation needs nothing but another version."""
    old = make(v1=SECRET).wrap(DATA_KEY, context=CONTEXT)
    both = make(v1=SECRET, v2=OTHER)
    assert both.current() == "v2"
    assert both.wrap(DATA_KEY, context=CONTEXT).version == "v2"
    assert both.unwrap(old, context=CONTEXT) == DATA_KEY


def test_a_missing_version_is_named(make: Make) -> None:
    """Provider and version, so that one knows what to look for."""
    wrapped = Wrapped("v7", make(v1=SECRET).wrap(DATA_KEY, context=CONTEXT).blob)
    with pytest.raises(KeyProviderError, match=r"v7.*is missing") as refused:
        make(v1=SECRET).unwrap(wrapped, context=CONTEXT)
    assert refused.value.version == "v7"
    assert refused.value.provider in {"file", "environment"}


def test_another_key_does_not_unwrap(make: Make) -> None:
    """It is an error, never another data key."""
    wrapped = make(v1=SECRET).wrap(DATA_KEY, context=CONTEXT)
    with pytest.raises(KeyProviderError, match="another key, or this is damaged"):
        make(v1=OTHER).unwrap(wrapped, context=CONTEXT)


def test_another_context_does_not_unwrap(make: Make) -> None:
    """A wrapped key that is moved to another place is of no use there."""
    provider = make(v1=SECRET)
    wrapped = provider.wrap(DATA_KEY, context=CONTEXT)
    with pytest.raises(KeyProviderError):
        provider.unwrap(wrapped, context=b"something else")


def test_every_flipped_byte_of_a_wrapped_key_is_refused(make: Make) -> None:
    """Each of format, nonce, key and tag, and the version."""
    provider = make(v1=SECRET, v2=SECRET)
    version, blob = provider.wrap(DATA_KEY, context=CONTEXT)
    for at in range(len(blob)):
        changed = blob[:at] + bytes((blob[at] ^ 1,)) + blob[at + 1 :]
        with pytest.raises(KeyProviderError):
            provider.unwrap(Wrapped(version, changed), context=CONTEXT)
        with pytest.raises(KeyProviderError):
            provider.unwrap(Wrapped(version, blob[:at]), context=CONTEXT)
    with pytest.raises(KeyProviderError):
        provider.unwrap(Wrapped("v1", blob), context=CONTEXT)


def test_yesterdays_wrapped_key_is_read(make: Make) -> None:
    """Bytes of format 1."""
    provider = make(v1=SECRET)
    golden = Wrapped("v1", bytes.fromhex(GOLDEN))
    assert provider.unwrap(golden, context=CONTEXT) == DATA_KEY


def test_no_secret_is_ever_shown(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by providers nor by their errors."""
    shown = [repr(make(v1=SECRET)), str(make(v1=SECRET))]
    with pytest.raises(KeyProviderError) as refused:
        make(v1=OTHER).unwrap(make(v1=SECRET).wrap(DATA_KEY, context=b""), context=CONTEXT)
    shown += [str(refused.value), repr(refused.value.facts)]
    for key in (SECRET, OTHER, DATA_KEY):
        for form in (repr(key), key.hex(), base64.b64encode(key).decode()):
            assert not any(form in text for text in shown)


def test_errors_pickle() -> None:
    """As all of the tree do."""
    error = KeyProviderError("file", "v1", "is missing")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 - our own


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        SECRET,
        SECRET.hex().encode(),
        SECRET.hex().upper().encode() + b"\n",
        base64.b64encode(SECRET) + b"\n",
        base64.b64encode(SECRET).rstrip(b"="),
        base64.urlsafe_b64encode(SECRET),
    ],
    ids=["bytes", "hex", "upper hex", "base64", "unpadded", "urlsafe"],
)
def test_a_key_is_read_however_it_was_written(tmp_path: Path, content: bytes) -> None:
    """Raw, hex or base64, with or without a line feed."""
    wrapped = _folder(tmp_path, v1=SECRET).wrap(DATA_KEY, context=CONTEXT)
    assert _folder(tmp_path, v1=content).unwrap(wrapped, context=CONTEXT) == DATA_KEY


@pytest.mark.parametrize(
    "content", [b"", b"x", bytes(31), bytes(33), b"f" * 32, b"0" * 63, base64.b64encode(bytes(31))]
)
def test_what_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    """Thirty-two printable characters are half a key in hex, not a key."""
    with pytest.raises(KeyProviderError, match="must hold 32 bytes"):
        _folder(tmp_path, v1=content).wrap(DATA_KEY, context=CONTEXT)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666])
def test_a_file_that_others_can_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    """The message says how to make it private."""
    provider = _folder(tmp_path, v1=SECRET)
    (tmp_path / "keys" / "v1.key").chmod(mode)
    with pytest.raises(KeyProviderError, match="chmod 600"):
        provider.wrap(DATA_KEY, context=CONTEXT)


def test_generated_keys_are_private_and_usable(tmp_path: Path) -> None:
    """Each is the newest from then on; what older ones wrapped stays readable."""
    provider = FileKeys(tmp_path / "new" / "keys")
    assert provider.generate() == "v1"
    wrapped = provider.wrap(DATA_KEY, context=CONTEXT)
    assert [provider.generate() for _ in range(10)][-1] == "v11"
    assert provider.current() == "v11"
    assert provider.versions() == [f"v{number}" for number in range(1, 12)]
    assert provider.unwrap(wrapped, context=CONTEXT) == DATA_KEY
    folder = tmp_path / "new" / "keys"
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len({file.read_bytes() for file in folder.iterdir()}) == 11


def test_generate_never_overwrites(tmp_path: Path) -> None:
    """An overwritten key is a lost backup."""
    provider = _folder(tmp_path, v1=SECRET)
    with pytest.raises(KeyProviderError, match="'v1' is there already"):
        provider.generate("v1")
    assert [file.name for file in (tmp_path / "keys").iterdir()] == ["v1.key"]
    assert (tmp_path / "keys" / "v1.key").read_bytes() == SECRET


@given(st.text("abv.-0129", min_size=1, max_size=6).filter(lambda text: text[0] not in ".-"))
def test_a_generated_version_is_always_the_newest(version: str) -> None:
    """Whatever the versions before it are called."""
    from llmspell_dist.security import keyring

    following = keyring._next([version])
    assert keyring._counted(following) > keyring._counted(version)


def test_newest_can_be_pinned(tmp_path: Path) -> None:
    """So that a new key is everywhere before anybody uses it."""
    _folder(tmp_path, v1=SECRET, v2=OTHER)
    pinned = FileKeys(tmp_path / "keys", newest="v1")
    assert pinned.wrap(DATA_KEY, context=CONTEXT).version == "v1"


def test_a_file_is_a_provider_of_one_version(tmp_path: Path) -> None:
    """Named as the file is."""
    _folder(tmp_path, v1=SECRET, v2=OTHER)
    one = FileKeys(tmp_path / "keys" / "v1.key")
    wrapped = one.wrap(DATA_KEY, context=CONTEXT)
    assert wrapped.version == "v1" == one.current()
    assert FileKeys(tmp_path / "keys").unwrap(wrapped, context=CONTEXT) == DATA_KEY
    with pytest.raises(KeyProviderError, match="'v2' is missing"):
        one.unwrap(Wrapped("v2", b""), context=CONTEXT)


def test_no_key_at_all_is_told(tmp_path: Path) -> None:
    """An empty folder, or none."""
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(KeyProviderError, match="is missing"):
            FileKeys(path).wrap(DATA_KEY, context=CONTEXT)


@pytest.mark.parametrize("call", ["stat", "open", "iterdir"])
@pytest.mark.parametrize(
    ("number", "passes"),
    [(errno.EIO, True), (errno.EMFILE, True), (errno.ESTALE, True), (errno.EACCES, False),
     (errno.EROFS, False)],
)  # fmt: skip
def test_a_folder_that_cannot_be_read_just_now_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, passes: bool
) -> None:
    """What may pass is told from what is missing or denied."""
    provider = _folder(tmp_path, v1=SECRET)
    real = getattr(Path, call)

    def fails(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.is_relative_to(provider.path):
            raise OSError(number, os.strerror(number))
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, call, fails)
    with pytest.raises(KeyProviderError, match="cannot be had") as refused:
        provider.wrap(DATA_KEY, context=CONTEXT)
    assert isinstance(refused.value, KeyProviderUnavailableError) is passes
    assert refused.value.retryable is passes


@pytest.mark.parametrize("version", ["", "../v1", "a/b", ".v1", "v" * 65, "v 1"])
def test_a_version_is_no_path(tmp_path: Path, version: str) -> None:
    """It stands in objects that others may have written."""
    provider = _folder(tmp_path, v1=SECRET)
    with pytest.raises(InvalidArgumentError, match="key version"):
        provider.generate(version)
    with pytest.raises(KeyProviderError, match="is missing"):
        provider.unwrap(Wrapped(version, b""), context=CONTEXT)


# --- the environment ------------------------------------------------------------------------------


def test_a_key_alone_is_version_one() -> None:
    """The least that one has to write."""
    alone = EnvironmentKeys("KEY", environ={"KEY": base64.b64encode(SECRET).decode()})
    wrapped = alone.wrap(DATA_KEY, context=CONTEXT)
    assert wrapped.version == "v1"
    assert _environment(v2=OTHER, v1=SECRET).unwrap(wrapped, context=CONTEXT) == DATA_KEY


def test_the_first_of_the_variable_is_the_newest() -> None:
    """As it is written, whatever the versions are called."""
    assert _environment(a=SECRET, b=OTHER).current() == "a"
    assert _environment(a=SECRET, b=OTHER).versions() == ["b", "a"]


@pytest.mark.parametrize("text", ["", " ", "v1:", "v1:xyz", "v1:AAAA,v1:AAAA", ",", "a b:AAAA"])
def test_a_variable_that_is_no_key_is_refused(text: str) -> None:
    """It is named, its contents are not."""
    provider = EnvironmentKeys("MY_KEYS", environ={"MY_KEYS": text})
    with pytest.raises(KeyProviderError, match="MY_KEYS") as refused:
        provider.current()
    assert "AAAA" not in str(refused.value)


def test_a_key_where_a_version_should_stand_is_not_repeated() -> None:
    """The two are easily swapped."""
    for text in (base64.b64encode(SECRET).decode(), SECRET.hex()):
        with pytest.raises(KeyProviderError) as refused:
            EnvironmentKeys("MY_KEYS", environ={"MY_KEYS": f"{text}:v1"}).current()
        assert text not in f"{refused.value} {refused.value.facts}"


def test_an_unset_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process's environment is what is read by default."""
    monkeypatch.delenv("MY_KEYS", raising=False)
    provider = EnvironmentKeys("MY_KEYS")
    with pytest.raises(KeyProviderError, match="MY_KEYS is not set"):
        provider.current()
    monkeypatch.setenv("MY_KEYS", SECRET.hex())
    assert provider.current() == "v1"
