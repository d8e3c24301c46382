"""The data keys of a target: made, wrapped, stored beside the backups, found again, wrapped anew.

``keys/<key id>/<wrapping>.json`` holds a data key as one version of a key-encryption key wraps it;
``docs/design/backup-format.md`` has the fields. Data is never touched when the key-encryption key
changes.
"""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Iterable, Iterator, Sequence
from threading import Lock
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from llmspell_dist.backup import fields
from llmspell_dist.backup.encryption import KEY_BYTES, DataKey
from llmspell_dist.backup.errors import (
    BackupDamagedError,
    BackupFormatError,
    BackupKeyError,
    BackupKeyUnavailableError,
    ObjectMissingError,
)
from llmspell_dist.backup.kms import KmsKeys
from llmspell_dist.backup.names import Layout, encode_name
from llmspell_dist.backup.targets.base import Target
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.security.errors import KeyProviderError, KeyProviderUnavailableError
from llmspell_dist.security.keyring import EnvironmentKeys, FileKeys, KeyProvider, Wrapped

__all__ = ["FORMAT", "KeyStore", "Wrapping", "keys_from_url", "provider_of", "read_wrapping"]

FORMAT: Final = 1
_CONTEXT: Final = b"llmspell-dist/backup/"
_TRIES: Final = 3
_CHECK: Final = fields.matching(r"[0-9a-f]{32}")


class Wrapping(NamedTuple):
    """One stored object: a data key as one version of a provider's key wraps it."""

    name: str
    """Of the object."""
    key_id: str
    provider: str
    wrapped: Wrapped
    check: bytes

    def name_in(self, layout: Layout) -> str:
        """Return the name that it must have."""
        return _name_in(layout, self.key_id, self.provider, self.wrapped.version)


class KeyStore:
    """Makes, finds and wraps anew the data keys of one namespace's backups.

    `provider` wraps new data keys, and it and `older` (say, the one that was used before a move to
    KMS) unwrap. Without a provider nothing is encrypted (`new` returns None), and whatever needs a
    key is a `BackupKeyError` that names the provider and the version that wrapped it. While a
    provider cannot be asked that is a `BackupKeyUnavailableError`: nobody knows what it has. All
    methods block, and may be called from several threads at once.
    """

    def __init__(
        self,
        target: Target,
        layout: Layout,
        provider: KeyProvider | None,
        *,
        older: Iterable[KeyProvider] = (),
    ) -> None:
        self._target = target
        self._layout = layout
        self._provider = provider
        self._providers = [*([] if provider is None else [provider]), *older]
        self._known: dict[str, DataKey] = {}
        self._lock = Lock()

    @property
    def provider(self) -> str:
        """Name of the provider that wraps new data keys; empty if nothing is encrypted."""
        return "" if self._provider is None else self._provider.name

    def new(self) -> DataKey | None:
        """Return a new data key, already stored; None without a provider.

        It reads nothing, so write-only credentials are enough.
        """
        if self._provider is None:
            return None
        key = DataKey.new()
        self._put(key, self._provider)
        with self._lock:
            self._known[key.id] = key
        return key

    def get(self, key_id: str) -> DataKey:
        """Return the data key with this id: from memory, or unwrapped and then remembered."""
        with self._lock:
            known = self._known.get(key_id)
        if known is None:
            known = self._find(key_id)
            with self._lock:
                self._known[key_id] = known
        return known

    def wrappings(self) -> Iterator[Wrapping]:
        """Yield every stored wrapping, by key id."""
        for info in self._target.list(self._layout.keys):
            yield read_wrapping(info.name, self._target.get(info.name))

    def rewrap(self) -> list[str]:
        """Wrap every data key by the newest version of the provider's key; return their ids.

        Those that are wrapped so already are left alone. The new wrapping is stored and read back
        before the old ones are removed, so a data key is readable at every moment, also if this is
        killed or runs twice at once. Data is not touched.
        """
        if self._provider is None:
            raise BackupKeyError("", "cannot be wrapped anew: no key provider is given")
        provider = self._provider
        try:
            newest = provider.name, provider.current()
        except KeyProviderUnavailableError as error:
            raise _unavailable("", "wrap", error) from error
        except KeyProviderError as error:
            raise BackupKeyError("", str(error)) from error
        by_key: dict[str, list[Wrapping]] = {}
        for each in self.wrappings():
            by_key.setdefault(each.key_id, []).append(each)
        done = []
        for key_id, found in by_key.items():
            wanted = [each for each in found if (each.provider, each.wrapped.version) == newest]
            if len(wanted) == len(found) == 1:
                continue
            key = self._unwrap_any(key_id, wanted or found)
            stays = wanted[0].name if wanted else self._put(key, provider)
            if not wanted:
                self._unwrap_any(key_id, [read_wrapping(stays, self._target.get(stays))])
            self._target.delete([each.name for each in found if each.name != stays])
            if self._target.head(stays) is None:  # another process, which wraps by another version
                self._put(key, provider)
            done.append(key_id)
        return done

    def _put(self, key: DataKey, provider: KeyProvider) -> str:
        context = _CONTEXT + key.id.encode()
        try:
            wrapped = provider.wrap(key.secret, context=context)
        except KeyProviderUnavailableError as error:
            raise _unavailable(key.id, "wrap", error) from error
        except KeyProviderError as error:
            raise BackupKeyError(key.id, f"cannot be wrapped: {error}") from error
        name = _name_in(self._layout, key.id, provider.name, wrapped.version)
        facts = {
            "format": FORMAT,
            "key": key.id,
            "provider": provider.name,
            "version": wrapped.version,
            "wrapped": base64.b64encode(wrapped.blob).decode(),
            "check": key.check.hex(),
        }
        self._target.put(name, json.dumps(facts, indent=1).encode() + b"\n", only_new=True)
        return name

    def _find(self, key_id: str) -> DataKey:
        for _ in range(_TRIES):
            found: list[Wrapping] = []
            damaged: BackupDamagedError | BackupFormatError | None = None
            try:
                for info in self._target.list(f"{self._layout.keys}{key_id}/"):
                    try:
                        found.append(read_wrapping(info.name, self._target.get(info.name)))
                    except (BackupDamagedError, BackupFormatError) as error:
                        damaged = error  # another wrapping may do
            except ObjectMissingError:
                continue  # wrapped anew in between: the new wrapping was stored before
            if damaged is not None and not found:
                raise damaged
            return self._unwrap_any(key_id, found)
        raise BackupKeyError(key_id, "its wrappings change all the time")

    def _unwrap_any(self, key_id: str, found: Sequence[Wrapping]) -> DataKey:
        if not found:
            raise BackupKeyError(key_id, f"is not in {self._target.label}")
        reasons = []
        away: KeyProviderUnavailableError | None = None
        for each in found:
            matching = [one for one in self._providers if one.name == each.provider]
            if not matching:
                which = f"provider {each.provider}, version {each.wrapped.version}"
                reasons.append(f"is wrapped by {which}, which was not given")
            for provider in matching:
                try:
                    return _unwrap(each, provider)
                except KeyProviderUnavailableError as error:
                    away = error
                except KeyProviderError as error:
                    reasons.append(f"cannot be unwrapped: {error}")
        if away is not None:  # whatever the others said
            raise _unavailable(key_id, "unwrap", away) from away
        raise BackupKeyError(key_id, "; ".join(reasons))


def _unavailable(
    key_id: str, doing: str, error: KeyProviderUnavailableError
) -> BackupKeyUnavailableError:
    return BackupKeyUnavailableError(error.provider, key_id, doing, error.reason)


def _name_in(layout: Layout, key_id: str, provider: str, version: str) -> str:
    return layout.key(key_id, f"{encode_name(provider)}.{encode_name(version)}")


def provider_of(keys: KeyProvider | str) -> KeyProvider:
    """Return a provider that is given as itself or by its URL."""
    return keys_from_url(keys) if isinstance(keys, str) else keys


def keys_from_url(url: str) -> KeyProvider:
    """Return the provider that a URL names; nothing is read yet.

    ``file:///folder``, ``env:VARIABLE``, ``aws-kms:KEY?region=eu-central-1`` (`KEY`: an id, an ARN
    or ``alias/name``; ``endpoint=`` for what is not Amazon's).
    """
    rule = "must be file:///folder, env:VARIABLE or aws-kms:KEY?region=REGION"
    parts = urlsplit(url if isinstance(url, str) else "")
    options = dict(parse_qsl(parts.query))
    path = unquote(parts.path)
    allowed = {"region", "endpoint"} if parts.scheme == "aws-kms" else set()
    if (
        not path
        or parts.fragment
        or parts.netloc not in {"", "localhost"}
        or options.keys() - allowed
    ):
        raise InvalidArgumentError("keys", url, rule)
    if parts.scheme == "file":
        return FileKeys(path)
    if parts.scheme == "env":
        return EnvironmentKeys(path)
    if parts.scheme == "aws-kms":
        return KmsKeys(path, region=options.get("region"), endpoint=options.get("endpoint"))
    raise InvalidArgumentError("keys", url, rule)


def _unwrap(wrapping: Wrapping, provider: KeyProvider) -> DataKey:
    secret = provider.unwrap(wrapping.wrapped, context=_CONTEXT + wrapping.key_id.encode())
    if len(secret) == KEY_BYTES:
        key = DataKey(wrapping.key_id, secret)
        if hmac.compare_digest(key.check, wrapping.check):
            return key
    raise KeyProviderError(provider.name, wrapping.wrapped.version, "unwrapped another data key")


def read_wrapping(name: str, raw: bytes) -> Wrapping:
    """Return a stored wrapping; a damaged or newer one is an error that names it."""
    try:
        facts = fields.load(raw)
        version = facts["format"]
        if type(version) is int and version > FORMAT:
            raise BackupFormatError(name, version, FORMAT)
        key_id = name.split("/")[-2]
        if type(version) is not int or version != FORMAT or facts["key"] != key_id:
            raise ValueError(version)  # noqa: TRY301 - as what is below would
        blob = base64.b64decode(fields.text(facts["wrapped"]), validate=True)
        wrapped = Wrapped(fields.text(facts["version"]), blob)
        check = bytes.fromhex(_CHECK(facts["check"]))
        return Wrapping(name, key_id, fields.text(facts["provider"]), wrapped, check)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise BackupDamagedError(name, f"it holds no wrapped key: {type(error).__name__}") from None
