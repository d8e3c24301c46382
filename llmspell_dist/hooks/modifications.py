"""Changes to a recorded context before its replay, each at a path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.hooks.kept import keep

__all__ = ["Modification", "modifications_of", "modified"]

_PATH: Final = re.compile(r"context\.(data|metadata)((?:\.[^.\[\]]+|\[\d+\])+)")
_STEP: Final = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")
RULE: Final = "must look like context.data.name, context.data.a.b[0] or context.metadata.name"


@dataclass(frozen=True, slots=True)
class Modification:
    """One change: the value at a path of the context is another in the replay."""

    path: str
    """``context.data.X`` or ``context.metadata.X``; ``.name`` and ``[place]`` lead further in."""
    value: Any
    enabled: bool = True
    """A modification that is not is left out, and stays in the list."""
    create: bool = False
    """Whether names that are missing are made; else a path must lead to what is there."""

    def __post_init__(self) -> None:
        if type(self.path) is not str or _PATH.fullmatch(self.path) is None:
            raise InvalidArgumentError("path", self.path, RULE)
        if self.path.startswith("context.metadata") and type(self.value) is not str:
            raise InvalidArgumentError("value", self.value, "must be text: it is metadata")


def modifications_of(
    given: Mapping[str, Any] | Iterable[Modification],
) -> tuple[Modification, ...]:
    """Return modifications, which may be given as a mapping from paths to values."""
    if isinstance(given, Mapping):
        return tuple(Modification(path, value) for path, value in given.items())
    rule = "must be Modifications, or a mapping from paths to values"
    if not isinstance(given, Iterable):
        raise InvalidArgumentError("modifications", given, rule)
    found = tuple(given)
    for one in found:
        if not isinstance(one, Modification):
            raise InvalidArgumentError("modifications", one, rule)
    return found


def modified(context: dict[str, Any], changes: Iterable[Modification]) -> dict[str, Any]:
    """Return a recorded context with the enabled modifications; the given one stays as it is.

    `InvalidArgumentError` names a path that leads nowhere: a misspelt one must not be a replay of
    what was.
    """
    changed: dict[str, Any] = {**context, "data": keep(context["data"])}
    changed["metadata"] = dict(context["metadata"])
    for change in changes:
        if change.enabled:
            _put(changed, change)
    return changed


def _put(context: dict[str, Any], change: Modification) -> None:
    found = _PATH.fullmatch(change.path)
    assert found is not None  # noqa: S101 - checked when it was made
    steps: list[str | int] = [name or int(place) for name, place in _STEP.findall(found[2])]
    at: Any = context[found[1]]
    for here, step in enumerate(steps[:-1]):
        if change.create and isinstance(step, str) and type(at) is dict:
            at.setdefault(step, {} if isinstance(steps[here + 1], str) else [])
        at = at[_there(at, step, change)]
    last = steps[-1]
    if not (change.create and isinstance(last, str) and type(at) is dict):
        _there(at, last, change)
    at[last] = keep(change.value)


def _there(at: Any, step: str | int, change: Modification) -> Any:
    """Return a step that leads to something."""
    named = isinstance(step, str) and type(at) is dict and step in at
    placed = isinstance(step, int) and type(at) is list and step < len(at)
    if not (named or placed):
        raise _not_there(change, step)
    return step


def _not_there(change: Modification, step: str | int) -> InvalidArgumentError:
    where = f"[{step}]" if isinstance(step, int) else step
    rule = f"must lead into the recorded context, which has no {where} there"
    return InvalidArgumentError("path", change.path, rule)
