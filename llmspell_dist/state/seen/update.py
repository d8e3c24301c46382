"""`update`, looked at: before it reads, and around what it writes, in every attempt.

What it reads is written back, so no hook changes it: a masked value would replace the stored one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from llmspell_dist.state.interception import StateCall, arguments_of
from llmspell_dist.state.named import named_operation
from llmspell_dist.state.reads import Reads
from llmspell_dist.state.writes import Writes

if TYPE_CHECKING:
    from llmspell_dist.ack import Ack
    from llmspell_dist.classes import StateClass
    from llmspell_dist.revision import Revision
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.core import Core, Expiry
    from llmspell_dist.state.interception import Interceptor
    from llmspell_dist.state.reads import Found
    from llmspell_dist.state.steps import Steps

__all__ = ["seen_update"]


class _AnsweredError(Exception):
    """The read was not carried out: this is what the caller gets."""

    def __init__(self, value: Any) -> None:
        self.value = value
        super().__init__()


class _SeenFind(Reads):
    """Finds a value if its reader may, and remembers where it was."""

    def __init__(self, core: Core, interceptor: Interceptor) -> None:
        super().__init__(core)
        self._interceptor = interceptor
        self.place = ("", "")
        self.perform = partial(named_operation, core)

    def find(self, scope: str | Scope, key: str) -> Steps[Found | None]:
        """Return the live record of a key, unless hooks refuse or answer."""
        name = self.core.scope_key(scope).scope.text
        call = StateCall(
            "update", False, {"scope": name, "key": key}, self._carry_out, self.perform
        )
        call.redoable = call.cacheable = False
        instead = yield from self._interceptor.before(call)
        if instead is not None:
            raise _AnsweredError(instead.value)
        return (yield from call.carry_out(call.data))  # type: ignore[no-any-return]

    def _carry_out(self, data: dict[str, Any]) -> Steps[Found | None]:
        scope, key = arguments_of(data, ("scope", "key"))
        self.place = (self.core.scope_key(scope).scope.text, key)
        return super().find(*self.place)


class _SeenUpdate(Writes):
    """One update; its result is `answer`."""

    def __init__(self, interceptor: Interceptor, plain: Writes) -> None:
        self.finding = _SeenFind(plain.core, interceptor)
        super().__init__(plain.core, self.finding)
        self._interceptor = interceptor
        self._plain = plain
        self.answer: Any = None

    def set(
        self,
        scope: str | Scope,  # noqa: ARG002 - the hooks may have sent the read elsewhere
        key: str,  # noqa: ARG002
        value: Any,
        ttl: Expiry,
        state_class: StateClass | None,
        schema_version: int,
        ack: Ack | None,
        guard: tuple[int, Revision | None] | None = None,
    ) -> Steps[Any]:
        """Set the key under the revision that was read."""
        place = self.finding.place
        data = {
            "scope": place[0],
            "key": place[1],
            "value": value,
            "ttl": ttl,
            "state_class": state_class,
            "schema_version": schema_version,
            "ack": ack,
        }

        names = tuple(data)

        def carry_out(given: dict[str, Any]) -> Steps[Any]:
            scope, key, value, *rest = arguments_of(given, names)
            there = (self.core.scope_key(scope).scope.text, key) == place
            # Elsewhere nothing was read, so there is no revision to hold it to.
            held = guard if there else None
            ends, kind, version, level = rest
            yield from self._plain.set(scope, key, value, ends, kind, version, level, held)
            return value

        call = StateCall("update", True, data, carry_out, self.finding.perform, redoable=False)
        self.answer = yield from self._interceptor.around(call)
        return self.answer


def seen_update(
    interceptor: Interceptor,
    plain: Writes,
    scope: str | Scope,
    key: str,
    function: Callable[[Any], Any],
    default: Any,
    attempts: int,
    ttl: Expiry,
    ack: Ack | None,
    state_class: StateClass | None,
) -> Steps[Any]:
    """Replace a value by what a function makes of it; the caller gets what was written."""
    update = _SeenUpdate(interceptor, plain)
    try:
        yield from update.update(scope, key, function, default, attempts, ttl, ack, state_class)
    except _AnsweredError as answered:
        return answered.value
    return update.answer
