"""Walks over a value: is it storable, and if not, where and why.

`is_sound` is the cheap question, asked for every value. `explain` is the slow answer, asked only
after something failed: it names the path.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from math import isfinite
from typing import Any, Final

from llmspell_dist.codec_types import LEAF_TYPES, UnsupportedValueError, pack_leaf
from llmspell_dist.errors import CircularReferenceError, CodecError, LimitError, SpellError, shorten

__all__ = [
    "CONTAINER_TYPES",
    "EXTERNAL_MAX_BYTES",
    "EXTERNAL_MAX_DEPTH",
    "explain",
    "is_sound",
    "path_of",
    "validate_external_shape",
]

CONTAINER_TYPES: Final = frozenset({dict, list, tuple, set, frozenset})
EXTERNAL_MAX_DEPTH: Final = 32
EXTERNAL_MAX_BYTES: Final = 1 << 20

_all_leaves: Final = LEAF_TYPES.issuperset  # with map(type, …) the whole loop runs in C
_plain_name: Final = re.compile(r"[^\W\d]\w*").fullmatch
_control: Final = re.compile("[\0-\x1f\x7f-\x9f]").search
_INT64: Final = range(-(2**63), 2**63)


def is_sound(container: Any, levels: int) -> bool:
    """Return whether `container` holds storable types only and nests at most `levels` deep."""
    if levels <= 0:
        return False
    if type(container) is dict:
        if not _all_leaves(map(type, container)) and not _are_sound(container, levels):
            return False
        container = container.values()
    return _all_leaves(map(type, container)) or _are_sound(container, levels)


def _are_sound(parts: Iterable[Any], levels: int) -> bool:
    levels -= 1
    for part in parts:
        cls = type(part)
        if cls in CONTAINER_TYPES:
            if not is_sound(part, levels):
                return False
        elif cls not in LEAF_TYPES:
            return False
    return True


def _key_step(key: Any) -> str:
    if type(key) is str:
        return f".{key}" if _plain_name(key) and len(key) <= 60 else f"[{shorten(key)}]"
    return f"[{shorten(key)}]"


def path_of(steps: Iterable[str]) -> str:
    """Return the path that `steps` make, such as ``$.messages[3].when``."""
    return "$" + "".join(steps)


def _parts(container: Any) -> Iterator[tuple[str, Any]]:
    if type(container) is dict:
        for key, value in container.items():
            if type(key) is not str or not key.isascii():
                yield f"<key {shorten(key, 40)}>", key
            yield _key_step(key), value
    elif type(container) in (set, frozenset):
        for item in container:
            yield "{…}", item
    else:
        for index, item in enumerate(container):
            yield f"[{index}]", item


def _leaf_problem(value: Any) -> str | None:
    cls = type(value)
    if cls not in LEAF_TYPES:
        bases: list[Any] = [*CONTAINER_TYPES, *LEAF_TYPES]
        for base in bases:
            if isinstance(value, base):
                return f"{cls.__qualname__}, a subclass of {base.__name__}, cannot be stored"
        return f"{cls.__qualname__} cannot be stored"
    if cls is str:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"a str with a lone surrogate (at {error.start}) cannot be stored"
    elif cls not in (bytes, bool, float, int, type(None)):
        try:
            pack_leaf(value)
        except UnsupportedValueError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - a foreign tzinfo may raise anything
            return f"{cls.__qualname__} cannot be stored ({type(error).__name__})"
    return None


def explain(value: Any, max_depth: int) -> SpellError | None:
    """Return why `value` cannot be stored, with the path; None if nothing is wrong with it.

    Without recursion, so it may be as deep and as circular as it likes. A cycle and an unsupported
    type are reported before too deep a nesting.
    """
    if type(value) not in CONTAINER_TYPES:
        problem = _leaf_problem(value)
        return CodecError("$", problem) if problem else None
    too_deep: str | None = None
    steps: list[str] = []
    open_ids = {id(value)}
    # Shared parts are walked again only if they are met deeper: linear in the usual case, and never
    # exponential.
    seen = {id(value): 1}
    stack: list[tuple[Any, Iterator[tuple[str, Any]]]] = [(value, _parts(value))]
    while stack:
        container, parts = stack[-1]
        for step, part in parts:
            if type(part) not in CONTAINER_TYPES:
                problem = _leaf_problem(part)
                if problem:
                    return CodecError(path_of([*steps, step]), problem)
                continue
            if id(part) in open_ids:
                return CircularReferenceError(path_of([*steps, step]))
            depth = len(stack) + 1
            if seen.get(id(part), 0) >= depth:
                continue
            seen[id(part)] = depth
            if depth > max_depth and too_deep is None:
                too_deep = path_of([*steps, step])
            steps.append(step)
            open_ids.add(id(part))
            stack.append((part, _parts(part)))
            break
        else:
            stack.pop()
            open_ids.discard(id(container))
            if steps:
                steps.pop()
    if max_depth < 1:
        too_deep = "$"
    if too_deep is not None:
        return LimitError("levels of nesting", max_depth + 1, max_depth, too_deep)
    return None


def validate_external_shape(value: Any) -> None:
    """Check that `value` has the shape of JSON and nothing that could surprise a reader.

    None, bool, int of 64 bits, finite float, str, list, and dict with str keys free of control
    characters; at most 32 levels. Raises CodecError, CircularReferenceError or LimitError with the
    path.
    """
    problem = explain(value, EXTERNAL_MAX_DEPTH)
    if problem is not None:
        raise problem
    _walk_external(value, [])


def _walk_external(value: Any, steps: list[str]) -> None:
    cls = type(value)
    if cls is list:
        for index, item in enumerate(value):
            steps.append(f"[{index}]")
            _walk_external(item, steps)
            steps.pop()
    elif cls is dict:
        for key, item in value.items():
            if type(key) is not str:
                reason = f"a key of external data must be a str, not {type(key).__qualname__}"
                raise CodecError(path_of([*steps, _key_step(key)]), reason)
            if _control(key):
                reason = "a key of external data must not hold control characters"
                raise CodecError(path_of([*steps, _key_step(key)]), reason)
            steps.append(_key_step(key))
            _walk_external(item, steps)
            steps.pop()
    elif cls is int:
        if value not in _INT64:
            raise CodecError(path_of(steps), "an int of external data must fit 64 bits")
    elif cls is float:
        if not isfinite(value):
            raise CodecError(path_of(steps), "a float of external data must be finite")
    elif cls is not str and cls is not bool and value is not None:
        reason = f"external data must have the shape of JSON; {cls.__qualname__} is not allowed"
        raise CodecError(path_of(steps), reason)
