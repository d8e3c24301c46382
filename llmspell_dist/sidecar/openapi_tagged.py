"""Says in JSON schemas how bodies carry what JSON lacks: a moment is ``{"$datetime": "…"}``.

msgspec describes its own JSON, in which a moment is text. Ours is that of values (`jsonable`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from msgspec import inspect

__all__ = ["TAGGED", "tag"]

_REF: Final = "#/components/schemas/"


def _tagged(tag: str, example: str, about: str, **more: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "description": about,
        "required": [tag],
        "properties": {tag: {"type": "string", "examples": [example]}, **more},
        "additionalProperties": False,
    }


TAGGED: Final[dict[str, dict[str, Any]]] = {
    "Moment": _tagged(
        "$datetime",
        "2026-01-01T00:00:00+00:00",
        "A moment; in MessagePack it is an extension type.",
        zone={"type": "string"},
    ),
    "Bytes": _tagged("$bytes", "aGk=", "Bytes, as base64; in MessagePack they are native."),
}
"""The schemas of what is tagged, by name."""
_NAMES: Final[dict[type, str]] = {inspect.DateTimeType: "Moment", inspect.BytesType: "Bytes"}


def tag(components: dict[str, Any], shapes: Iterable[type]) -> None:
    """Correct the schemas of these Structs, and of those within them, where they hold such."""
    seen: set[str] = set()
    for info in inspect.multi_type_info(list(shapes)):
        _walk(info, components, seen)


def _walk(info: Any, components: dict[str, Any], seen: set[str]) -> None:
    if isinstance(info, inspect.StructType):
        name = info.cls.__name__
        if name in seen:
            return
        seen.add(name)
        properties = components[name].get("properties", {})
        for field in info.fields:
            properties[field.encode_name] = _corrected(properties[field.encode_name], field.type)
            _walk(field.type, components, seen)
        return
    for inner in _within(info):
        _walk(inner, components, seen)


def _within(info: Any) -> list[Any]:
    if isinstance(info, inspect.Metadata):
        return [info.type]
    if isinstance(info, inspect.UnionType):
        return list(info.types)
    if isinstance(info, inspect.ListType):
        return [info.item_type]
    if isinstance(info, inspect.DictType):
        return [info.value_type]
    return []


def _corrected(schema: dict[str, Any], info: Any) -> dict[str, Any]:
    while isinstance(info, inspect.Metadata):
        info = info.type
    name = _NAMES.get(type(info))
    if name is not None:
        kept: dict[str, Any] = {
            key: schema[key] for key in ("description", "default") if key in schema
        }
        return {**kept, "$ref": _REF + name}
    if isinstance(info, inspect.UnionType):
        special = [one for one in info.types if type(one) in _NAMES]
        if special and "anyOf" in schema:
            # msgspec allows one kind of text in a union, and that is this one.
            parts = [
                _corrected(part, special[0]) if part.get("type") == "string" else part
                for part in schema["anyOf"]
            ]
            return {**schema, "anyOf": parts}
    if isinstance(info, inspect.ListType) and "items" in schema:
        return {**schema, "items": _corrected(schema["items"], info.item_type)}
    if isinstance(info, inspect.DictType) and "additionalProperties" in schema:
        inner = _corrected(schema["additionalProperties"], info.value_type)
        return {**schema, "additionalProperties": inner}
    return schema
