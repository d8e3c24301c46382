"""Forked children that do one thing and tell whether it went well."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable

__all__ = ["ended_well", "in_a_fork"]


def in_a_fork(work: Callable[[], object]) -> int:
    """Run a function in a forked child, and return its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def ended_well(pid: int) -> bool:
    """Wait for a child."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == 0
