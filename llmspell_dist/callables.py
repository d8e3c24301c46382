"""Checks of what callers give to be called later, when nobody sees the mistake."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

from llmspell_dist.errors import InvalidArgumentError

__all__ = ["check_takes_one"]


def check_takes_one(argument: str, value: Any, call: Callable[..., Any], what: str) -> None:
    """Refuse `value`, given as `argument`, if its `call` does not take one argument: `what`."""
    try:
        takes = signature(call)
    except (TypeError, ValueError):
        return  # a builtin may have none
    try:
        takes.bind(None)
    except TypeError as error:
        rule = f"must take one argument, {what}: {error}"
        raise InvalidArgumentError(argument, value, rule) from None
