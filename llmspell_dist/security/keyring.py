"""Key-encryption keys: what wraps data keys, from a folder, the environment or a service.

A provider holds several versions of its key at once. New data keys are wrapped by the newest;
those that older versions wrapped stay readable until they are wrapped anew. All methods block.
"""

from __future__ import annotations

import base64
import binascii
import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple, Protocol, runtime_checkable

from llmspell_dist.errors import InvalidArgumentError, needs_package
from llmspell_dist.security.errors import KeyProviderError, KeyProviderUnavailableError

__all__ = ["EnvironmentKeys", "FileKeys", "KeyProvider", "Wrapped"]

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_WRAP_FORMAT: Final = b"\1"
_DOMAIN: Final = b"llmspell-dist wrapped key 1\0"
_VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_VERSION_RULE: Final = "must be 1 to 64 of A-Z a-z 0-9 . _ - and begin with a letter or digit"
_SUFFIX: Final = ".key"
_FINAL: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS}
)
"""Missing or denied. Any other error, such as that too many files are open, will pass."""


class Wrapped(NamedTuple):
    """A data key as a provider wrapped it; safe to store anywhere."""

    version: str
    """Which version of the provider's key did it."""
    blob: bytes


@runtime_checkable
class KeyProvider(Protocol):
    """Wraps and unwraps data keys with a key that never leaves it.

    All methods block, and may be called from several threads at once. What fails is a
    `KeyProviderError` that names provider and version, never the key; what may go well when it is
    tried again, a `KeyProviderUnavailableError`: nobody concludes from it that the key is missing.
    """

    @property
    def name(self) -> str:
        """What kind of provider it is (``file``, ``aws-kms``, ...); stored beside the keys."""
        ...

    def current(self) -> str:
        """Return the version that `wrap` uses from now on."""
        ...

    def wrap(self, plaintext_key: bytes, *, context: bytes) -> Wrapped:
        """Wrap a data key; `context` (no secret) must be given again to unwrap it."""
        ...

    def unwrap(self, wrapped: Wrapped, *, context: bytes) -> bytes:
        """Return the data key; raise if the version is missing, or key or context are not those."""
        ...


class _LocalKeys:
    """A provider whose keys this process knows: wraps with AES-256-GCM, the context bound to it."""

    name = ""

    def current(self) -> str:
        """Return the version that `wrap` uses from now on."""
        raise NotImplementedError

    def _secret(self, version: str) -> bytes:
        raise NotImplementedError

    def wrap(self, plaintext_key: bytes, *, context: bytes) -> Wrapped:
        """Wrap a data key with the newest version; see `KeyProvider`."""
        version = self.current()
        secret = self._secret(version)
        return Wrapped(version, _wrap(secret, plaintext_key, _bind(version, context)))

    def unwrap(self, wrapped: Wrapped, *, context: bytes) -> bytes:
        """Return the data key; see `KeyProvider`."""
        secret = self._secret(wrapped.version)
        try:
            return _unwrap(secret, wrapped.blob, _bind(wrapped.version, context))
        except ValueError as error:
            raise KeyProviderError(self.name, wrapped.version, str(error)) from None


class FileKeys(_LocalKeys):
    """Keys in a folder, one file a version: ``<version>.key``, the highest version is the newest.

    A file holds 32 bytes, as they are, in base64 or in hex. Versions are compared as people count
    (``v10`` is above ``v9``); `newest` names another one to wrap with. A path to a file is a
    provider of that one version. Files are read when they are needed, so a new version is used as
    soon as it is there. A file that its group or others can read or write is refused.
    """

    name = "file"

    def __init__(self, path: str | os.PathLike[str], *, newest: str | None = None) -> None:
        self.path = Path(path)
        if newest is not None:
            _check_version(newest)
        self._newest = newest

    def __repr__(self) -> str:
        return f"FileKeys({str(self.path)!r})"

    def versions(self) -> list[str]:
        """Return the versions that are there, oldest first."""
        try:
            mode = self._mode()
            if not stat.S_ISDIR(mode):
                return [self.path.stem] if mode else []
            found = [file.stem for file in self.path.iterdir() if file.suffix == _SUFFIX]
        except OSError as error:
            raise self._unreadable("", error) from None
        return sorted((each for each in found if _VERSION.fullmatch(each)), key=_counted)

    def current(self) -> str:
        """Return the version that `wrap` uses from now on."""
        if self._newest is not None:
            return self._newest
        versions = self.versions()
        if not versions:
            reason = f"is missing: {self.path} has no file named <version>{_SUFFIX}"
            raise KeyProviderError(self.name, "", reason)
        return versions[-1]

    def generate(self, version: str | None = None) -> str:
        """Make a new random key and return its version: ``v1``, or one above the highest.

        The folder is made if it is missing (for its owner only). A version that is there already
        is never overwritten (`KeyProviderError`). The key is on disk when this returns.
        """
        if version is None:
            version = _next(self.versions())
        _check_version(version)
        secret = secrets.token_bytes(KEY_BYTES)
        _aead(secret)  # where the package is missing that is said now, not by the first backup
        text = base64.b64encode(secret) + b"\n"
        new = self.path / f".{version}.{secrets.token_hex(4)}.new"
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with open(handle, "wb") as file:  # noqa: PTH123 - of a descriptor
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                (self.path / f"{version}{_SUFFIX}").hardlink_to(new)
            finally:
                new.unlink(missing_ok=True)
            _sync_folder(self.path)
        except FileExistsError:
            raise KeyProviderError(self.name, version, "is there already") from None
        except OSError as error:
            raise self._unreadable(version, error) from None
        return version

    def _secret(self, version: str) -> bytes:
        if not _VERSION.fullmatch(version):  # it comes from an object that others may write
            raise KeyProviderError(self.name, version, f"is missing: it {_VERSION_RULE}")
        file = self.path
        try:
            if stat.S_ISDIR(self._mode()):
                file = self.path / f"{version}{_SUFFIX}"
            elif version != self.path.stem:
                reason = f"is missing: {self.path} is another one"
                raise KeyProviderError(self.name, version, reason)
            with file.open("rb") as opened:
                mode = os.fstat(opened.fileno()).st_mode
                raw = opened.read(1024)
        except FileNotFoundError:
            raise KeyProviderError(self.name, version, f"is missing: no file {file}") from None
        except OSError as error:
            raise self._unreadable(version, error) from None
        if os.name == "posix" and mode & 0o077:
            reason = f"is refused: others may read or change {file} (chmod 600 makes it private)"
            raise KeyProviderError(self.name, version, reason)
        try:
            return _read_key(raw)
        except ValueError as error:
            raise KeyProviderError(self.name, version, f"is unusable: {file} {error}") from None

    def _mode(self) -> int:
        """Return the mode of the path; 0 if nothing is there."""
        try:
            return self.path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def _unreadable(self, version: str, error: OSError) -> KeyProviderError:
        kind = KeyProviderError if error.errno in _FINAL else KeyProviderUnavailableError
        return kind(self.name, version, f"cannot be had: {error}")


class EnvironmentKeys(_LocalKeys):
    """Keys in an environment variable: ``v2:BASE64,v1:BASE64``, the first is the newest.

    A key alone, without a version, is version ``v1``. A key is 32 bytes in base64 or in hex. The
    variable is read when it is needed.
    """

    name = "environment"

    def __init__(self, variable: str, *, environ: Mapping[str, str] | None = None) -> None:
        if not isinstance(variable, str) or not variable:
            raise InvalidArgumentError("variable", variable, "must be the name of a variable")
        self.variable = variable
        self._environ = os.environ if environ is None else environ

    def __repr__(self) -> str:
        return f"EnvironmentKeys({self.variable!r})"

    def versions(self) -> list[str]:
        """Return the versions that are there, oldest first."""
        return list(self._keys())[::-1]

    def current(self) -> str:
        """Return the version that `wrap` uses from now on."""
        return next(iter(self._keys()))

    def _secret(self, version: str) -> bytes:
        secret = self._keys().get(version)
        if secret is None:
            raise KeyProviderError(self.name, version, f"is missing in {self.variable}")
        return secret

    def _keys(self) -> dict[str, bytes]:
        text = self._environ.get(self.variable, "").strip()
        if not text:
            raise KeyProviderError(self.name, "", f"is missing: {self.variable} is not set")
        found: dict[str, bytes] = {}
        for part in text.split(","):
            version, colon, key = part.strip().rpartition(":")
            version = version if colon else "v1"
            # What stands before the colon may be the key, put there by mistake: it is not repeated.
            if not _VERSION.fullmatch(version) or version in found:
                reason = f"is unusable: {self.variable} must look like v2:BASE64,v1:BASE64"
                raise KeyProviderError(self.name, "", reason)
            try:
                found[version] = _read_key(key.encode())
            except ValueError as error:
                reason = f"is unusable: {self.variable} {error}"
                raise KeyProviderError(self.name, "", reason) from None
        return found


def _wrap(secret: bytes, plaintext_key: bytes, bound: bytes) -> bytes:
    """Return format, random nonce, ciphertext and tag (AES-256-GCM, `bound` authenticated)."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    sealed: bytes = _aead(secret).encrypt(nonce, plaintext_key, _DOMAIN + bound)
    return _WRAP_FORMAT + nonce + sealed


def _unwrap(secret: bytes, blob: bytes, bound: bytes) -> bytes:
    """Return what `_wrap` was given; ``ValueError`` if anything is not the same."""
    aead = _aead(secret)
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - loaded by now

    if blob[:1] != _WRAP_FORMAT:
        raise ValueError("cannot unwrap this: it is of a format that this release does not read")
    try:
        plain: bytes = aead.decrypt(
            blob[1 : 1 + _NONCE_BYTES], blob[1 + _NONCE_BYTES :], _DOMAIN + bound
        )
    except (InvalidTag, ValueError):
        raise ValueError("does not unwrap this: it is another key, or this is damaged") from None
    return plain


def _aead(secret: bytes) -> _Aead:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - optional
    except ImportError:
        rule = needs_package("cryptography", "backup")
        raise InvalidArgumentError("encryption", "aes-256-gcm", rule) from None
    return AESGCM(secret)


class _Aead(Protocol):
    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes) -> bytes: ...

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes) -> bytes: ...


def _bind(version: str, context: bytes) -> bytes:
    return version.encode() + b"\0" + context


def _read_key(raw: bytes) -> bytes:
    """Read 32 bytes, as they are, in hex or in base64; the ``ValueError`` never repeats them."""
    if len(raw) == KEY_BYTES and not (raw.isascii() and raw.decode().isprintable()):
        return raw  # text of this length is a shorter key, encoded
    text = raw.strip()
    decoders: tuple[Callable[[bytes], bytes], ...] = (binascii.unhexlify, _from_base64)
    for decode in decoders:
        try:
            key = decode(text)
        except ValueError:
            continue
        if len(key) == KEY_BYTES:
            return key
    raise ValueError(f"must hold {KEY_BYTES} bytes, in base64 or hex")


def _from_base64(text: bytes) -> bytes:
    padded = text + b"=" * (-len(text) % 4)
    return base64.b64decode(padded.translate(bytes.maketrans(b"-_", b"+/")), validate=True)


def _check_version(version: str) -> None:
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise InvalidArgumentError("key version", version, _VERSION_RULE)


def _counted(version: str) -> tuple[tuple[str, int], ...]:
    parts = re.findall(r"([^0-9]*)([0-9]*)", version)
    return tuple((text, int(digits or 0)) for text, digits in parts)


def _next(versions: list[str]) -> str:
    if not versions:
        return "v1"
    stem = versions[-1].rstrip("0123456789")
    return f"{stem}{int(versions[-1][len(stem) :] or 1) + 1}"


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
