"""What a webhook is sent and what it may answer: a hook's context and its result, as JSON."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.hooks import CONTINUE, ForkOperation, HookResult
from llmspell_dist.hooks.kept import Unrecorded
from llmspell_dist.hooks.recording import keep_context
from llmspell_dist.ttl import KEEP

if TYPE_CHECKING:
    from llmspell_dist.hooks import HookContext

__all__ = ["RESULTS", "context_document", "result_from", "shown"]

RESULTS: Final = {cls.name: cls for cls in HookResult.__subclasses__()}


def context_document(name: str, context: HookContext, *, secret: bool) -> dict[str, Any]:
    """Return what a hook is told; of an operation on secret keys only which ones they are."""
    kept = keep_context(context)
    operation = kept["operation"]
    data = kept["data"]
    if secret:
        data = {part: value for part, value in data.items() if part in _NAMES}
    document = {
        "id": context.id,
        "hook": name,
        "point": kept["point"],
        "component": dict(zip(("type", "name", "id"), kept["component"], strict=True)),
        "data": shown(data),
        "metadata": shown(kept["metadata"]),
        "operation": None,
        "timestamp": kept["timestamp"],
        "correlation_id": kept["correlation_id"],
        "causation_id": kept["causation_id"],
        "actor": kept["actor"],
        "secret": secret,
    }
    if operation is not None:
        error = operation["error"]
        document["operation"] = {
            "type": operation["type"],
            "id": operation["id"],
            "result": None if secret else shown(operation["result"]),
            "error": None if error is None else {"type": error[0], "message": error[1]},
        }
    return document


_NAMES: Final = frozenset(("scope", "key", "keys", "source", "target", "state_class"))


def shown(value: Any) -> Any:
    """Return kept data as plain data: what could not be kept is a text that says so."""
    if type(value) is Unrecorded or value is KEEP:
        return repr(value)
    if type(value) is dict:
        return {name: shown(part) for name, part in value.items()}
    if type(value) in (list, tuple):
        return [shown(part) for part in value]
    return value


def result_from(document: Any) -> HookResult:
    """Return the result that an answer says: ``{"result": "cancel", "reason": "…"}``.

    Anything else is an `InvalidArgumentError`. No answer is to go on.
    """
    if document is None:
        return CONTINUE
    name = document.get("result") if type(document) is dict else None
    if type(name) is not str or name not in RESULTS:
        rule = f"must be an object whose result is one of {', '.join(RESULTS)}"
        raise InvalidArgumentError("answer", document, rule)
    given = dict(document)
    cls = RESULTS[given.pop("result")]
    known = {
        one.name: one.default is MISSING and one.default_factory is MISSING for one in fields(cls)
    }
    if not given.keys() <= known.keys() or any(
        needed and name not in given for name, needed in known.items()
    ):
        rule = f"must have the parts of {cls.name}: {', '.join(known) or 'none'}"
        raise InvalidArgumentError("answer", sorted(given), rule)
    if "operations" in given:
        given["operations"] = _forked(given["operations"])
    return cls(**given)


def _forked(operations: Any) -> tuple[ForkOperation, ...]:
    rule = "must be objects with id, operation_type and parameters"
    if type(operations) is not list:
        raise InvalidArgumentError("operations", operations, rule)
    found = []
    for one in operations:
        if type(one) is not dict or not one.keys() <= {"id", "operation_type", "parameters"}:
            raise InvalidArgumentError("operations", one, rule)
        operation_id, kind, parameters = (
            one.get("id"),
            one.get("operation_type"),
            one.get("parameters", {}),
        )
        if type(operation_id) is not str or type(kind) is not str or type(parameters) is not dict:
            raise InvalidArgumentError("operations", one, rule)
        found.append(ForkOperation(operation_id, kind, parameters))
    return tuple(found)
