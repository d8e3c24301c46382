"""The bytes of a recorded execution, and of what travels between processes.

Of an execution, big-endian::

    0  1  format, 1
    1  1  flags of the body: 4 zstd, 8 encrypted
    2  4  length of the head
    6     head (MessagePack): what history is searched by, never encrypted
          body: context, result, error and inputs, by the codec of values

The head says hook, version, point, ids, times and what kind of result it was. Everything that a
hook saw or said is in the body, which is encrypted if the operation was about a Sensitive key.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import msgpack

from llmspell_dist.errors import CorruptRecordError, SpellError, UnsupportedFormatError
from llmspell_dist.hooks.kept import RecordedFailure, restore, store
from llmspell_dist.hooks.recording import (
    Execution,
    error_parts,
    input_of,
    input_parts,
    result_of,
    result_parts,
)
from llmspell_dist.records import ENCRYPTED, ZSTD

if TYPE_CHECKING:
    from llmspell_dist.codec import Codec
    from llmspell_dist.security.cipher import ValueCipher

__all__ = ["Sealer"]

FORMAT: Final = 1
COMPRESS_FROM: Final = 1024
_HEAD: Final = struct.Struct(">BBI")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Sealer:
    """Turns executions into bytes and back.

    A body over `max_bytes` is left out, and so is one that is secret where there is no cipher. A
    ciphertext is bound to the namespace and the execution's id.
    """

    def __init__(
        self,
        codec: Codec,
        cipher: ValueCipher | None = None,
        *,
        namespace: str = "",
        max_bytes: int = 1 << 20,
        compress: bool = True,
    ) -> None:
        self._codec = codec
        self._cipher = cipher
        self._namespace = namespace
        self._max_bytes = max_bytes
        self.compress = compress
        self._of_thread = threading.local()

    @property
    def encrypts(self) -> bool:
        """Whether there is a cipher."""
        return self._cipher is not None

    def pack(self, execution: Execution) -> bytes:
        """Return the bytes of an execution; never raises because of what a hook saw."""
        body, flags = b"", 0
        if execution.context is not None:
            parts = {
                "context": execution.context,
                "result": result_parts(execution.result),
                "error": None if execution.error is None else error_parts(execution.error),
                "inputs": [input_parts(one) for one in execution.inputs],
            }
            body, flags = self._sealed(parts, execution.id, secret=execution.secret)
        head = msgpack.packb(
            {
                "i": execution.id,
                "h": execution.hook,
                "v": execution.version,
                "p": execution.point,
                "c": execution.correlation_id,
                "u": execution.causation_id,
                "t": (execution.started_at - _EPOCH) // _MICROSECOND,
                "d": execution.duration_us,
                "r": execution.outcome,
                "n": execution.priority,
                "s": execution.secret,
            }
        )
        packed: bytes = _HEAD.pack(FORMAT, flags, len(head)) + head + body
        return packed

    def seal(self, parts: dict[str, Any], bound_to: str, *, secret: bool) -> bytes:
        """Return parts as versioned bytes that `open` reads: format, flags, body.

        The body is empty if they are secret and there is no cipher, or if they are too large.
        """
        body, flags = self._sealed(parts, bound_to, secret=secret)
        return bytes((FORMAT, flags)) + body

    def open(self, sealed: bytes, bound_to: str) -> dict[str, Any] | None:
        """Return what `seal` was given; None if it was left out or cannot be decrypted."""
        if sealed[:1] != bytes((FORMAT,)):
            reason = f"format {sealed[:1].hex() or 'none'}, this reads 01"
            raise UnsupportedFormatError("hooks", bound_to, reason)
        try:
            return self._opened(sealed[2:], sealed[1], bound_to)
        except (IndexError, ValueError, TypeError) as error:
            reason = f"it is damaged: {type(error).__name__}"
            raise CorruptRecordError("hooks", bound_to, reason) from None

    def _sealed(self, parts: dict[str, Any], bound_to: str, *, secret: bool) -> tuple[bytes, int]:
        body, flags = b"" if secret and self._cipher is None else self._encoded(parts), 0
        if body and self.compress and len(body) >= COMPRESS_FROM:
            smaller = self._compressor().compress(body)
            if len(smaller) < len(body):
                body, flags = smaller, ZSTD
        if body and secret:
            assert self._cipher is not None  # noqa: S101 - else there is no body
            body = self._cipher.encrypt(body, associated_data=self._bound(bound_to))
            flags |= ENCRYPTED
        return body, flags

    def _compressor(self) -> Any:
        """Return this thread's compressor: to make one costs more than to use it."""
        found = getattr(self._of_thread, "compressor", None)
        if found is None:
            import zstandard  # noqa: PLC0415 - only for what is compressed

            found = self._of_thread.compressor = zstandard.ZstdCompressor(level=3)
        return found

    def _opened(self, body: bytes, flags: int, bound_to: str) -> dict[str, Any] | None:
        if not body:
            return None
        if flags & ENCRYPTED:
            if self._cipher is None:
                return None
            try:
                body = self._cipher.decrypt(body, associated_data=self._bound(bound_to))
            except Exception as error:  # noqa: BLE001 - whatever a cipher raises, it is not authentic
                raise ValueError(f"it cannot be decrypted: {type(error).__name__}") from None
        if flags & ZSTD:
            import zstandard  # noqa: PLC0415 - only for what is compressed

            try:
                most = self._codec.max_bytes
                body = zstandard.ZstdDecompressor().decompress(body, max_output_size=most)
            except zstandard.ZstdError as error:
                raise ValueError(str(error)) from None
        parts: dict[str, Any] = restore(self._codec.decode(body))
        return parts

    def _encoded(self, parts: dict[str, Any]) -> bytes:
        for fits in (None, self._fits):
            try:
                body = self._codec.encode(store(parts, fits))
            except SpellError:
                continue
            return body if len(body) <= self._max_bytes else b""
        return b""

    def _fits(self, part: Any) -> bool:
        try:
            self._codec.encode(part)
        except SpellError:
            return False
        return True

    def _bound(self, execution_id: str) -> bytes:
        return f"{self._namespace}\0hooks\0{execution_id}".encode()

    def unpack(self, packed: bytes, entry: str) -> Execution:
        """Return an execution; damaged bytes are a `CorruptRecordError` that names the entry.

        A body that is encrypted comes back as None where there is no cipher.
        """
        if packed[:1] != bytes((FORMAT,)):
            reason = f"format {packed[:1].hex() or 'none'} of a hook's execution, this reads 01"
            raise UnsupportedFormatError("hooks", entry, reason)
        try:
            _, flags, size = _HEAD.unpack_from(packed)
            end = _HEAD.size + size
            head = msgpack.unpackb(packed[_HEAD.size : end])
            execution = Execution(
                head["i"],
                head["h"],
                head["v"],
                head["p"],
                head["c"],
                head["u"],
                _EPOCH + head["t"] * _MICROSECOND,
                head["d"],
                head["r"],
                head["n"],
                head["s"],
                entry=entry,
            )
            return self._with_body(execution, packed[end:], flags)
        except (KeyError, ValueError, TypeError, struct.error, msgpack.UnpackException) as error:
            reason = f"execution {entry} is damaged: {type(error).__name__}"
            raise CorruptRecordError("hooks", entry, reason) from None

    def _with_body(self, execution: Execution, body: bytes, flags: int) -> Execution:
        parts = self._opened(body, flags, execution.id)
        if parts is None:
            return execution
        error = parts["error"]
        return replace(
            execution,
            context=parts["context"],
            result=result_of(parts["result"]) if parts["result"] else None,
            error=None if error is None else RecordedFailure(*error),
            inputs=tuple(input_of(one) for one in parts["inputs"]),
        )
