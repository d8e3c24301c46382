"""Hooks that keep account: of what models cost, and of who changed what."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from inspect import isawaitable
from typing import Any, Final

from llmspell_dist.classes import StateClass
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.fork import child_safe_lock
from llmspell_dist.hooks.builtin.secrets import redacted
from llmspell_dist.hooks.context import HookContext
from llmspell_dist.hooks.hook import HookMetadata, Priority
from llmspell_dist.hooks.points import is_before
from llmspell_dist.hooks.results import Cancel
from llmspell_dist.masking import MASK

__all__ = ["AuditHook", "CostTrackingHook", "Price"]

_PER: Final = 1_000_000
_NAMES: Final = 10_000


@dataclass(frozen=True, slots=True, init=False)
class Price:
    """What a model costs, for a million tokens in and out.

    Decimals, ints or floats; of a float the digits that Python shows count, so 0.1 is a tenth.
    """

    input: Decimal
    output: Decimal

    def __init__(self, input: Decimal | float, output: Decimal | float) -> None:  # noqa: A002 - the field's name
        object.__setattr__(self, "input", _amount("input", input))
        object.__setattr__(self, "output", _amount("output", output))


def _amount(argument: str, given: Any) -> Decimal:
    rule = "must be a Decimal, int or float of at least 0, and finite"
    if type(given) not in (int, float) and not isinstance(given, Decimal):
        raise InvalidArgumentError(argument, given, rule)
    amount = Decimal(repr(given)) if type(given) is float else Decimal(given)
    if not amount.is_finite() or amount < 0:
        raise InvalidArgumentError(argument, given, rule)
    return amount


@dataclass(slots=True)
class _Sum:
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: Decimal = Decimal(0)
    unpriced: str | None = None
    """The model without a price that was used first, if one was."""


class _Sums:
    """Sums by name, of so many names: the one that was used least recently goes first."""

    def __init__(self) -> None:
        self._sums: OrderedDict[Hashable, _Sum] = OrderedDict()

    def find(self, name: Hashable) -> _Sum:
        """Return the sum of a name, which counts as used; an empty one if there is none."""
        found = self._sums.get(name)
        if found is None:
            return _Sum()
        self._sums.move_to_end(name)
        return found

    def of(self, name: Hashable) -> _Sum:
        """Return the sum of a name, to be added to."""
        found = self._sums[name] = self.find(name)
        if len(self._sums) > _NAMES:
            self._sums.popitem(last=False)
        return found

    def items(self) -> list[tuple[Any, _Sum]]:
        """Return names and sums."""
        return list(self._sums.items())


class CostTrackingHook:
    """Adds up tokens and costs by model and by scope, and stops what is over its budget.

    Behind whatever uses a model (``AFTER_AGENT_EXECUTION``, ``AFTER_TOOL_EXECUTION``, a point of
    your own): the context's data has ``usage`` with ``model``, ``input_tokens``, ``output_tokens``.
    Before it: `Cancel` once the budget is used up. The scope is that of the data, else the name of
    the component. A model without a price costs what `default` says. Without that it is counted,
    costs nothing and is in `unpriced`; where there is a budget, which it may have used up, nothing
    more passes: once it was used (with `per_scope`: there), and where ``model`` in the data before
    names one.

    What was spent in all is always known. By scope, by model and by both it is known of the 10,000
    that were used or asked about last: a scope beyond that is forgotten, and with `per_scope` its
    budget begins anew if it comes back. `unpriced` names the first 10,000.
    """

    metadata = HookMetadata("cost tracking", "tokens and costs by model and scope", Priority.LOW)

    def __init__(
        self,
        prices: Mapping[str, Price],
        *,
        budget: Decimal | float | None = None,
        per_scope: bool = False,
        default: Price | None = None,
    ) -> None:
        if not isinstance(prices, Mapping):
            raise InvalidArgumentError("prices", prices, "must be a mapping of models to prices")
        if default is not None and not isinstance(default, Price):
            raise InvalidArgumentError("default", default, "must be a Price, or None")
        for model, price in prices.items():
            if not isinstance(price, Price):
                raise InvalidArgumentError(f"prices[{model!r}]", price, "must be a Price")
        self._prices = dict(prices)
        self._default = default
        self._budget = None if budget is None else _amount("budget", budget)
        self._per_scope = per_scope
        self._lock = child_safe_lock()
        self._total = _Sum()
        self._by_scope, self._by_model, self._by_both = _Sums(), _Sums(), _Sums()
        self.unpriced: set[str] = set()
        """Models that were used and have no price."""

    def execute(self, ctx: HookContext) -> Cancel | None:
        """Add up what was used; refuse what is over budget."""
        scope = str(ctx.data.get("scope") or ctx.component.name)
        usage = ctx.data.get("usage")
        if usage is not None:
            self._add(scope, usage)
        if self._budget is None or not is_before(ctx.point):
            return None
        with self._lock:
            used = self._by_scope.find(scope) if self._per_scope else self._total
            spent, unpriced = used.cost, used.unpriced
        wanted = ctx.data.get("model")
        if isinstance(wanted, str) and self._price(wanted) is None:
            unpriced = wanted
        of = f" of {scope}" if self._per_scope else ""
        if unpriced is not None:
            return Cancel(f"the budget{of} cannot be kept: model {unpriced} has no price")
        if spent < self._budget:
            return None
        return Cancel(f"the budget{of} is used up: {spent} of {self._budget}")

    def _price(self, model: str) -> Price | None:
        return self._prices.get(model, self._default)

    def _add(self, scope: str, usage: Any) -> None:
        try:
            model = str(usage["model"])
            tokens = [int(usage.get(name, 0)) for name in ("input_tokens", "output_tokens")]
        except (TypeError, KeyError, AttributeError, ValueError):
            rule = "must be a mapping with model, input_tokens and output_tokens"
            raise InvalidArgumentError("usage", type(usage).__name__, rule) from None
        if min(tokens) < 0:
            raise InvalidArgumentError("usage", tokens, "must not have negative tokens")
        price = self._price(model)
        cost = Decimal(0)
        if price is not None:
            cost = (tokens[0] * price.input + tokens[1] * price.output) / _PER
        with self._lock:
            if price is None and len(self.unpriced) < _NAMES:
                self.unpriced.add(model)
            for total in (
                self._total,
                self._by_scope.of(scope),
                self._by_model.of(model),
                self._by_both.of((model, scope)),
            ):
                total.calls += 1
                total.input_tokens += tokens[0]
                total.output_tokens += tokens[1]
                total.cost += cost
                if price is None and total.unpriced is None:
                    total.unpriced = model

    def _sum(self, model: str | None, scope: str | None) -> _Sum:
        with self._lock:
            if model is None:
                found = self._total if scope is None else self._by_scope.find(scope)
            elif scope is None:
                found = self._by_model.find(model)
            else:
                found = self._by_both.find((model, scope))
            return replace(found)

    def cost(self, *, model: str | None = None, scope: str | None = None) -> Decimal:
        """Return what was spent, on a model or in a scope if that is said."""
        return self._sum(model, scope).cost

    def tokens(self, *, model: str | None = None, scope: str | None = None) -> tuple[int, int]:
        """Return the tokens in and out."""
        found = self._sum(model, scope)
        return found.input_tokens, found.output_tokens

    def stats(self) -> dict[str, Any]:
        """Return calls, tokens and costs by model."""
        with self._lock:
            return {
                model: {
                    "calls": one.calls,
                    "tokens": (one.input_tokens, one.output_tokens),
                    "cost": one.cost,
                }
                for model, one in self._by_model.items()
            }


class AuditHook:
    """Writes down who changed what and when, where it stays.

    For ``AFTER_STATE_WRITE`` (and ``AFTER_STATE_READ``, to know who looked); queued, if operations
    need not wait for it. `sink` takes one entry, a dict of plain values; it may be a coroutine
    function: one that appends to a list in shared state is ``to_list``. Without `values` no value
    is written down; with it secrets are masked, and values of the class Sensitive as a whole.
    """

    metadata = HookMetadata("audit", "who changed what", Priority.LOW)

    def __init__(self, sink: Callable[[dict[str, Any]], Any], *, values: bool = False) -> None:
        if not callable(sink):
            raise InvalidArgumentError("sink", sink, "must be callable")
        self._sink = sink
        self._values = values

    @classmethod
    def to_list(cls, state: Any, scope: str, key: str, *, values: bool = False) -> AuditHook:
        """Append entries to a list in shared state; `state`: ``spell.state``, of either surface."""
        return cls(lambda entry: state.append(scope, key, entry), values=values)

    def execute(self, ctx: HookContext) -> Any:
        """Write it down."""
        entry = {
            "time": ctx.timestamp,
            "point": str(ctx.point),
            "operation": ctx.operation_type,
            "scope": ctx.data.get("scope"),
            "key": ctx.data.get("key"),
            "actor": ctx.actor,
            "correlation_id": ctx.correlation_id,
            "causation_id": ctx.causation_id,
            "error": None if ctx.error is None else type(ctx.error).__name__,
        }
        if ctx.data.get("target") is not None:  # of a copy or a move
            entry["target"] = ctx.data["target"]
        if "batch_id" in ctx.metadata:
            entry["batch"] = ctx.metadata["batch_id"]
        if self._values and "value" in ctx.data:
            sensitive = ctx.data.get("state_class") == StateClass.SENSITIVE
            entry["value"] = MASK if sensitive else redacted(ctx.data["value"])
        written = self._sink(entry)
        return _unanswered(written) if isawaitable(written) else None


async def _unanswered(written: Any) -> None:
    """Wait for what a sink does; what it returns is no answer of the hook."""
    await written
