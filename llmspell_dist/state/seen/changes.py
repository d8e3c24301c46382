"""What watches give out, looked at: once before they begin, then behind each change."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.state.interception import NOTHING_SEEN, Interceptor, StateCall
from llmspell_dist.state.named import named_operation

if TYPE_CHECKING:
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.model import Change
    from llmspell_dist.state.steps import Steps

__all__ = ["SeenChanges"]


class SeenChanges:
    """Has somebody look at what is given out under the name of an operation."""

    def __init__(self, core: Core, name: str, interceptor: Interceptor = NOTHING_SEEN) -> None:
        self._interceptor = interceptor
        self._name = name
        self._perform = partial(named_operation, core)

    @property
    def wanted(self) -> bool:
        """Whether somebody looks at reads here."""
        return self._interceptor.reading and self._interceptor.inside() <= 0

    def begin(self, data: dict[str, Any]) -> Steps[None]:
        """Let it be refused before it begins; a watch can neither be answered nor sent away."""
        call = self._call(dict(data))
        instead = yield from self._interceptor.before(call)
        if instead is not None or call.data != data:
            rule = f"must stay as it is: a hook cannot answer a {self._name} or send it elsewhere"
            raise InvalidArgumentError("scope", data["scope"], rule)

    def change(self, change: Change) -> Steps[Change]:
        """Return a change as its reader may see it; one without a value is nobody's secret."""
        if not change.has_value:
            return change
        value = yield from self.value(change.scope, change.key, change.value)
        return change if value is change.value else replace(change, value=value)

    def value(self, scope: str, key: str, value: Any) -> Steps[Any]:
        """Return a value as its reader may see it."""
        call = self._call({"scope": scope, "key": key})
        return (yield from self._interceptor.behind(call, value, None))

    def _call(self, data: dict[str, Any]) -> StateCall:
        return StateCall(self._name, False, data, _given, self._perform, redoable=False)


def _given(data: dict[str, Any]) -> Steps[Any]:
    raise AssertionError("what is given out is there already", data)
