"""Which target a URL means."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from llmspell_dist.backup.targets.base import Target
from llmspell_dist.backup.targets.naming import is_name
from llmspell_dist.errors import InvalidArgumentError, InvalidURLError, needs_package

if TYPE_CHECKING:
    from urllib.parse import SplitResult

__all__ = ["open_target"]

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]", re.ASCII).fullmatch
_IN_URL: Final[Mapping[str, type]] = {
    "endpoint": str,
    "region": str,
    "path_style": bool,
    "storage_class": str,
    "sse": str,
    "sse_key_id": str,
    "lock_mode": str,
    "lock_days": int,
    "profile": str,
    "ca_bundle": str,
    "connections": int,
    "tries": int,
    "patience_s": float,
    "connect_timeout_s": float,
    "read_timeout_s": float,
}
_SECRET: Final = re.compile(r"(?i)secret|password|token|access_?key|credential|signature")
_NO_CREDENTIALS: Final = (
    "must not hold credentials: they come from AWS's usual chain (environment, profile, role), "
    "or as the options access_key and secret_key"
)


def open_target(target: str | os.PathLike[str] | Target, **options: Any) -> Target:
    """Return the target that a URL, or a path, names.

    ``file:///folder`` or a path is a `FolderTarget`; ``s3://bucket/prefix?endpoint=…&region=…&``
    ``path_style=true&storage_class=…&sse=…&sse_key_id=…&profile=…&lock_mode=…&lock_days=…`` an
    `S3Target`. `options` are those of `S3Options` (credentials among them) or of `FolderTarget`,
    and go before the URL's. A target is returned as it is. Nothing is read or connected to yet.
    Raises InvalidURLError, which shows nothing but the scheme, and InvalidArgumentError.
    """
    if isinstance(target, os.PathLike):
        return _folder(os.fspath(target), options)
    if not isinstance(target, str):
        if options or not all(callable(getattr(target, do, None)) for do in ("put", "list")):
            rule = "must be a URL, a path, or a target (which takes no options)"
            raise InvalidURLError("target", target, rule)
        return target
    scheme, found, _ = target.partition("://")
    if not found:
        if re.match(r"[a-z0-9+]{2,}:", scheme):
            raise _bad(target, "must be s3://bucket/prefix, file:///folder or a path")
        return _folder(target, options)
    try:
        parts = urlsplit(target)
    except ValueError:
        raise _bad(target, "must be s3://bucket/prefix, file:///folder or a path") from None
    if "@" in parts.netloc:
        raise _bad(target, _NO_CREDENTIALS)
    if parts.fragment:
        raise _bad(target, "must not have a fragment; encode # as %23")
    if parts.scheme == "s3":
        return _s3(target, parts, options)
    if parts.scheme == "file":
        return _file(target, parts, options)
    raise _bad(target, "must begin with s3:// or file://, or be a path")


def _bad(url: str, rule: str) -> InvalidURLError:
    scheme, found, _ = url.partition("://")
    return InvalidURLError("target", f"{scheme[:20]}://…" if found else "…", rule)


def _folder(path: str | bytes, options: dict[str, Any]) -> Target:
    from llmspell_dist.backup.targets.folder import FolderTarget  # noqa: PLC0415

    if not isinstance(path, str) or not path or "\0" in path:
        raise InvalidURLError("target", "…", "must be a path of text, and not empty")
    unknown = sorted(options.keys() - {"stale_after"})
    if unknown:
        raise InvalidArgumentError(unknown[0], "…", "is no option of a folder")
    return FolderTarget(Path(path).expanduser(), **options)


def _file(url: str, parts: SplitResult, options: dict[str, Any]) -> Target:
    if parts.netloc not in {"", "localhost"}:
        raise _bad(url, "must have three slashes before the folder: file:///folder")
    if parts.query:
        raise _bad(url, "must not have a query")
    path = unquote(parts.path)
    if not path.strip("/"):
        raise _bad(url, "must name a folder")
    return _folder(path, options)


def _s3(url: str, parts: SplitResult, options: dict[str, Any]) -> Target:
    if not _BUCKET(parts.netloc):
        raise _bad(url, "must name a bucket (3 to 255 of A-Z a-z 0-9 . _ -)")
    prefix = unquote(parts.path).strip("/")
    if prefix and not is_name(prefix):
        raise _bad(url, "must have a prefix of A-Z a-z 0-9 . _ - = + between slashes")
    given = {**_query(url, parts.query), **options}
    try:
        from llmspell_dist.backup.targets.s3 import S3Target  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"boto3", "botocore"}:
            raise
        raise _bad(url, needs_package("boto3", "backup")) from None
    from llmspell_dist.backup.targets.s3_options import S3Options  # noqa: PLC0415

    unknown = sorted(given.keys() - S3Options.names())
    if unknown:
        raise InvalidArgumentError(unknown[0], "…", "is no option of an S3 target")
    return S3Target(parts.netloc, prefix, S3Options(**given))


def _query(url: str, query: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if _SECRET.search(name):
            raise _bad(url, _NO_CREDENTIALS)
        if name not in _IN_URL:
            raise _bad(url, f"must have no options but {', '.join(_IN_URL)}")
        if name in found:
            raise _bad(url, f"must have {name} once")
        found[name] = _convert(url, name, text)
    return found


def _convert(url: str, name: str, text: str) -> Any:
    kind = _IN_URL[name]
    if kind is bool:
        if text not in {"true", "false"}:
            raise _bad(url, f"must have true or false for {name}")
        return text == "true"
    try:
        value = kind(text)
    except ValueError:
        raise _bad(url, f"must have a number for {name}") from None
    if not text:
        raise _bad(url, f"must have a value for {name}")
    return value
