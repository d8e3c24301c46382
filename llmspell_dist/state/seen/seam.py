"""How a method of the state is looked at: by name, with its arguments by name.

As long as nobody looks (`Interceptor.reading`, `.writing`), a method is the plain one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from llmspell_dist.state.core import field_of
from llmspell_dist.state.interception import StateCall, arguments_of
from llmspell_dist.state.named import named_operation
from llmspell_dist.state.reads import Reads
from llmspell_dist.state.seen.batches import item_calls

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmspell_dist.state.core import Core
    from llmspell_dist.state.interception import Interceptor
    from llmspell_dist.state.steps import Steps

__all__ = ["Seam", "listing", "looked_at"]

P = ParamSpec("P")
T = TypeVar("T")


class Seam:
    """Makes the calls of one core that an interceptor sees."""

    def __init__(self, core: Core, interceptor: Interceptor, plain: Any) -> None:
        self.core = core
        self.interceptor = interceptor
        self.plain = plain
        """The same operations, which nobody looks at."""
        self.perform = partial(named_operation, core)

    def reads(self) -> bool:
        """Whether somebody looks at reads here."""
        return self.interceptor.reading and self.interceptor.inside() <= 0

    def writes(self) -> bool:
        """Whether somebody looks at writes here."""
        return self.interceptor.writing and self.interceptor.inside() <= 0

    def call(
        self, name: str, writes: bool, method: Callable[..., Steps[Any]], given: dict[str, Any]
    ) -> StateCall:
        """Return the call of a method whose arguments have these names, in their order."""
        names = tuple(given)
        scope_key = self.core.scope_key(given["scope"])
        given["scope"] = scope_key.scope.text
        if "key" in given:
            field_of(scope_key, given["key"])

        def carry_out(data: dict[str, Any]) -> Steps[Any]:
            return method(*arguments_of(data, names))

        return StateCall(name, writes, given, carry_out, self.perform)


def looked_at(
    *, writes: bool, fits: Callable[[Any], str | None] | None = None, **renamed: str
) -> Callable[[Callable[Concatenate[Any, P], Steps[T]]], Callable[Concatenate[Any, P], Steps[T]]]:
    """Have somebody look at a method.

    Hooks see its arguments by its own names, or as `renamed` calls them; `fits` as of `StateCall`.
    """

    def decorate(
        method: Callable[Concatenate[Any, P], Steps[T]],
    ) -> Callable[Concatenate[Any, P], Steps[T]]:
        name = method.__name__
        own = list(signature(method).parameters)[1:]
        names = [renamed.get(argument, argument) for argument in own]

        @wraps(method)
        def seen(self: Any, /, *arguments: P.args, **named: P.kwargs) -> Steps[T]:
            seam: Seam = self.seam
            plain = getattr(seam.plain, name)
            if not (seam.writes() if writes else seam.reads()):
                return plain(*arguments, **named)  # type: ignore[no-any-return]
            given = {**dict(zip(names, arguments, strict=False)), **named}
            call = seam.call(name, writes, plain, given)
            call.fits = fits
            return seam.interceptor.around(call)

        return seen

    return decorate


def listing(
    seam: Seam,
    call: StateCall,
    items_of: Callable[[Any], Iterable[tuple[str, Any]]],
    made: Callable[[list[tuple[str, Any]]], Any],
) -> Steps[Any]:
    """List a scope: looked at once as a whole, then key by key."""
    interceptor = seam.interceptor
    instead = yield from interceptor.before(call)
    if instead is not None:
        return instead.value
    found = list(items_of((yield from call.carry_out(call.data))))
    where = call.data["scope"]
    calls = item_calls(seam.core, call.name, False, [(where, key, {}) for key, _ in found])
    result: list[tuple[str, Any]] = []
    for (key, value), one in zip(found, calls, strict=True):
        instead = yield from interceptor.before(one)
        if instead is not None:
            result.append((key, instead.value))
            continue
        there, what = arguments_of(one.data, ("scope", "key"))
        if (there, what) != (where, key):  # a hook sent it elsewhere; there may be nothing
            elsewhere = yield from Reads(seam.core).find(there, what)
            if elsewhere is None:
                continue
            value = elsewhere.value  # noqa: PLW2901
        result.append((key, (yield from interceptor.behind(one, value, None))))
    return made(result)
