"""Typed access: dataclasses, msgspec structs and pydantic models to plain values and back.

msgspec and pydantic are imported only for types that are theirs, so neither is needed nor loaded
otherwise.
"""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Mapping
from enum import Enum
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from llmspell_dist.errors import CodecError

__all__ = ["from_builtin", "is_model", "to_builtin"]

T = TypeVar("T")
_LEVELS = 128


def _is_from(cls: type, package: str, base: str) -> bool:
    """Whether `cls` derives from `package.base`, without importing the package."""
    module = sys.modules.get(package)
    root = getattr(module, base, None)
    return isinstance(root, type) and issubclass(cls, root)


def is_model(value: Any) -> bool:
    """Return whether `value` is a dataclass, struct or model, that `to_builtin` takes apart."""
    cls = type(value)
    return (
        dataclasses.is_dataclass(cls)
        or _is_from(cls, "msgspec", "Struct")
        or _is_from(cls, "pydantic", "BaseModel")
    )


def to_builtin(value: Any) -> Any:
    """Return `value` with every dataclass, struct, model and enum in it as a plain value.

    Plain values come back as they are. Raises CodecError with the field's path.
    """
    return _to_builtin(value, "$", _LEVELS)


def _to_builtin(value: Any, path: str, levels: int) -> Any:
    if levels < 0:
        raise CodecError(path, "nests too deep, or contains itself")
    cls = type(value)
    if dataclasses.is_dataclass(cls):
        return {
            field.name: _to_builtin(getattr(value, field.name), f"{path}.{field.name}", levels - 1)
            for field in dataclasses.fields(cls)
        }
    if _is_from(cls, "msgspec", "Struct"):
        return {
            name: _to_builtin(getattr(value, name), f"{path}.{name}", levels - 1)
            for name in cls.__struct_fields__
        }
    if _is_from(cls, "pydantic", "BaseModel"):
        try:
            dumped = value.model_dump(mode="python")
        except Exception as error:
            raise CodecError(path, f"{cls.__qualname__} cannot be dumped: {error}") from error
        return _to_builtin(dumped, path, levels - 1)
    if isinstance(value, Enum):
        return value.value
    if cls is dict:
        return {
            _to_builtin(key, f"{path}<key>", levels - 1): _to_builtin(
                item, f"{path}.{key}", levels - 1
            )
            for key, item in value.items()
        }
    if cls in (list, tuple, set, frozenset):
        return cls(_to_builtin(v, f"{path}[{i}]", levels - 1) for i, v in enumerate(value))
    return value


def from_builtin(type_: type[T], data: Any) -> T:
    """Return `data` as a `type_`: a dataclass, struct, model, or any type made of plain ones.

    Unknown fields are refused, missing ones need a default. Raises CodecError with the path.
    """
    return _from_builtin(type_, data, "$")  # type: ignore[no-any-return]


def _wrong(path: str, expected: Any, data: Any) -> CodecError:
    name = expected if isinstance(expected, str) else getattr(expected, "__qualname__", expected)
    return CodecError(path, f"expected {name}, found {type(data).__qualname__}")


def _from_builtin(expected: Any, data: Any, path: str) -> Any:  # noqa: C901 - one case each
    if expected is Any or expected is object or isinstance(expected, TypeVar):
        return data
    if expected is None or expected is type(None):
        if data is None:
            return None
        raise _wrong(path, "None", data)
    origin = get_origin(expected)
    if origin is not None:
        return _from_generic(origin, expected, data, path)
    if not isinstance(expected, type):
        raise CodecError(path, f"{expected!r} is not supported as a type")
    if dataclasses.is_dataclass(expected):
        return _from_dataclass(expected, data, path)
    if _is_from(expected, "msgspec", "Struct"):
        return _from_struct(expected, data, path)
    if _is_from(expected, "pydantic", "BaseModel"):
        return _from_model(expected, data, path)
    if issubclass(expected, Enum):
        try:
            return expected(data)
        except ValueError:
            raise CodecError(path, f"no {expected.__qualname__} has this value") from None
    if expected is float and type(data) is int:
        return float(data)
    # bool is an int, and a datetime is a date, only for Python.
    if type(data) is expected:
        return data
    raise _wrong(path, expected, data)


def _from_generic(  # noqa: C901, PLR0912 - one case each
    origin: Any, expected: Any, data: Any, path: str
) -> Any:
    arguments = get_args(expected)
    if origin is Union or origin is types.UnionType:
        for exact in (True, False):
            for option in arguments:
                if exact and option is not type(data):
                    continue
                try:
                    return _from_builtin(option, data, path)
                except CodecError:
                    continue
        raise _wrong(path, " | ".join(str(getattr(a, "__name__", a)) for a in arguments), data)
    if origin is Literal:
        if any(type(data) is type(option) and data == option for option in arguments):
            return data
        raise CodecError(path, f"must be one of {arguments}")
    if hasattr(expected, "__metadata__"):  # Annotated
        return _from_builtin(arguments[0], data, path)
    if origin in (list, set, frozenset):
        if type(data) is not origin:
            raise _wrong(path, origin, data)
        return origin(_from_builtin(arguments[0], v, f"{path}[{i}]") for i, v in enumerate(data))
    if origin is tuple:
        if type(data) is not tuple:
            raise _wrong(path, tuple, data)
        kinds = arguments[:1] * len(data) if arguments[1:] == (...,) else arguments
        if len(kinds) != len(data):
            raise CodecError(path, f"expected {len(kinds)} items, found {len(data)}")
        pairs = enumerate(zip(kinds, data, strict=True))
        return tuple(_from_builtin(kind, item, f"{path}[{i}]") for i, (kind, item) in pairs)
    if origin is dict or origin is Mapping:
        if type(data) is not dict:
            raise _wrong(path, dict, data)
        of_key, of_value = arguments
        return {
            _from_builtin(of_key, k, f"{path}<key>"): _from_builtin(of_value, v, f"{path}.{k}")
            for k, v in data.items()
        }
    if dataclasses.is_dataclass(origin):
        return _from_dataclass(origin, data, path)
    raise CodecError(path, f"{expected!r} is not supported as a type")


def _from_dataclass(cls: Any, data: Any, path: str) -> Any:
    if type(data) is cls:
        return data
    if type(data) is not dict:
        raise _wrong(path, cls, data)
    try:
        hints = get_type_hints(cls)
    except (NameError, TypeError) as error:
        raise CodecError(path, f"the types of {cls.__qualname__} are unknown: {error}") from None
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in data:
        if name not in fields:
            raise CodecError(f"{path}.{name}", f"{cls.__qualname__} has no such field")
    given: dict[str, Any] = {}
    late: dict[str, Any] = {}
    for name, field in fields.items():
        if name in data:
            made = _from_builtin(hints[name], data[name], f"{path}.{name}")
            (given if field.init else late)[name] = made
        elif (
            field.init
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ):
            raise CodecError(f"{path}.{name}", f"{cls.__qualname__} needs this field")
    try:
        made = cls(**given)
    except Exception as error:
        raise CodecError(path, f"{cls.__qualname__} refused its fields: {error}") from error
    for name, value in late.items():
        object.__setattr__(made, name, value)
    return made


def _from_struct(cls: Any, data: Any, path: str) -> Any:
    if type(data) is cls:
        return data
    import msgspec  # noqa: PLC0415 - only for its own types

    if type(data) is dict:
        # Structs may rename fields; the stored names are those of the attributes.
        renamed = dict(zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True))
        for name in data:
            if name not in renamed:
                raise CodecError(f"{path}.{name}", f"{cls.__qualname__} has no such field")
        data = {renamed[name]: value for name, value in data.items()}
    try:
        return msgspec.convert(data, cls)
    except msgspec.ValidationError as error:
        raise CodecError(path, str(error)) from None


def _from_model(cls: Any, data: Any, path: str) -> Any:
    from pydantic import ValidationError  # noqa: PLC0415 - only for its own types

    try:
        return cls.model_validate(data, by_name=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"])
        raise CodecError(path + where, first["msg"]) from None
