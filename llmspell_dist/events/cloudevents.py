"""Events as CloudEvents 1.0 in JSON, for programs that know nothing of this library, and back.

https://github.com/cloudevents/spec: the required attributes, the JSON format, and the extensions
for distributed tracing (``traceparent``) and sequence. What our events have beyond that are
extension attributes: ``correlationid``, ``causationid``, ``target``, ``tags``, ``priority``,
``ttl``, ``language``, ``schemaversion``. What goes out comes back equal.

Data that JSON can hold stands in ``data``; bytes in ``data_base64``; anything else (datetimes,
sets, bytes inside of a list) there too, as MessagePack with a content type of its own.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Final
from urllib.parse import quote, unquote

from llmspell_dist.codec import decode, encode
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.events.model import Event, check_priority

__all__ = ["CONTENT_TYPE", "from_cloudevent", "to_cloudevent"]

CONTENT_TYPE: Final = "application/cloudevents+json"
SPEC_VERSION: Final = "1.0"
NO_SOURCE: Final = "urn:llmspell-dist:event"
"""CloudEvents must have a source; this one says that ours has none."""
_JSON: Final = "application/json"
_BYTES: Final = "application/octet-stream"
_MSGPACK: Final = "application/vnd.llmspell-dist+msgpack"
_IS_JSON: Final = re.compile(r"[^/;]+/(?:[^;]*\+)?json\s*(?:;.*)?", re.IGNORECASE)
_URI_SAFE: Final = "/:?#[]@!$&'()*+,;=-._~"
_SEGMENT_SAFE: Final = "/@!$&'()*+,;=-._~"
_PCHAR: Final = r"(?:[\w.~!$&'()*+,;=:@-]|%[0-9A-F]{2})"
_URI_REFERENCE: Final = re.compile(
    r"(?:[a-z][a-z0-9+.-]*:|(?![^/?#]*:))"  # a scheme, or no colon in the first segment
    rf"(?://(?:{_PCHAR}*@)?(?:\[[0-9a-f:.]+\]|(?:(?!:|@){_PCHAR})*)(?::\d*)?(?=[/?#]|\Z)|(?!//))"
    rf"(?:{_PCHAR}|/)*(?:\?(?:{_PCHAR}|[/?])*)?(?:#(?:{_PCHAR}|[/?])*)?",
    re.ASCII | re.IGNORECASE,
)
"""RFC 3986, of what is percent-encoded."""
_TAG_SAFE: Final = "/:?#[]@!$&'()*+;=-._~"
_EXTENSIONS: Final = {
    "correlationid": "correlation_id",
    "causationid": "causation_id",
    "traceparent": "traceparent",
    "target": "target",
    "language": "language",
    "schemaversion": "schema_version",
}


def to_cloudevent(event: Event) -> dict[str, Any]:
    """Return a JSON object as a dict; ``json.dumps`` makes `CONTENT_TYPE` of it."""
    said: dict[str, Any] = {
        "specversion": SPEC_VERSION,
        "id": event.id,
        "source": NO_SOURCE if event.source is None else _uri_reference(event.source),
        "type": event.type,
        "time": event.time.isoformat().replace("+00:00", "Z"),
        "sequence": str(event.sequence),
        "sequencetype": "Integer",
    }
    for attribute, name in _EXTENSIONS.items():
        value = getattr(event, name)
        if value is not None:
            said[attribute] = value
    if event.tags:
        said["tags"] = ",".join(quote(tag, safe=_TAG_SAFE) for tag in event.tags)
    if event.priority:
        said["priority"] = event.priority
    if event.ttl is not None:
        said["ttl"] = repr(event.ttl)  # CloudEvents know no fractions
    data = event.data
    if type(data) is bytes:
        said["datacontenttype"] = _BYTES
        said["data_base64"] = base64.b64encode(data).decode()
    elif _fits_json(data):
        said["datacontenttype"] = _JSON
        said["data"] = data
    else:
        said["datacontenttype"] = _MSGPACK
        said["data_base64"] = base64.b64encode(encode(data)).decode()
    return said


def _uri_reference(source: str) -> str:
    """Return a source as what CloudEvents demand; ``3f2a:17`` is none, for it looks like a URI."""
    quoted = quote(source, safe=_URI_SAFE)
    return quoted if _URI_REFERENCE.fullmatch(quoted) else quote(source, safe=_SEGMENT_SAFE)


def from_cloudevent(said: Mapping[str, Any] | str | bytes) -> Event:
    """Return the event; `InvalidArgumentError` names the attribute that is missing or wrong."""
    said = _checked(said)
    source = said["source"]
    given: dict[str, Any] = {"source": None if source == NO_SOURCE else unquote(source)}
    for attribute, name in _EXTENSIONS.items():
        if attribute in said:
            given[name] = said[attribute]
    given.setdefault("language", "unknown")
    for name, read in _READERS.items():
        if name in said and (name != "sequence" or said.get("sequencetype") == "Integer"):
            given[name] = read(said[name])
    return Event(said["type"], _data(said), id=said["id"], **given)


def _fits_json(value: Any) -> bool:
    """Whether JSON brings a value back as it was; the walk is bounded by Python's own depth."""
    try:
        return _is_plain(value)
    except RecursionError:
        return False


def _checked(said: Mapping[str, Any] | str | bytes) -> Mapping[str, Any]:
    """Return the object with its required attributes."""
    if isinstance(said, (str, bytes)):
        try:
            said = json.loads(said)
        except ValueError:
            raise InvalidArgumentError("cloudevent", said, "must be JSON") from None
    if not isinstance(said, Mapping):
        raise InvalidArgumentError("cloudevent", said, "must be a JSON object")
    # An attribute that is null is one that is not there; data may be null.
    said = {name: value for name, value in said.items() if value is not None or name == "data"}
    for attribute in ("specversion", "id", "source", "type"):
        if type(said.get(attribute)) is not str or not said[attribute]:
            rule = "must be there as text that is not empty"
            raise InvalidArgumentError(attribute, said.get(attribute), rule)
    if said["specversion"] != SPEC_VERSION:
        raise InvalidArgumentError("specversion", said["specversion"], f"must be {SPEC_VERSION}")
    return said


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if value is None or kind is str or kind is bool or kind is int:
        return True
    if kind is float:
        return isfinite(value)
    if kind is list:
        return all(_is_plain(one) for one in value)
    if kind is dict:
        return all(type(key) is str and _is_plain(one) for key, one in value.items())
    return False


def _data(said: Mapping[str, Any]) -> Any:
    content = said.get("datacontenttype")
    if "data" in said and "data_base64" in said:
        raise InvalidArgumentError("data_base64", said["data_base64"], "must not stand beside data")
    if "data_base64" not in said:
        return said.get("data")
    try:
        raw = base64.b64decode(said["data_base64"], validate=True)
    except (TypeError, ValueError, binascii.Error):
        rule = "must be base64"
        raise InvalidArgumentError("data_base64", said["data_base64"], rule) from None
    if content == _MSGPACK:
        return decode(raw)
    if type(content) is str and _IS_JSON.fullmatch(content):
        try:
            return json.loads(raw)
        except ValueError:
            raise InvalidArgumentError(
                "data_base64", raw, "must be JSON, as its type says"
            ) from None
    return raw


def _time(text: object) -> datetime:
    try:
        time = datetime.fromisoformat(text.upper())  # type: ignore[attr-defined]
    except (AttributeError, ValueError):
        time = None
    if time is None or time.tzinfo is None:
        raise InvalidArgumentError("time", text, "must be an RFC 3339 timestamp")
    return time.astimezone(UTC)


def _number(value: object) -> int:
    if type(value) is int:
        return value
    if type(value) is str and value.isascii() and value.isdecimal() and len(value) < 20:
        return int(value)
    raise InvalidArgumentError("sequence", value, "must be a number")


def _seconds(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InvalidArgumentError("ttl", value, "must be a number of seconds") from None


def _priority(value: object) -> int:
    """Return a priority; other formats than JSON, on the way here, know text alone."""
    if type(value) is str and re.fullmatch(r"-?\d{1,9}", value, re.ASCII):
        return check_priority(int(value))
    return check_priority(value)


def _tags(value: object) -> tuple[str, ...]:
    if type(value) is not str:
        raise InvalidArgumentError("tags", value, "must be text, with commas between the tags")
    return tuple(unquote(tag) for tag in value.split(","))


_READERS: Final = {
    "time": _time,
    "sequence": _number,
    "tags": _tags,
    "priority": _priority,
    "ttl": _seconds,
}
