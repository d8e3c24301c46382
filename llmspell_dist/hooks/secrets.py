"""Whether what a hook is told may lie around in the clear."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from llmspell_dist.classes import BEHAVIOURS, StateClass
from llmspell_dist.scope import Scope

if TYPE_CHECKING:
    from llmspell_dist.classes import ClassResolver
    from llmspell_dist.hooks.context import HookContext
    from llmspell_dist.state.core import Core

__all__ = ["SecretRule", "is_secret"]


def is_secret(core: Core) -> Callable[[HookContext], bool]:
    """Return what says of a context whether it may not be kept in the clear.

    Where there is a cipher nothing is: which class a key has may be known to its record alone.
    """
    if core.values.cipher is not None:
        return _always
    return SecretRule(core.rules)


def _always(_: HookContext) -> bool:
    return True


class SecretRule:
    """Says of a context whether it is about a key whose class is encrypted.

    Looked at are a `state_class` that was given, and every key that the data names: `key`, `keys`,
    the names in a `mapping`, each with `scope`. What has a scope and no key at all, as a whole
    scope that is read or copied, is secret if any rule of the client makes keys secret.
    """

    def __init__(self, rules: ClassResolver) -> None:
        self._rules = rules
        given = rules.rules
        classes = [given.default, *(one for _, one in (*given.patterns, *given.scopes))]
        self._any = any(BEHAVIOURS[one].encrypt for one in classes)

    def __call__(self, context: HookContext) -> bool:
        """Return whether the context is about something secret."""
        data = context.data
        state_class = data.get("state_class")
        if state_class is not None and BEHAVIOURS[StateClass.coerce(state_class)].encrypt:
            return True
        scope = data.get("scope")
        if not self._any or scope is None:
            return False
        keys = list(_keys(data))
        if not keys:
            return True
        parsed = Scope.coerce(scope)
        return any(BEHAVIOURS[self._rules.resolve(parsed, key)].encrypt for key in keys)


def _keys(data: dict[str, Any]) -> Iterator[str]:
    for name in ("key", "keys", "mapping", "items", "source_key", "target_key"):
        found = data.get(name)
        if type(found) is str:
            yield found
        elif isinstance(found, Iterable) and not isinstance(found, (str, bytes)):
            for one in found:
                yield one if type(one) is str else str(one[0])
