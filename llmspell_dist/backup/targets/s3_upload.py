"""A long object on its way to S3: part by part, completed at the end or taken back."""

from __future__ import annotations

import base64
import hashlib
import io
import logging
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, BinaryIO, Final, Self

from llmspell_dist.backup.errors import TargetError
from llmspell_dist.backup.targets.s3_calls import Calls, Fault, FaultKind

__all__ = ["Upload", "content_md5", "parts_of", "read_exactly", "rest_of"]

logger = logging.getLogger("llmspell_dist.backup")

_MAX_PARTS: Final = 10_000


def content_md5(data: bytes | memoryview) -> str:
    """Return what the server compares with what arrived: every server knows this header."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def read_exactly(file: BinaryIO, size: int) -> bytes:
    """Return the next `size` bytes of a file, less only at its end."""
    pieces = []
    while size > 0 and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def rest_of(data: bytes | BinaryIO) -> int | None:
    """Return how many bytes `data` has from its position on; None if it does not know."""
    if isinstance(data, (bytes, bytearray, memoryview)):
        return len(data)
    try:
        here = data.tell()
        end = data.seek(0, io.SEEK_END)
        data.seek(here)
    except (OSError, AttributeError):  # a pipe
        return None
    return max(0, end - here)


def parts_of(
    data: bytes | BinaryIO, first: bytes, part_size: int, total: int | None
) -> Iterator[bytes | memoryview]:
    """Yield the parts of `data`, of which `first` has been read if it is a file."""
    if total is not None:
        part_size = max(part_size, -(-total // _MAX_PARTS))
    if isinstance(data, (bytes, bytearray, memoryview)):
        view = memoryview(data)
        for start in range(0, len(view), part_size):
            yield view[start : start + part_size]
        return
    part = first + read_exactly(data, part_size - len(first))
    while part:
        yield part
        part = read_exactly(data, part_size)


class Upload:
    """One multipart upload. Leave the ``with`` by an error and nothing of it stays."""

    def __init__(self, client: Any, calls: Calls, bucket: str, key: str, name: str) -> None:
        self._client = client
        self._calls = calls
        self._place = {"Bucket": bucket, "Key": key}
        self._name = name
        self._parts: list[dict[str, Any]] = []
        self._id = ""
        self._version: dict[str, str] = {}

    def begin(self, **arguments: Any) -> None:
        """Begin the upload; `arguments` are those of the object."""

        def call() -> str:
            answer = self._client.create_multipart_upload(**self._place, **arguments)
            return str(answer["UploadId"])

        self._id = self._calls.run("put", self._name, call)

    def send(self, part: bytes | memoryview) -> None:
        """Send the next part."""
        number = len(self._parts) + 1
        if number > _MAX_PARTS:
            said = f"longer than {_MAX_PARTS} parts; the size of a stream is not known beforehand"
            raise TargetError(self._calls.label, self._name, "put", said)
        digest = content_md5(part)

        def call() -> dict[str, Any]:
            answer: dict[str, Any] = self._client.upload_part(
                **self._place,
                UploadId=self._id,
                PartNumber=number,
                Body=_body(part),
                ContentMD5=digest,
            )
            return answer

        answer = self._calls.run("put", self._name, call)
        self._parts.append({"PartNumber": number, "ETag": answer["ETag"]})

    def lock(self, mode: str, until: datetime) -> None:
        """Lock the object that has been made; its upload said so, but not every server listens."""

        def call() -> bool:
            self._client.put_object_retention(
                **self._place, Retention={"Mode": mode, "RetainUntilDate": until}, **self._version
            )
            return True

        self._calls.run("put", self._name, call)

    def complete(self, *, only_new: bool, is_ours: Callable[[], bool]) -> bool:
        """Make the object out of its parts; False if `only_new` and there is another one.

        `is_ours`: whether what is there now was made by this upload, by a try that was not heard.
        """
        condition = {"IfNoneMatch": "*"} if only_new else {}

        def call() -> bool:
            answer = self._client.complete_multipart_upload(
                **self._place,
                UploadId=self._id,
                MultipartUpload={"Parts": self._parts},
                **condition,
            )
            if "VersionId" in answer:
                self._version = {"VersionId": answer["VersionId"]}
            return True

        def expect(fault: Fault, tries: int) -> bool | None:
            if fault.kind is FaultKind.EXISTS and only_new:
                return tries > 1 and is_ours()
            # An earlier try whose answer was lost has completed it: its id is then gone.
            gone = fault.code == "NoSuchUpload" and tries > 1
            return True if gone and is_ours() else None

        done = self._calls.run("put", self._name, call, expect=expect)
        if not done:
            self.abort()
        return done

    def abort(self) -> None:
        """Take the parts back. If that fails they stay until `abort_unfinished` of the target."""
        if not self._id:
            return

        def call() -> bool:
            self._client.abort_multipart_upload(**self._place, UploadId=self._id)
            return True

        try:
            self._calls.run("delete", self._name, call)
        except TargetError as error:
            logger.debug("an upload could not be taken back: %s", error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.abort()


def _body(part: bytes | memoryview) -> bytes:
    # botocore takes bytes and files, no views.
    return part if isinstance(part, bytes) else bytes(part)
