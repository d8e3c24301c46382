"""What can be kept of a value or of an error: plain data that the codec takes, and gaps.

Hooks see whatever objects a program passes around. History holds only data: what the codec cannot
take is replaced by an `Unrecorded` that names its type, so that recording never fails a hook.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from llmspell_dist.codec_types import LEAF_TYPES
from llmspell_dist.errors import SpellError, error_classes, shorten
from llmspell_dist.state.writes import ANY
from llmspell_dist.ttl import KEEP
from llmspell_dist.typed import is_model, to_builtin

__all__ = [
    "RecordedError",
    "RecordedFailure",
    "Unrecorded",
    "gaps",
    "keep",
    "keep_error",
    "restore",
    "store",
]

MAX_DEPTH: Final = 32
_MARK: Final = "$unrecorded"
_NAMED: Final = "$named"
_PLAIN: Final = frozenset({str, int, float, bool, bytes, type(None)})
_SENTINELS: Final[dict[str, Any]] = {"KEEP": KEEP, "ANY": ANY}
_NAMES: Final = {id(value): name for name, value in _SENTINELS.items()}
"""What callers pass that is no data and means itself."""


@dataclass(frozen=True, slots=True)
class Unrecorded:
    """Stands where a value was that could not be recorded."""

    what: str
    """Its type, or the reason."""

    def __repr__(self) -> str:
        return f"<not recorded: {self.what}>"


class RecordedError(Exception):
    """Stands for an error of a class that only the recorded program knew."""

    def __init__(self, type_name: str, message: str) -> None:
        self.type_name = type_name
        self.message = message
        super().__init__(f"{type_name}: {message}")


@dataclass(frozen=True, slots=True)
class RecordedFailure:
    """An error as data."""

    type: str
    """Its class's name."""
    message: str
    code: str | None = None
    """Of errors of this library: their code, which stays the same."""
    facts: dict[str, Any] = field(default_factory=dict)

    def error(self) -> BaseException:
        """Return the error again: of its class, if that is this library's or Python's own."""
        if self.code is not None:
            cls = error_classes().get(self.code)
            if cls is not None:
                known = cls.__new__(cls)
                known.args = (self.message,)
                known.__dict__.update(self.facts)
                return known
        builtin = getattr(builtins, self.type, None)
        if isinstance(builtin, type) and issubclass(builtin, Exception):
            try:
                return builtin(self.message)
            except TypeError:  # those of Unicode take five arguments
                pass
        return RecordedError(self.type, self.message)


def keep_error(error: BaseException) -> RecordedFailure:
    """Return an error as data."""
    if isinstance(error, SpellError):
        facts = keep(error.facts)
        return RecordedFailure(type(error).__name__, str(error), type(error).code, facts)
    if isinstance(error, RecordedError):
        return RecordedFailure(error.type_name, error.message)
    # str() of a KeyError is the repr of its key.
    said = error.args[0] if len(error.args) == 1 and type(error.args[0]) is str else str(error)
    return RecordedFailure(type(error).__name__, said)


def keep(value: Any) -> Any:
    """Return a copy of a value that later changes do not reach, with gaps where there must be."""
    return _keep(value, 0)


def _keep(value: Any, depth: int) -> Any:
    cls = type(value)
    if cls in LEAF_TYPES or cls is Unrecorded or id(value) in _NAMES:
        if cls is datetime and value.tzinfo is None:
            return Unrecorded("datetime without a time zone")
        return value
    if depth >= MAX_DEPTH:
        return Unrecorded("nested too deep")
    if cls is dict:
        depth += 1
        return {
            name if type(name) in LEAF_TYPES else shorten(name): part
            if type(part) in _PLAIN
            else _keep(part, depth)
            for name, part in value.items()
        }
    if cls in (list, tuple):
        return cls(_keep(part, depth + 1) for part in value)
    if cls in (set, frozenset):
        parts = [_keep(part, depth + 1) for part in value]
        if any(type(part) is Unrecorded for part in parts):
            return Unrecorded(cls.__name__)
        return cls(parts)
    if is_model(value):
        try:
            return _keep(to_builtin(value), depth + 1)
        except SpellError:
            pass
    if isinstance(value, str):  # of an enum, too: what it equals
        return str.__str__(value)
    return Unrecorded(cls.__qualname__)


def store(value: Any, fits: Callable[[Any], bool] | None = None) -> Any:
    """Return what `keep` gave in a form that the codec takes; `restore` inverts it.

    `fits` says of one part whether the codec takes it; without, all are believed to.
    """
    cls = type(value)
    if cls is dict:
        # Most parts are leaves, and those are not worth a call.
        if fits is None:
            stored = {
                name: part if type(part) in LEAF_TYPES else store(part)
                for name, part in value.items()
            }
        else:
            stored = {
                name if fits(name) else shorten(name): store(part, fits)
                for name, part in value.items()
            }
        # A user's own dict may look like a mark.
        looks_so = _MARK in stored or _NAMED in stored
        return {_MARK: None, "value": stored} if looks_so else stored
    if cls is list or cls is tuple:
        if fits is None:
            return cls([part if type(part) in LEAF_TYPES else store(part) for part in value])
        return cls([store(part, fits) for part in value])
    if cls is Unrecorded:
        return {_MARK: value.what}
    if id(value) in _NAMES:
        return {_NAMED: _NAMES[id(value)]}
    if fits is not None and not fits(value):
        return {_MARK: cls.__name__}
    return value


def restore(stored: Any) -> Any:
    """Return what `store` was given."""
    cls = type(stored)
    if cls is dict:
        if _NAMED in stored:
            return _SENTINELS.get(stored[_NAMED], Unrecorded(str(stored[_NAMED])))
        if _MARK not in stored:
            return {name: restore(part) for name, part in stored.items()}
        what = stored[_MARK]
        if what is None:
            return {name: restore(part) for name, part in stored["value"].items()}
        return Unrecorded(what)
    if cls is list:
        return [restore(part) for part in stored]
    if cls is tuple:
        return tuple(restore(part) for part in stored)
    return stored


def gaps(value: Any, path: str) -> Iterator[str]:
    """Yield the path of everything that could not be recorded."""
    cls = type(value)
    if cls is Unrecorded:
        yield f"{path} ({value.what})"
    elif cls is dict:
        for name, part in value.items():
            yield from gaps(part, f"{path}.{name}")
    elif cls in (list, tuple):
        for place, part in enumerate(value):
            yield from gaps(part, f"{path}[{place}]")
