"""Hooks in a forked child, while threads of the parent are busy with them."""

from __future__ import annotations

import os
import threading

import pytest
from fix_forks import ended_well, in_a_fork

from llmspell_dist.hooks.registry import Registry

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
]


def test_a_child_can_use_what_a_thread_of_the_parent_held() -> None:
    """A lock that was held at the fork is open in the child: nobody there would ever open it."""
    registry = Registry()
    holding, enough = threading.Event(), threading.Event()

    def hold() -> None:
        with registry._lock:
            holding.set()
            enough.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert holding.wait(10)

        def use() -> None:
            assert registry._lock.acquire(timeout=5), "still held"
            registry._lock.release()

        assert ended_well(in_a_fork(use))
    finally:
        enough.set()
        holder.join(10)
