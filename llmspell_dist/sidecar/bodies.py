"""Bodies in and out: JSON or MessagePack, by content negotiation, within limits.

A body is one value of the codec. As MessagePack it is what the codec writes; as JSON, what the
codec has beyond it is tagged (`jsonable`): ``{"$bytes": "aGk="}``. So no type is lost in either.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec

from llmspell_dist.codec import Codec
from llmspell_dist.errors import CodecError, InvalidArgumentError, LimitError
from llmspell_dist.jsonable import from_json, to_json
from llmspell_dist.sidecar.errors import BodyError, NotAcceptableError, UnsupportedMediaTypeError
from llmspell_dist.sidecar.receiving import SMALL
from llmspell_dist.sidecar.weighing import weigh_json, weigh_messagepack

__all__ = ["JSON", "MESSAGEPACK", "Bodies", "accepted", "plain"]

JSON: Final = "application/json"
MESSAGEPACK: Final = "application/msgpack"
_JSON_NAMES: Final = frozenset({JSON, "text/json"})
_MESSAGEPACK_NAMES: Final = frozenset(
    {MESSAGEPACK, "application/x-msgpack", "application/vnd.msgpack"}
)
_to_json_bytes: Final = msgspec.json.Encoder().encode
_MANY: Final = 8
_RANGES: Final = ("*/*", "application/*")


class Bodies:
    """Reads and writes bodies of up to `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._codec = Codec(max_bytes=max_bytes)
        self._encode = Codec(max_bytes=512_000_000).encode

    def read(self, body: bytes, media: str | None) -> Any:
        """Return the value of a body; `media` is its Content-Type, which must be stated.

        A page in a browser can send anything to this machine, but not with these types.
        """
        name = "" if media is None else media.partition(";")[0].strip().lower()
        if name in _JSON_NAMES or name.endswith("+json"):
            return self._read_json(body)
        if name in _MESSAGEPACK_NAMES:
            try:
                weigh_messagepack(body)
                return self._codec.decode(body)
            except LimitError as error:
                raise BodyError("MessagePack", f"exceeds a limit: {error}") from None
            except CodecError as error:
                raise BodyError("MessagePack", str(error)) from None
        raise UnsupportedMediaTypeError(name)

    async def read_aside(self, body: bytes, media: str | None) -> Any:
        """Return what `read` does; what takes time is read in a thread, and holds up nobody."""
        if len(body) <= SMALL:
            return self.read(body, media)
        return await asyncio.to_thread(self.read, body, media)

    def _read_json(self, body: bytes) -> Any:
        try:
            weigh_json(body)
            return from_json(msgspec.json.decode(body))
        except LimitError as error:
            raise BodyError("JSON", f"exceeds a limit: {error}") from None
        except msgspec.DecodeError as error:
            raise BodyError("JSON", str(error)) from None
        except RecursionError:
            raise BodyError("JSON", "it nests too deep") from None
        except UnicodeDecodeError:
            raise BodyError("JSON", "it is not UTF-8") from None
        except InvalidArgumentError as error:
            raise BodyError("JSON", str(error)) from None

    def write(self, document: Any, media: str) -> bytes:
        """Return a plain document as bytes of one of the two media types."""
        if media == MESSAGEPACK:
            return self._encode(document)
        return _to_json_bytes(to_json(document))


def plain(document: Any) -> Any:
    """Return a document without Structs: what the codec and JSON can write."""
    if isinstance(document, msgspec.Struct):
        fields = msgspec.structs.asdict(document)
        names = dict(
            zip(document.__struct_fields__, document.__struct_encode_fields__, strict=True)
        )
        return {names[name]: plain(part) for name, part in fields.items()}
    kind = type(document)
    if kind is list:
        return [plain(part) for part in document]
    if kind is dict:
        return {name: plain(part) for name, part in document.items()}
    return document


def accepted(accept: str | None) -> str:
    """Return the media type to answer in, of those that the client takes: RFC 9110, 12.5.1."""
    if accept is None or accept in {"*/*", JSON}:
        return JSON
    if accept == MESSAGEPACK:
        return MESSAGEPACK
    weights: dict[str, tuple[int, float]] = {}
    for part in accept.split(",", _MANY)[:_MANY]:
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = _weight(parameters)
        for media, precision in _meant(name):
            if precision > weights.get(media, (-1, 0.0))[0]:  # the more precise one decides
                weights[media] = precision, weight
    found = max(weights, key=lambda media: weights[media][1], default=JSON)
    if weights.get(found, (0, 0.0))[1] == 0:
        raise NotAcceptableError(accept)
    return found


def _meant(name: str) -> tuple[tuple[str, int], ...]:
    """Return which of the two a media range means, and how precisely."""
    if name in _MESSAGEPACK_NAMES:
        return ((MESSAGEPACK, 2),)
    if name in _JSON_NAMES or name == "application/problem+json":
        return ((JSON, 2),)
    if name in _RANGES:
        precision = _RANGES.index(name)
        return (JSON, precision), (MESSAGEPACK, precision)
    return ()


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return min(max(float(value), 0.0), 1.0)
            except ValueError:
                return 0.0
    return 1.0
