"""Hooks that keep account: of what models cost, and of who changed what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from inspect import isawaitable
from typing import Any, Final

from llmspell_dist.classes import StateClass
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.fork import child_safe_lock
from llmspell_dist.hooks.builtin.secrets import MASK, redacted
from llmspell_dist.hooks.context import HookContext
from llmspell_dist.hooks.hook import HookMetadata, Priority
from llmspell_dist.hooks.results import Cancel

__all__ = ["AuditHook", "CostTrackingHook", "Price"]

_PER: Final = 1_000_000


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


class CostTrackingHook:
    """Adds up tokens and costs by model and by scope, and stops what is over its budget.

    Behind whatever uses a model (``AFTER_AGENT_EXECUTION``, ``AFTER_TOOL_EXECUTION``, a point of
    your own): the context's data has ``usage`` with ``model``, ``input_tokens``, ``output_tokens``.
    Before it: `Cancel` once the budget is used up. The scope is that of the data, else the name of
    the component. A model without a price costs what `default` says. Without that it is counted,
    costs nothing and is in `unpriced`; where there is a budget, which it may have used up, nothing
    more passes: once it was used (with `per_scope`: there), and where ``model`` in the data before
    names one.
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
        self._sums: dict[tuple[str, str], _Sum] = {}
        self.unpriced: set[str] = set()

    def execute(self, ctx: HookContext) -> Cancel | None:
        """Add up what was used; refuse what is over budget."""
        scope = str(ctx.data.get("scope") or ctx.component.name)
        usage = ctx.data.get("usage")
        if usage is not None:
            self._add(scope, usage)
        if self._budget is None or not _is_before(ctx.point):
            return None
        spent = self.cost(scope=scope if self._per_scope else None)
        of = f" of {scope}" if self._per_scope else ""
        unpriced = self._unpriced(scope, ctx.data.get("model"))
        if unpriced is not None:
            return Cancel(f"the budget{of} cannot be kept: model {unpriced} has no price")
        if spent < self._budget:
            return None
        return Cancel(f"the budget{of} is used up: {spent} of {self._budget}")

    def _unpriced(self, scope: str, wanted: Any) -> str | None:
        """Return a model without a price that was used, or is about to be."""
        if self._default is not None:
            return None
        if isinstance(wanted, str) and wanted not in self._prices:
            return wanted
        with self._lock:
            used = [model for model, at in self._sums if not self._per_scope or at == scope]
        return next((model for model in used if model not in self._prices), None)

    def _add(self, scope: str, usage: Any) -> None:
        try:
            model = str(usage["model"])
            tokens = [int(usage.get(name, 0)) for name in ("input_tokens", "output_tokens")]
        except (TypeError, KeyError, AttributeError, ValueError):
            rule = "must be a mapping with model, input_tokens and output_tokens"
            raise InvalidArgumentError("usage", type(usage).__name__, rule) from None
        if min(tokens) < 0:
            raise InvalidArgumentError("usage", tokens, "must not have negative tokens")
        price = self._prices.get(model, self._default)
        with self._lock:
            total = self._sums.setdefault((model, scope), _Sum())
            total.calls += 1
            total.input_tokens += tokens[0]
            total.output_tokens += tokens[1]
            if price is None:
                self.unpriced.add(model)
            else:
                cost = tokens[0] * price.input + tokens[1] * price.output
                total.cost += cost / _PER

    def _matching(self, model: str | None, scope: str | None) -> list[_Sum]:
        with self._lock:
            return [
                total
                for (of, where), total in self._sums.items()
                if model in (None, of) and scope in (None, where)
            ]

    def cost(self, *, model: str | None = None, scope: str | None = None) -> Decimal:
        """Return what was spent, on a model or in a scope if that is said."""
        return sum((total.cost for total in self._matching(model, scope)), Decimal(0))

    def tokens(self, *, model: str | None = None, scope: str | None = None) -> tuple[int, int]:
        """Return the tokens in and out."""
        found = self._matching(model, scope)
        return sum(one.input_tokens for one in found), sum(one.output_tokens for one in found)

    def stats(self) -> dict[str, Any]:
        """Return calls, tokens and costs by model."""
        models = dict.fromkeys(model for model, _ in list(self._sums))
        return {
            model: {
                "calls": sum(one.calls for one in self._matching(model, None)),
                "tokens": self.tokens(model=model),
                "cost": self.cost(model=model),
            }
            for model in models
        }


def _is_before(point: str) -> bool:
    return point.startswith("Before") or ":before_" in point


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
        return _quietly(written) if isawaitable(written) else None


async def _quietly(written: Any) -> None:
    await written
