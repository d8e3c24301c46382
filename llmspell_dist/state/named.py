"""State operations by name and named arguments, for whoever has them as data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.scope import Scope
from llmspell_dist.state.partial import Partial
from llmspell_dist.state.reads import Reads
from llmspell_dist.state.scopes import Scopes
from llmspell_dist.state.writes import ANY, Writes
from llmspell_dist.ttl import KEEP

if TYPE_CHECKING:
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Steps

__all__ = ["check_named", "named_operation"]

_NEEDED: Final = object()
_PLACE: Final = {"scope": _NEEDED, "key": _NEEDED}
_STORED: Final = {"ttl": KEEP, "state_class": None}
_SET: Final = {**_PLACE, "value": _NEEDED, **_STORED, "schema_version": 1, "ack": None}

_ARGUMENTS: Final[dict[str, dict[str, Any]]] = {
    "get": {**_PLACE, "default": None},
    "exists": _PLACE,
    "set": _SET,
    "set_if_absent": _SET,
    "delete": {**_PLACE, "expected": ANY, "ack": None},
    "increment": {**_PLACE, "by": 1, **_STORED, "ack": None},
    "append": {**_PLACE, "items": _NEEDED, **_STORED},
    "merge": {**_PLACE, "mapping": _NEEDED, "remove": (), **_STORED},
    "expire": {**_PLACE, "ttl": _NEEDED},
    "persist": _PLACE,
    "set_many": {
        "scope": _NEEDED,
        "mapping": _NEEDED,
        **_STORED,
        "schema_version": 1,
        "ack": None,
    },
    "delete_many": {"scope": _NEEDED, "keys": _NEEDED, "ack": None},
    "clear": {"scope": _NEEDED},
    "copy_scope": {"source": _NEEDED, "target": _NEEDED},
    "move_scope": {"source": _NEEDED, "target": _NEEDED},
}


def check_named(name: str, parameters: Mapping[str, Any]) -> list[Any]:
    """Return the arguments of an operation in their order; what is unknown or missing is named."""
    expected = _ARGUMENTS.get(name) if type(name) is str else None
    if expected is None:
        raise InvalidArgumentError("operation", name, f"must be one of {', '.join(_ARGUMENTS)}")
    if not isinstance(parameters, Mapping):
        rule = "must be a mapping of arguments by name"
        raise InvalidArgumentError("parameters", parameters, rule)
    for given in parameters:
        if given not in expected:
            rule = f"must be an argument of {name}: {', '.join(expected)}"
            raise InvalidArgumentError("parameters", given, rule)
    arguments = []
    for argument, default in expected.items():
        value = parameters.get(argument, default)
        if value is _NEEDED:
            raise InvalidArgumentError(argument, None, f"must be given to {name}")
        _check_shape(argument, value)
        arguments.append(value)
    return arguments


def _check_shape(argument: str, value: Any) -> None:
    """Refuse what an operation would fail over before it has looked at it."""
    if argument in ("scope", "source", "target") and not isinstance(value, str | Scope):
        rule = "must be a Scope or text like agent:alice"
    elif argument == "key" and type(value) is not str:
        rule = "must be text"
    elif argument == "mapping" and not isinstance(value, Mapping):
        rule = "must be a mapping"
    elif argument == "items" and not isinstance(value, list | tuple):
        rule = "must be a list of what to append"
    elif argument in ("keys", "remove") and (
        isinstance(value, str | bytes) or not isinstance(value, Iterable)
    ):
        rule = "must be several keys, not one" if isinstance(value, str) else "must be keys"
    else:
        return
    raise InvalidArgumentError(argument, value, rule)


def named_operation(core: Core, name: str, parameters: Mapping[str, Any]) -> Steps[Any]:
    """Return the steps of an operation, as its method would run them."""
    arguments = check_named(name, parameters)
    reads = Reads(core)
    writes, partial, scopes = Writes(core, reads), Partial(core, reads), Scopes(core, reads)

    def get(scope: Any, key: Any, default: Any) -> Steps[Any]:
        found = yield from reads.find(scope, key)
        return default if found is None else found.value

    def append(scope: Any, key: Any, items: Any, *rest: Any) -> Steps[Any]:
        return partial.append(scope, key, tuple(items), *rest)

    methods: dict[str, Callable[..., Steps[Any]]] = {
        "get": get,
        "append": append,
        "exists": reads.exists,
        "merge": partial.merge,
        "clear": scopes.clear,
        "copy_scope": lambda source, target: scopes.transfer(source, target, False),
        "move_scope": lambda source, target: scopes.transfer(source, target, True),
    }
    method = methods.get(name) or getattr(writes, name)
    steps: Steps[Any] = method(*arguments)
    return steps
