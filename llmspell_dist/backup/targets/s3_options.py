"""How an S3 bucket is reached and how objects are to lie in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final
from urllib.parse import urlsplit

from llmspell_dist.errors import InvalidArgumentError

__all__ = ["S3Options"]

_ENCRYPTIONS: Final = ("AES256", "aws:kms", "aws:kms:dsse")
_LOCK_MODES: Final = ("GOVERNANCE", "COMPLIANCE")
_WORD: Final = re.compile(r"[A-Z][A-Z0-9_]*", re.ASCII).fullmatch
_MIN_PART: Final = 5 << 20
_POSITIVE: Final = (
    "connect_timeout_s",
    "read_timeout_s",
    "connections",
    "tries",
    "patience_s",
    "first_wait_s",
)


@dataclass(frozen=True, kw_only=True)
class S3Options:
    """Everything about an S3 target but its bucket and prefix. Seconds are floats.

    Without `access_key` credentials come from the usual chain of AWS: environment, profile,
    container, instance. Raises InvalidArgumentError.
    """

    endpoint: str | None = None
    """``http(s)://host[:port]``; None is Amazon's."""
    region: str | None = None
    """None: the environment's or profile's, else us-east-1, which other servers do not mind."""
    path_style: bool | None = None
    """Whether the bucket stands in the path, else in the host; None: yes with an `endpoint`."""
    storage_class: str | None = None
    sse: str | None = None
    """Encryption by the server: ``AES256``, ``aws:kms`` or ``aws:kms:dsse``."""
    sse_key_id: str | None = None
    """The key that the server's KMS encrypts with; None: its default."""
    lock_mode: str | None = None
    """``GOVERNANCE`` or ``COMPLIANCE``: objects cannot be removed for `lock_days`."""
    lock_days: int | None = None
    profile: str | None = None
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    proxies: Mapping[str, str] | None = field(default=None, repr=False)
    """By scheme, such as ``{"https": "http://proxy:3128"}``."""
    ca_bundle: str | None = None
    """A file of certificates to trust."""
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 30.0
    connections: int = 8
    """So many are kept open; more threads than that wait for nothing, but connect anew."""
    tries: int = 8
    patience_s: float = 90.0
    """No new try begins so long after the first did."""
    first_wait_s: float = 0.2
    """What the pauses between tries begin with; they grow to 10 s."""
    part_size: int = 16 << 20
    """Bytes of a part; what is longer goes in several, each tried again by itself."""

    def __post_init__(self) -> None:
        if self.endpoint is not None:
            self._check_endpoint(self.endpoint)
        self._check_storage()
        self._check_credentials()
        for name in _POSITIVE:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
                raise InvalidArgumentError(name, value, "must be a positive number")
        if not isinstance(self.part_size, int) or self.part_size < _MIN_PART:
            raise InvalidArgumentError("part_size", self.part_size, "must be at least 5 MiB")

    def _check_endpoint(self, endpoint: str) -> None:
        try:
            parts = urlsplit(endpoint)
            usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except (ValueError, TypeError, AttributeError):
            usable = False
            parts = urlsplit("")
        if not usable or parts.query or parts.fragment or parts.path not in {"", "/"}:
            raise InvalidArgumentError("endpoint", "…", "must be http(s)://host[:port]")
        if parts.username is not None:
            rule = "must not hold credentials; give access_key and secret_key"
            raise InvalidArgumentError("endpoint", "…", rule)

    def _check_storage(self) -> None:
        if self.storage_class is not None and not _WORD(self.storage_class):
            rule = "must be the name of a class, such as STANDARD_IA"
            raise InvalidArgumentError("storage_class", self.storage_class, rule)
        if self.sse is not None and self.sse not in _ENCRYPTIONS:
            raise InvalidArgumentError("sse", self.sse, f"must be one of {_ENCRYPTIONS}")
        if self.sse_key_id is not None and self.sse in {None, "AES256"}:
            raise InvalidArgumentError("sse_key_id", "…", "needs sse=aws:kms")
        if self.lock_mode is not None and self.lock_mode not in _LOCK_MODES:
            raise InvalidArgumentError("lock_mode", self.lock_mode, f"must be one of {_LOCK_MODES}")
        if (self.lock_mode is None) != (self.lock_days is None):
            raise InvalidArgumentError("lock_days", self.lock_days, "goes with lock_mode")
        if self.lock_days is not None and not 1 <= self.lock_days <= 36500:
            raise InvalidArgumentError("lock_days", self.lock_days, "must be from 1 to 36500")

    def _check_credentials(self) -> None:
        if (self.access_key is None) != (self.secret_key is None):
            raise InvalidArgumentError("secret_key", "…", "goes with access_key")
        if self.session_token is not None and self.access_key is None:
            raise InvalidArgumentError("session_token", "…", "goes with access_key")
        if self.profile is not None and self.access_key is not None:
            raise InvalidArgumentError("profile", self.profile, "does not go with access_key")

    @classmethod
    def names(cls) -> frozenset[str]:
        """Return the names of all options."""
        return frozenset(option.name for option in fields(cls))

    def secrets(self) -> tuple[str, ...]:
        """Return what must stand in no message."""
        return tuple(text for text in (self.secret_key, self.session_token) if text)

    def for_objects(self) -> dict[str, Any]:
        """Return what each new object is put with, but for the end of its lock."""
        given = {
            "StorageClass": self.storage_class,
            "ServerSideEncryption": self.sse,
            "SSEKMSKeyId": self.sse_key_id,
            "ObjectLockMode": self.lock_mode,
        }
        return {name: value for name, value in given.items() if value is not None}
