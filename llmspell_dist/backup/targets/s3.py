"""S3, and everything that speaks it, as a target."""

from __future__ import annotations

import functools
import io
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, Final, cast

from botocore.exceptions import IncompleteReadError

from llmspell_dist.backup.errors import TargetPermissionError
from llmspell_dist.backup.targets.base import ObjectInfo
from llmspell_dist.backup.targets.naming import check_name, check_prefix, is_name
from llmspell_dist.backup.targets.s3_calls import (
    Calls,
    Fault,
    FaultKind,
    is_transient_code,
    read_fault,
)
from llmspell_dist.backup.targets.s3_client import s3_client
from llmspell_dist.backup.targets.s3_options import S3Options
from llmspell_dist.backup.targets.s3_reader import ObjectReader
from llmspell_dist.backup.targets.s3_upload import (
    Upload,
    content_md5,
    parts_of,
    read_exactly,
    rest_of,
)
from llmspell_dist.backup.targets.unfinished import Unfinished

__all__ = ["S3Target"]

logger = logging.getLogger("llmspell_dist.backup")

_DELETE_BATCH: Final = 1000
_PAGE: Final = 1000
_BLOCK: Final = 1 << 20
_PROBED_UP_TO: Final = 1 << 20
"""Bytes of an object that is put twice to learn what the server knows."""
_MARK: Final = "llmspell-put"
"""Metadata by which a writer knows its own object again."""


class S3Target:
    """Keeps objects in a bucket, below a prefix.

    Every call is tried again on 5xx, throttling, timeouts and cut connections, up to `tries` and
    `patience_s` of the options; being refused, missing or full is final at once. What is longer
    than `part_size` goes in parts. `put` needs the right to put alone. Without the right to list,
    Amazon calls a missing object forbidden, and so does this.
    """

    def __init__(self, bucket: str, prefix: str = "", options: S3Options | None = None) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.options = options or S3Options()
        self._calls = Calls(
            self.label,
            tries=int(self.options.tries),
            patience_s=self.options.patience_s,
            first_wait_s=self.options.first_wait_s,
            secrets=self.options.secrets(),
        )
        self._client = s3_client(self.options, self._calls)
        self._conditional: bool | None = None
        """Whether the server honours If-None-Match; None: not known yet."""
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"S3Target({self.bucket!r}, {self.prefix!r}, {self.options!r})"

    @property
    def label(self) -> str:
        """Bucket and prefix as a URL, without options."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    # --- writing

    def put(self, name: str, data: bytes | BinaryIO, *, only_new: bool = False) -> bool:
        """Store an object; see `Target.put`.

        `only_new` is the server's ``If-None-Match``, where it knows that; where it does not, the
        object is looked for first, and of two who put at the same moment both may be told True. If
        an answer is lost and the object is there when it is put again, whose it is can only be told
        by who may read it: else that is `TargetPermissionError`.
        """
        check_name(name)
        part_size = self.options.part_size
        if isinstance(data, (bytes, bytearray, memoryview)):
            if len(data) <= part_size:
                return self._put_short(name, bytes(data), only_new=only_new)
            return self._put_long(name, data, b"", only_new=only_new)
        first = read_exactly(data, part_size)
        following = read_exactly(data, 1) if len(first) == part_size else b""
        if not following:
            return self._put_short(name, first, only_new=only_new)
        return self._put_long(name, data, first + following, only_new=only_new)

    def _put_short(self, name: str, data: bytes, *, only_new: bool) -> bool:
        digest = content_md5(data)
        about = self._about_new_objects()
        mark = secrets.token_hex(12)
        if only_new:
            if self._conditional is not True and self._is_there(name):
                return False
            about["Metadata"] = {_MARK: mark}

        def call(*, condition: bool) -> bool:
            extra = {"IfNoneMatch": "*"} if condition else {}
            self._client.put_object(
                **self._place(name), Body=data, ContentMD5=digest, **about, **extra
            )
            return True

        def expect(fault: Fault, tries: int) -> bool | None:
            if fault.kind is FaultKind.EXISTS:
                # Ours, if an earlier try has arrived whose answer was lost.
                return tries > 1 and self._has_mark(name, mark)
            if fault.kind is FaultKind.UNSUPPORTED:
                self._learn(conditional=False)
                return self._calls.run("put", name, lambda: call(condition=False))
            return None

        if not only_new or self._conditional is False:
            return self._calls.run("put", name, lambda: call(condition=False))
        done = self._calls.run("put", name, lambda: call(condition=True), expect=expect)
        if done and self._conditional is None and len(data) <= _PROBED_UP_TO:
            self._probe(lambda: call(condition=True))
        return done

    def _probe(self, again: Callable[[], bool]) -> None:
        """Learn whether the server honours the condition, by an object that surely is there."""
        try:
            again()
        except Exception as error:
            fault = read_fault(error)
            if fault is None:
                raise
            if fault.kind is FaultKind.EXISTS:
                self._learn(conditional=True)
            return
        self._learn(conditional=False)

    def _learn(self, *, conditional: bool) -> None:
        with self._lock:
            self._conditional = conditional
        if not conditional:
            logger.debug(
                "%s: the server ignores If-None-Match; whether an object is there is asked before",
                self.label,
            )

    def _is_there(self, name: str) -> bool:
        try:
            return self.head(name) is not None
        except TargetPermissionError:
            if self._conditional is False:
                raise
            return False  # who may only put leaves it to the server

    def _has_mark(self, name: str, mark: str) -> bool:
        def call() -> bool:
            answer = self._client.head_object(**self._place(name))
            return bool(answer.get("Metadata", {}).get(_MARK) == mark)

        return self._calls.run("head", name, call)

    def _put_long(self, name: str, data: bytes | BinaryIO, first: bytes, *, only_new: bool) -> bool:
        # Not every server that knows the condition of a put knows that of an upload.
        if only_new and self._is_there(name):
            return False
        rest = rest_of(data)
        total = None if rest is None else rest + len(first)
        with Upload(self._client, self._calls, self.bucket, self.prefix + name, name) as upload:
            about, mark = self._about_new_objects(), secrets.token_hex(12)
            upload.begin(**about, Metadata={_MARK: mark})
            for part in parts_of(data, first, self.options.part_size, total):
                upload.send(part)
            condition = only_new and self._conditional is not False
            done = upload.complete(only_new=condition, is_ours=lambda: self._has_mark(name, mark))
        if done and self.options.lock_mode is not None:
            upload.lock(self.options.lock_mode, about["ObjectLockRetainUntilDate"])
        return done

    def _about_new_objects(self) -> dict[str, Any]:
        about = self.options.for_objects()
        if self.options.lock_days is not None:
            until = datetime.now(UTC) + timedelta(days=self.options.lock_days)
            about["ObjectLockRetainUntilDate"] = until
        return about

    def delete(self, names: Sequence[str]) -> None:
        """Remove objects, a thousand a call; an error names the first that is still there."""
        checked = [check_name(name) for name in names]
        for start in range(0, len(checked), _DELETE_BATCH):
            self._delete_batch(checked[start : start + _DELETE_BATCH])

    def _delete_batch(self, names: list[str]) -> None:
        left = list(names)

        def call() -> list[dict[str, Any]]:
            answer = self._client.delete_objects(
                Bucket=self.bucket,
                Delete={"Objects": [{"Key": self.prefix + name} for name in left], "Quiet": True},
            )
            errors = [e for e in answer.get("Errors", ()) if e.get("Code") != "NoSuchKey"]
            if errors and all(is_transient_code(str(e.get("Code"))) for e in errors):
                left[:] = [str(e["Key"]).removeprefix(self.prefix) for e in errors]
                raise _SomeLeftError(reason=_per_key(errors, self.prefix))
            return errors

        errors = self._calls.run("delete", names[0] if len(names) == 1 else "", call)
        if errors:
            denied = any(error.get("Code") == "AccessDenied" for error in errors)
            fault = Fault(
                FaultKind.DENIED if denied else FaultKind.FINAL, _per_key(errors, self.prefix)
            )
            first = str(errors[0].get("Key", "")).removeprefix(self.prefix)
            raise self._calls.error(fault, "delete", first)

    # --- reading

    def get(self, name: str) -> bytes:
        """Return an object; `ObjectMissingError` if it is not there."""
        place = self._place(check_name(name))

        def call() -> bytes:
            answer = self._client.get_object(**place)
            with answer["Body"] as body:
                data: bytes = body.read()
            expected = int(answer["ContentLength"])
            if len(data) != expected:
                raise IncompleteReadError(actual_bytes=len(data), expected_bytes=expected)
            return data

        return self._calls.run("get", name, call)

    def open(self, name: str) -> BinaryIO:
        """Return an object as a file; a cut connection is gone on with where it was cut."""
        place = self._place(check_name(name))

        def fetch(position: int, etag: str) -> Any:
            extra = {"Range": f"bytes={position}-", "IfMatch": etag} if position else {}
            return self._client.get_object(**place, **extra)

        reader = ObjectReader(self._calls, name, fetch)
        return cast("BinaryIO", io.BufferedReader(reader, _BLOCK))

    def head(self, name: str) -> ObjectInfo | None:
        """Return size and time of an object; None if it is not there."""
        place = self._place(check_name(name))

        def call() -> tuple[ObjectInfo | None]:
            answer = self._client.head_object(**place)
            return (ObjectInfo(name, int(answer["ContentLength"]), _utc(answer["LastModified"])),)

        def expect(fault: Fault, _: int) -> tuple[None] | None:
            return (None,) if fault.kind is FaultKind.MISSING else None

        return self._calls.run("head", name, call, expect=expect)[0]

    def locked_until(self, names: Sequence[str]) -> dict[str, datetime]:
        """Return of those that have a lock when it ends; needs ``s3:GetObjectRetention``.

        A bucket that was made without object lock is asked once.
        """
        if not self._may_lock():
            return {}

        def look(name: str) -> datetime | None:
            def call() -> tuple[datetime | None]:
                answer = self._client.head_object(**self._place(check_name(name)))
                return (answer.get("ObjectLockRetainUntilDate"),)

            def expect(fault: Fault, _: int) -> tuple[None] | None:
                return (None,) if fault.kind is FaultKind.MISSING else None

            return self._calls.run("head", name, call, expect=expect)[0]

        with ThreadPoolExecutor(self.options.connections) as pool:
            found = zip(names, pool.map(look, names), strict=True)
            return {name: _utc(until) for name, until in found if until is not None}

    def _may_lock(self) -> bool:
        def call() -> bool:
            self._client.get_object_lock_configuration(Bucket=self.bucket)
            return True

        def expect(fault: Fault, _: int) -> bool:
            # Whoever may not ask, or of a server that does not tell, looks at each object.
            return fault.code != "ObjectLockConfigurationNotFoundError"

        return self._calls.run("head", "", call, expect=expect)

    def list(self, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:
        """Yield the objects whose names begin with `prefix`, by name, those behind `after`."""
        check_prefix(prefix)
        return self._list(prefix, after or "")

    def _list(self, prefix: str, after: str) -> Iterator[ObjectInfo]:
        arguments: dict[str, Any] = {"Prefix": self.prefix + prefix, "MaxKeys": _PAGE}
        if after:
            arguments["StartAfter"] = self.prefix + after
        for page in self._pages("list", prefix, self._client.list_objects_v2, arguments):
            for found in page.get("Contents", ()):
                name = str(found["Key"]).removeprefix(self.prefix)
                if is_name(name) and name > after:  # not the "folders" that consoles make
                    yield ObjectInfo(name, int(found["Size"]), _utc(found["LastModified"]))

    def _pages(
        self, doing: str, name: str, method: Callable[..., Any], arguments: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        while True:
            page: dict[str, Any] = self._calls.run(
                doing, name, lambda: method(Bucket=self.bucket, **arguments)
            )
            yield page
            if not page.get("IsTruncated"):
                return
            if "NextContinuationToken" in page:
                arguments["ContinuationToken"] = page["NextContinuationToken"]
            else:
                arguments["KeyMarker"] = page["NextKeyMarker"]
                arguments["UploadIdMarker"] = page["NextUploadIdMarker"]

    def close(self) -> None:
        """Close the connections; a call that comes later opens new ones."""
        self._client.close()

    # --- what killed writers left

    def unfinished(self) -> Iterator[Unfinished]:
        """Yield the uploads that nobody has completed, of killed writers and those that go on."""
        arguments = {"Prefix": self.prefix}
        method = self._client.list_multipart_uploads
        for page in self._pages("list", "", method, arguments):
            for found in page.get("Uploads", ()):
                name = str(found["Key"]).removeprefix(self.prefix)
                yield Unfinished(name, _utc(found["Initiated"]), str(found["UploadId"]))

    def abort_unfinished(self, older_than: timedelta) -> int:
        """Take back uploads that began so long ago; return how many."""
        limit = time.time() - older_than.total_seconds()
        old = [left for left in self.unfinished() if left.started.timestamp() <= limit]
        for left in old:
            key = self.prefix + left.name
            place = {"Bucket": self.bucket, "Key": key, "UploadId": left.token}
            abort = functools.partial(self._client.abort_multipart_upload, **place)
            self._calls.run("delete", left.name, abort, expect=_gone_is_fine)
        return len(old)

    def _place(self, name: str) -> dict[str, Any]:
        return {"Bucket": self.bucket, "Key": self.prefix + name}


class _SomeLeftError(OSError):
    """Some objects of a batch are still there, and may be removed by another try."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


def _utc(when: datetime) -> datetime:
    return when.astimezone(UTC)  # botocore says it in local time


def _gone_is_fine(fault: Fault, _: int) -> bool | None:
    return True if fault.code == "NoSuchUpload" else None


def _per_key(errors: Sequence[dict[str, Any]], prefix: str) -> str:
    shown = [
        f"{str(error.get('Key', '')).removeprefix(prefix)}: {error.get('Code')}"
        for error in errors[:3]
    ]
    more = f" and {len(errors) - 3} more" if len(errors) > 3 else ""
    return f"{len(errors)} objects are still there: {', '.join(shown)}{more}"
