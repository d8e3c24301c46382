"""Writes the blocking surface from the asynchronous one, so that nobody keeps two by hand.

``python tools/make_blocking.py`` rewrites ``llmspell_dist/blocking/_*.py``; with ``--check`` it
only says whether they are up to date (the tests and the lint environment ask that).
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from blocking_shells import Shells

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {
    "llmspell_dist/state/manager.py": "llmspell_dist/blocking/_manager.py",
    "llmspell_dist/log.py": "llmspell_dist/blocking/_log.py",
    "llmspell_dist/leases/shell.py": "llmspell_dist/blocking/_leases.py",
    "llmspell_dist/correlation/service.py": "llmspell_dist/blocking/_correlation.py",
    "llmspell_dist/agents/manager.py": "llmspell_dist/blocking/_agents.py",
    "llmspell_dist/agents/agent.py": "llmspell_dist/blocking/_agent.py",
    "llmspell_dist/hooks/history.py": "llmspell_dist/blocking/_hook_history.py",
    "llmspell_dist/agents/effect.py": "llmspell_dist/blocking/_effect.py",
}
SHELLS = {
    "llmspell_dist/blocking/_backups.py": (
        "Backups",
        {
            "llmspell_dist/backup/service.py": ("Backups", "BackupStore"),
            "llmspell_dist/backup/archive/shipper.py": ("Shipper",),
            "llmspell_dist/backup/schedules.py": ("ScheduledBackups",),
        },
    ),
}
"""Whose coroutines run in the background: module, what it is about, classes by source."""
SURFACES = {"StoredBackups": "llmspell_dist/backup/stored.py"}
"""Where the classes stand that those inherit methods from."""
NOTICE = "# Written by tools/make_blocking.py from {source}: change that.\n"

RULES = [
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAsyncIterator\b", "Iterator"),
    (r"\bAwaitable\[T\]", "T"),
    (r"\bAwaitable\[None\]", "None"),
    (
        r"AsyncIterator, Awaitable, Callable, Iterable, Mapping",
        "Callable, Iterable, Iterator, Mapping",
    ),
    (r"Iterator, Awaitable, Callable, Iterable, Mapping", "Callable, Iterable, Iterator, Mapping"),
    (r"\b__aenter__\b", "__enter__"),
    (r"\b__aexit__\b", "__exit__"),
    (
        r"llmspell_dist\.state\.driver import AsyncDriver",
        "llmspell_dist.blocking.driver import SyncDriver",
    ),
    (r"\bAsyncDriver\b", "SyncDriver"),
    (
        r"watch\.service import Watches\n( +from llmspell_dist\.[.\w]+ import OnTrimmed), Watch",
        r"blocking.watching import Watch, Watches\n\1",
    ),
    (
        r"llmspell_dist\.leases\.holding import Lease\b",
        "llmspell_dist.blocking.leases import Lease",
    ),
    (r"llmspell_dist\.agents\.(agent|effect) import\b", r"llmspell_dist.blocking._\1 import"),
    (r"\basynccontextmanager\b", "contextmanager"),
    (r"\bAsyncLeases\b", "BlockingLeases"),
    (r"\bcall_async\b", "call_blocking"),
    (
        r"(?s)A coroutine function is cancelled at the limit; .*? returns later is dropped\.",
        "A thread cannot be interrupted at the limit; others then see an unknown outcome.",
    ),
    (r"Correlations, asynchronous", "Correlations, blocking"),
    (r"(once|ended); asynchronous", r"\1; blocking"),
    (r"told and answered; asynchronous", "told and answered; blocking"),
    (r"shared state by scope and key, asynchronous", "shared state by scope and key, blocking"),
]
"""What differs between the two: the words that make a coroutine, and who carries the steps out."""


def translated(source: str, text: str) -> str:
    """Return the blocking twin of a module."""
    if source == "llmspell_dist/log.py":
        text = _only_the_shell(text)
    for pattern, replacement in RULES:
        text = re.sub(pattern, replacement, text)
    return NOTICE.format(source=source) + text


def _only_the_shell(text: str) -> str:
    """Return the class with the coroutines; the steps beside it serve both."""
    shell = text[text.index("class ChangeLog:") :]
    shell = shell[: shell.index("\n\ndef ")]
    return (
        '"""The change log, blocking."""\n\n'
        "from __future__ import annotations\n\n"
        "from typing import TYPE_CHECKING\n\n"
        "from llmspell_dist.log import LogStat, LogSteps\n\n"
        "if TYPE_CHECKING:\n"
        "    from llmspell_dist.changes import LogEntry\n"
        "    from llmspell_dist.revision import Revision\n"
        "    from llmspell_dist.state.driver import AsyncDriver\n\n"
        '__all__ = ["ChangeLog"]\n\n\n' + shell + "\n"
    )


def formatted(text: str, name: str) -> str:
    """As ``ruff format`` leaves it, imports in order."""
    for arguments in (
        ["check", "--select", "I,F401", "--fix-only", "--quiet"],
        ["format", "--quiet"],
    ):
        command = [sys.executable, "-m", "ruff", *arguments, "--stdin-filename", name, "-"]
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, check=True, cwd=ROOT
        )
        text = done.stdout
    return text


def modules() -> Iterator[tuple[str, str]]:
    """Yield every module of the blocking surface that is written, before it is formatted."""
    for source, target in SOURCES.items():
        yield target, translated(source, (ROOT / source).read_text(encoding="utf-8"))
    for target, (about, classes) in SHELLS.items():
        notice = "".join(NOTICE.format(source=source) for source in classes)
        yield target, notice + Shells(ROOT, about, classes, SURFACES).text()


def main() -> int:
    """Write the modules, or compare them."""
    stale = []
    for target, raw in modules():
        text = formatted(raw, target)
        path = ROOT / target
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if "--check" in sys.argv:
            stale.append(target)
        else:
            path.write_text(text, encoding="utf-8")
    if stale:
        print(f"out of date, run tools/make_blocking.py: {', '.join(stale)}")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
