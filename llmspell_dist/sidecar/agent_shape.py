"""Which parts of an agent a change may be of, and what it may make of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.agents.layout import (
    CONVERSATION,
    CORRELATION,
    EXECUTION,
    HOOKS,
    MAPS,
    MODIFIED,
    PROFILE,
    TOOLS,
    TOOLS_FAILED,
    TOOLS_SUCCESSFUL,
    Parts,
    assembled,
    execution_from,
)
from llmspell_dist.agents.messages import MessageCodec
from llmspell_dist.codec import is_number
from llmspell_dist.errors import InvalidArgumentError, SpellError

if TYPE_CHECKING:
    from llmspell_dist.scope import Scope

__all__ = ["check_change", "operation_of"]

_NUMBERS: Final = (TOOLS_SUCCESSFUL, TOOLS_FAILED)
_OF_TOOL: Final = re.compile(r"agent\.tool\..+\.(calls|failed|ms)", re.DOTALL)
_OPERATIONS: Final[dict[str, frozenset[str]]] = {
    PROFILE: frozenset({"set"}),
    MODIFIED: frozenset({"set"}),
    **dict.fromkeys((EXECUTION, HOOKS, CORRELATION), frozenset({"set", "delete"})),
    **dict.fromkeys(_NUMBERS, frozenset({"set", "increment", "delete"})),
    **dict.fromkeys(MAPS, frozenset({"merge", "replace", "delete"})),
    CONVERSATION: frozenset({"append", "replace", "delete"}),
}
_OF_SOMETHING: Final = frozenset({"append", "merge", "replace"})


def operation_of(one: Any) -> str:
    """Return what a change does: such as ``set``, ``append`` or ``merge``."""
    return str(one.__struct_config__.tag)


def check_change(scope: Scope, one: Any) -> None:
    """Refuse what is no part of an agent, and what that part cannot become."""
    key, op = one.key, operation_of(one)
    number = key in _NUMBERS or _OF_TOOL.fullmatch(key) is not None
    allowed = _OPERATIONS[TOOLS_FAILED] if number else _OPERATIONS.get(key)
    if allowed is None:
        raise InvalidArgumentError("key", key, "must be that of a part of an agent")
    if op not in allowed:
        raise InvalidArgumentError("op", op, f"must be one of {', '.join(sorted(allowed))}: {key}")
    if op == "delete":
        return
    if op in _OF_SOMETHING and not one.value and not getattr(one, "remove", None):
        raise InvalidArgumentError("value", None, f"must not be empty: {op} {key}")
    try:
        fits = _is_count(key, one.value) if number else _FITS[key](scope, one.value)
    except (SpellError, KeyError, TypeError, AttributeError, ValueError) as error:
        said = str(error) if isinstance(error, SpellError) else type(error).__name__
        raise _unfit(key, f" ({said})") from None
    if not fits:
        raise _unfit(key, "")


def _unfit(key: str, why: str) -> InvalidArgumentError:
    return InvalidArgumentError("value", None, f"must be what {key} can hold{why}")


def _is_count(key: str, value: Any) -> bool:
    return is_number(value) and value >= 0 and (type(value) is int or key.endswith(".ms"))


def _is_profile(scope: Scope, value: Any) -> bool:
    assembled(scope.id, scope.text, Parts({PROFILE: value}, {key: {} for key in MAPS}))
    return True


def _is_execution(_: Scope, value: Any) -> bool:
    execution_from(value)
    return type(value) is dict


def _is_conversation(scope: Scope, value: Any) -> bool:
    message = MessageCodec(None, scope.text, CONVERSATION).message  # type: ignore[arg-type]
    for each in value:
        message(each)
    return type(value) is list


def _is_hooks(_: Scope, value: Any) -> bool:
    last = value["last_execution"]
    return type(value["registrations"]) is list and (last is None or type(last) is datetime)


def _is_map(_: Scope, value: Any) -> bool:
    return type(value) is dict and all(type(name) is str for name in value)


def _is_tools(scope: Scope, value: Any) -> bool:
    return _is_map(scope, value) and all(
        name and (last is None or type(last) is datetime) for name, last in value.items()
    )


_FITS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    PROFILE: _is_profile,
    MODIFIED: lambda _, value: type(value) is datetime and value.utcoffset() is not None,
    EXECUTION: _is_execution,
    HOOKS: _is_hooks,
    CORRELATION: lambda _, value: value is not None,
    CONVERSATION: _is_conversation,
    **dict.fromkeys(MAPS, _is_map),
    TOOLS: _is_tools,
}
