"""The points at which hooks see, change and refuse what is stored of agents, and what is read.

They stand around an operation as its caller knows it, not around the commits and attempts that it
takes: whatever a conflict makes of it, hooks run once for each call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from llmspell_dist.errors import InvalidArgumentError, SpellError
from llmspell_dist.scope import Scope
from llmspell_dist.state.interception import followed
from llmspell_dist.state.steps import CallerLeftError

if TYPE_CHECKING:
    from llmspell_dist.state.points import Points
    from llmspell_dist.state.steps import Steps

__all__ = ["Passing", "wanted"]

T = TypeVar("T")
_POINTS: Final = {
    kind: (f"agent:before_{kind}", f"agent:after_{kind}")
    for kind in ("save", "load", "update", "delete")
}


def wanted(points: Points, kind: str) -> bool:
    """Whether hooks stand before or behind the operations of a kind."""
    return points.wants(*_POINTS[kind])


class _Caller:
    """Whoever waits for an operation."""

    left = False


@dataclass(slots=True)
class Passing:
    """One operation on its way past its points."""

    points: Points
    kind: str
    """save, load, update or delete."""
    agent_id: str
    operation: str
    """The method."""
    data: Mapping[str, Any]
    """What hooks are told beside agent, scope and operation."""
    changeable: Collection[str] = ()
    """The names whose values a hook before it may change."""
    check: Callable[[dict[str, Any]], object] | None = None
    """Refuses what hooks made of them."""

    def carry_out(
        self,
        steps: Callable[[dict[str, Any]], Steps[T]],
        behind: Callable[[T], Mapping[str, Any]],
    ) -> Steps[T]:
        """Carry it out with the data as the hooks before it left it, then show how it ended.

        `behind`: what hooks behind it are told of what it gave. Once its commit is sent they are
        told too if the caller is cancelled.
        """
        before, after = _POINTS[self.kind]
        told = {
            "agent_id": self.agent_id,
            "scope": Scope.agent(self.agent_id).text,
            "operation": self.operation,
            **self.data,
        }
        data = told
        if self.points.wants(before):
            data = yield from self._at(before, told, check=self._judge(told))
        if not self.points.wants(after):
            return (yield from steps(data))
        caller = _Caller()
        try:
            result = yield from followed(steps(data), (caller,), CallerLeftError)
        except SpellError as error:
            yield from self._at(after, {**data, **dict.fromkeys(_BEHIND[self.kind])}, error=error)
            if caller.left:
                raise CallerLeftError from error
            raise
        seen = {**data, **behind(result)}
        yield from self._at(after, seen, check=_looks(seen) if self.kind == "load" else None)
        if caller.left:
            raise CallerLeftError
        return result

    def _at(
        self,
        point: str,
        told: dict[str, Any],
        *,
        error: SpellError | None = None,
        check: Callable[[dict[str, Any]], object] | None = None,
    ) -> Steps[dict[str, Any]]:
        data, _ = yield from self.points.at(
            point,
            ("agent", self.agent_id),
            dict(told),
            operation=self.operation,
            error=error,
            refusable=check is not None,
            check=check,
        )
        return data

    def _judge(self, told: Mapping[str, Any]) -> Callable[[dict[str, Any]], None]:
        look = _looks(told, self.changeable)

        def judge(data: dict[str, Any]) -> None:
            look(data)
            if self.check is not None:
                self.check(data)

        return judge


_BEHIND: Final = {
    "save": ("revision",),
    "update": ("revision",),
    "load": ("revision", "value"),
    "delete": ("result",),
}
"""What hooks behind an operation are told of what it gave; None if it failed."""


def _looks(
    told: Mapping[str, Any], changeable: Collection[str] = ()
) -> Callable[[dict[str, Any]], None]:
    """Return what refuses data with other names, or with others than these changed."""

    def look(data: dict[str, Any]) -> None:
        if data.keys() != told.keys():
            known = ", ".join(told)
            raise InvalidArgumentError("data", sorted(data), f"must have these names: {known}")
        for name, value in told.items():
            found = data[name]
            if name not in changeable and found is not value and found != value:
                raise InvalidArgumentError(name, found, "must stay as it is at this point")

    return look
