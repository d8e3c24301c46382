"""Whether code runs inside a hook: hooks do not run for what hooks do, unless they ask for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Final

from llmspell_dist.errors import LimitError

__all__ = ["MAX_DEPTH", "deeper", "enter", "inside", "left_alone", "nested", "surface"]

MAX_DEPTH: Final = 8
"""So many hooks may be inside one another, where they ask for it."""

_depth: ContextVar[int] = ContextVar("llmspell_dist.hooks", default=0)
"""0: outside; n: inside n hooks, quiet; -n: inside n hooks, and the innermost asked for more."""

left_alone: Final[ContextVar[bool]] = ContextVar("llmspell_dist.hooks.left", default=False)
"""Whether this is a hook that was left alone at its limit: what it changes has no effect."""

surface: Final = _depth.reset


inside: Final = _depth.get
"""Positive: hooks do not run for what is done here."""


enter: Final = _depth.set
"""Go inside the first hook, for who knows that it is the first; undone by `surface`."""


def deeper() -> Token[int]:
    """Go inside a hook; undone by `surface`."""
    now = _depth.get()
    if not now:
        return _depth.set(1)
    if abs(now) >= MAX_DEPTH:
        raise LimitError("hooks inside one another", abs(now) + 1, MAX_DEPTH)
    return _depth.set(abs(now) + 1)


@contextmanager
def nested() -> Iterator[None]:
    """Let hooks run for what is done in the block, though it is inside a hook."""
    token = _depth.set(-abs(_depth.get()))
    try:
        yield
    finally:
        _depth.reset(token)
